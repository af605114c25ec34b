// SPDX-License-Identifier: BSD-2-Clause
// What xbbd was told at its start.
import Settings

/// How VBDs are supervised.
public struct SupervisorSettings: Sendable {
    /// Where locks and sockets are.
    public var runDirectory: String
    /// Directory names below "backend".
    public var kinds: [String]
    /// Which disks in them are served.
    public var claim: DiskClaim
    /// How workers are started.
    public var workers: WorkerSettings
    /// The group whose members may ask, by its number; nil: root alone.
    public var socketGroup: UInt32?
    /// Workers are told to hand over when xbbd ends.
    public var stopsWorkers = SettingValues().value(of: SettingsSchema.stopWorkers)
    /// Beside each worker whose guest is connected another one stands by, in case that it dies.
    public var keepsStandby = SettingValues().value(of: SettingsSchema.standby)
    /// When workers are started again.
    public var policy = RestartPolicy()

    /// Settings for a supervisor.
    public init(runDirectory: String, kinds: [String], workers: WorkerSettings) {
        self.runDirectory = runDirectory
        self.kinds = kinds
        self.workers = workers
        claim = DiskClaim(loopback: workers.loopback)
    }
}
