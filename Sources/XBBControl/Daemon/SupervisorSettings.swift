// SPDX-License-Identifier: BSD-2-Clause
// The settings that xbbd was started with.
import Settings

/// How VBDs are supervised.
public struct SupervisorSettings: Sendable {
    /// The directory of locks and sockets.
    public var runDirectory: String
    /// The directories below "backend" that are served.
    public var kinds: [String]
    /// The rule that says which disks in them are ours.
    public var claim: DiskClaim
    /// How workers are started.
    public var workers: WorkerSettings
    /// Number of the group whose members may send requests; nil: only root.
    public var socketGroup: UInt32?
    /// The users of the disks; nil: workers become the one that their settings say.
    public var users: WorkerUsers?
    /// Where the disks' control groups are.
    public var controlGroup = SettingValues().value(of: SettingsSchema.controlGroup)
    /// What a disk's control group may use.
    public var groupLimits = DiskGroups.Limits(SettingValues())
    /// Workers are told to hand over when xbbd ends.
    public var stopsWorkers = SettingValues().value(of: SettingsSchema.stopWorkers)
    /// Each worker whose guest is connected has a standby, in case that it dies.
    public var keepsStandby = SettingValues().value(of: SettingsSchema.standby)
    /// After so many seconds a worker gives up what does not end; see ``Supervisor/endLimit``.
    public var stallSeconds = UInt64(clamping: SettingValues().value(of: SettingsSchema.stallTime))
    /// When workers are restarted.
    public var policy = RestartPolicy()

    /// Settings for a supervisor.
    public init(runDirectory: String, kinds: [String], workers: WorkerSettings) {
        self.runDirectory = runDirectory
        self.kinds = kinds
        self.workers = workers
        claim = DiskClaim(loopback: workers.loopback)
    }
}
