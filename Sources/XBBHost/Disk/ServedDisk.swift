// SPDX-License-Identifier: BSD-2-Clause
// One disk: its open storage, the queues of its frontend, and what holds for all of them.
//
// Nothing here waits for a request. What takes until requests are answered is begun by a call and ends with a completion:
// queues leave a message in the mailbox, and the control thread hands it to `queueEnded()` or `queuePaused()`.
import BlockQueue
import PluginHost
import Base
import Blkif
import Support
import Xen
import XenBus

/// Owns device, queues, journal, statistics and tunables of a disk, and keeps its limits. Control thread only.
///
/// Two requests exclude each other in one queue only: what must be alone, a barrier or a write of part of a large block, is
/// offered to frontends with one queue only.
final class ServedDisk<Platform: XenPlatform> {
    /// The connection to a frontend, from ``connect(_:of:_:after:_:)`` until all of its queues have ended.
    struct Connection {
        let node: FrontendNode
        /// What the queues hold requests to and what XenStore says.
        var offered: OfferedFeatures
    }

    /// Queues finish what is in flight and end.
    struct Drain {
        /// When it began, in ns of the monotonic clock.
        let began: UInt64
        var completions: [() -> Void] = []
    }

    /// Whether requests are taken.
    enum Intake: String {
        case running
        /// No more requests are taken; some are in flight.
        case pausing
        /// Nothing is in flight.
        case paused
    }

    let platform: Platform
    let options: VBDOptions
    let mailbox: Mailbox
    let log: Log
    let journal: DiskJournal

    private(set) var device: PluginDevice?
    private(set) var request: DeviceRequest?
    var queues: [QueueThread<Platform>] = []
    /// Statistics of each queue; they go on when the frontend reconnects.
    var statistics: [QueueStatistics] = []
    var connection: Connection?
    var drain: Drain?
    /// Queues that wait until the one before has done the requests of an earlier process again.
    var queuesToStart: ArraySlice<QueueThread<Platform>> = []
    /// The disk is to take no requests, of this frontend and of the next.
    var isPauseWanted = false
    /// The process is about to give the disk up.
    var isEnding = false
    var pauseCompletions: [(_ isPaused: Bool) -> Void] = []

    /// What can be changed while the disk is served.
    var tunables: Tunables {
        didSet {
            for queue in queues {
                queue.setTuning(tunables.tuning, pollNanoseconds: tunables.pollMicroseconds * 1000)
            }
        }
    }

    /// A disk that is not open yet.
    init(platform: Platform, options: VBDOptions, mailbox: Mailbox, log: Log) {
        self.platform = platform
        self.options = options
        self.mailbox = mailbox
        self.log = log
        journal = DiskJournal(path: options.journal, log: log)
        tunables = options.tunables
        tunables.pollMicroseconds = options.pollNanoseconds / 1000
    }

    // MARK: Storage

    /// Takes the open storage on.
    func open(_ device: PluginDevice, for request: DeviceRequest) {
        self.device = device
        self.request = request
    }

    /// Closes the storage; no queue uses it.
    func close() {
        device?.close()
        device = nil
    }

    /// Asks the plugin for the size that the disk has now, and holds requests to it. nil where no storage is open.
    func resize() throws(OperationError) -> VBDMachine.Event? {
        guard let device else { return nil }
        try device.refresh()
        connection?.offered.sectorCount = device.info.sectorCount
        if let connection { for queue in queues { queue.setOffered(connection.offered) } }
        return .deviceResized(sectorCount: device.info.sectorCount, offered: connection?.offered)
    }

    // MARK: Limits

    /// Queues to pre-open Xen handles for.
    var mostQueues: Int { max(options.maxQueues, journal.queueCount) }

    /// What a frontend may have. One that is connected already keeps what it has, whatever new ones may have now.
    func limits(_ origin: VBDMachine.RingOrigin, _ device: PluginDevice) -> FrontendLimits {
        let inherited = origin == .inherited
        return FrontendLimits(
            maximumRingPageOrder: inherited ? FrontendLimits.highestRingPageOrder : options.maxRingPageOrder,
            maximumQueueCount: min(
                inherited ? mostQueues : options.maxQueues, device.maxQueues, device.info.logicalBlock > 512 ? 1 : 64))
    }

    // MARK: What operators ask

    /// Requests that were taken and not answered; a moment old.
    var requestsInFlight: UInt64 {
        statistics.reduce(0) { sum, queue in
            // In this order: what is answered between the two readings must not be missing.
            let answered = queue.value(.reqs_completed)
            let taken = queue.value(.reqs_received)
            return sum &+ (taken > answered ? taken - answered : 0)
        }
    }

    /// Calls of complete() that broke the plugin ABI.
    var violations: UInt64 { queues.reduce(0) { $0 &+ $1.violations } }
}
