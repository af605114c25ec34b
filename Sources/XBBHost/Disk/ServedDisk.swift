// SPDX-License-Identifier: BSD-2-Clause
// One disk: its open storage, the queues of its frontend, and what holds for all of them.
//
// Nothing here waits for a request. What takes until requests are answered is begun by a call and ends with a completion:
// queues leave a message in the mailbox, and the control thread hands it to `queueEnded()` or `queuePaused()`.
import BlockQueue
import PluginHost
import ProcessConfinement
import Base
import Blkif
import Settings
import Support
import Xen
import XenBus

/// Owns device, queues, journal, statistics and tunables of a disk, and keeps its limits. Control thread only.
final class ServedDisk<Platform: XenPlatform> {
    /// The connection to a frontend, from ``connect(_:of:_:after:_:)`` until all of its queues have ended.
    struct Connection {
        let node: FrontendNode
        /// What the queues hold requests to and what XenStore says.
        var offered: OfferedFeatures
    }

    /// Queues are being started for a frontend, one after the other.
    struct Connecting {
        let node: FrontendNode
        let domain: DomainID
        let device: PluginDevice
        let offered: OfferedFeatures
        /// What the queues agree on; nil for a single one.
        let order: DiskOrder?
        /// The journals of the queues that are not started yet.
        var sources: ArraySlice<QueueJournalSource>
        /// When the queue began that starts now, in ns of the monotonic clock.
        var began: UInt64 = 0
        let completion: (Result<OfferedFeatures, OperationError>) -> Void
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
    var options: VBDOptions
    let mailbox: Mailbox
    let log: Log
    let errorLimit = StorageErrorLimit()
    let journal: DiskJournal
    let calls: PluginCalls
    /// Where the statistics outlive the process; nil: nowhere.
    var area: StatisticsArea?
    /// What `xbbctl set` changed, for a successor.
    var changes = SettingValues()
    /// What the disk's node says of it.
    var ownSettings = SettingValues()
    /// Holds the disk to its limits; nil: it has none.
    var limiter: DiskLimiter?
    /// The process goes on with a disk of an earlier one: limits begin without a burst.
    var startsThrottled = false

    /// What an earlier process told the frontend whose rings it left; set before these are connected.
    var inheritedTransfer = TransferOffer()

    private(set) var device: PluginDevice?
    private(set) var request: DeviceRequest?
    var queues: [QueueThread<Platform>] = []
    /// The plugin's queues, where it has fewer than the frontend; else empty.
    var sharedQueues: [SharedPluginQueue] = []
    /// What an earlier process of this disk offered to frontends; nil: nothing.
    var offeredBefore: FrontendLimits?
    /// Statistics of each queue; they go on when the frontend reconnects.
    var statistics: [QueueStatistics] = []
    var connection: Connection?
    var connecting: Connecting?
    /// The queue that is being started; not one of ``queues`` yet.
    var startingQueue: QueueThread<Platform>?
    /// The requests that take the longest.
    var watch = RequestWatch()
    /// The plugin is being asked for the size, and has reported a change since.
    private var isMeasuring = false
    private var mustMeasureAgain = false
    var drain: Drain?
    /// Queues that wait until the one before has done the requests of an earlier process again.
    var queuesToStart: ArraySlice<QueueThread<Platform>> = []
    /// The disk is to take no requests, of this frontend and of the next.
    var isPauseWanted = false
    /// When the pause ends by itself, and when it is given up because requests are still in flight, in ns of the monotonic
    /// clock.
    var pauseEnd: UInt64 = .max
    var restLimit: UInt64 = .max
    /// Pauses that have ended: two looks with the same number are at one pause.
    var pauseNumber: UInt64 = 0
    /// The process is about to give the disk up, and whether a successor goes on with it.
    var isEnding = false
    var isHandingOver = false
    /// Requests without an answer that are left to a successor.
    var leftRequests = 0
    var pauseCompletions: [(_ isPaused: Bool) -> Void] = []
    /// What the plugin knows of a pause, and why it could not come to rest.
    var drained = PluginDrain.none
    var drainFailure: OperationError?

    /// The plugin is asked what it counted.
    var question: PluginQuestion?

    /// A frontend was served.
    var hasServed = false

    /// What can be changed while the disk is served.
    var tunables: Tunables {
        didSet {
            // Every process has its limits before a frontend is there.
            limitRates = tunables.limitRates
            if tunables.limits != oldValue.limits { renewLimiter(full: startsThrottled && !hasServed) }
            for queue in queues { tune(queue) }
        }
    }

    /// The limits that are set, of all that can be: bytes and requests in a second. Kept, as monitoring asks for them often.
    private(set) var limitRates: [(name: String, perSecond: Int)] = []

    /// A disk that is not open yet. `reserve` sizes its journal's file for a confined process.
    init(
        platform: Platform, options: VBDOptions, mailbox: Mailbox, reserve: JournalFile.Reservation?, log: Log
    ) {
        self.platform = platform
        self.options = options
        self.mailbox = mailbox
        self.log = log
        calls = PluginCalls(mailbox: mailbox)
        journal = DiskJournal(path: options.journal, reserve: reserve, log: log)
        area = Self.openArea(options.statistics, log)
        tunables = options.tunables
        limitRates = tunables.limitRates
        renewLimiter(full: false)
    }

    // MARK: Storage

    /// Takes the open storage on.
    func open(_ device: PluginDevice, for request: DeviceRequest) {
        self.device = device
        self.request = request
    }

    /// Closes the storage, which no queue uses; `completion` comes when it is closed.
    func close(_ completion: @escaping () -> Void) {
        guard let device else { return completion() }
        self.device = nil
        drained = .none
        let question = question
        self.question = nil
        question?.abandon()
        let log = log
        calls.make("close()") { () throws(OperationError) in
            // A plugin that does not return from stats() must not be called any more.
            if question?.awaitEnd() ?? true { return device.close() }
            log.error("plugin '\(device.library.name)' does not return from stats(); the disk is not closed in it")
        } _: { _ in
            completion()
        }
    }

    /// Asks the plugin for the size that the disk has now, and holds requests to it. `completion` gets what the negotiation
    /// has to know; it is not called where no storage is open, and once for any number of calls while the plugin is asked.
    func resize(_ completion: @escaping (Result<VBDMachine.Event, OperationError>) -> Void) {
        guard let device else { return }
        if let question, !question.isDone {
            // One control call at a time; whoever wants to know asks again when it is over.
            question.isResizeWanted = true
            return
        }
        if isMeasuring {
            mustMeasureAgain = true
            return
        }
        isMeasuring = true
        calls.make("get_info()") { () throws(OperationError) in
            try device.measure()
        } _: { [self] result in
            isMeasuring = false
            if self.device === device { completion(result.map { adopt($0, device) }) }
            if mustMeasureAgain {
                mustMeasureAgain = false
                resize(completion)
            }
        }
    }

    /// Changes the size to so many bytes, or takes the size that the storage has by now. Without `force` it does not become smaller.
    /// `completion` gets what the negotiation has to know.
    func resize(
        to bytes: UInt64?, force: Bool, _ completion: @escaping (Result<VBDMachine.Event, OperationError>) -> Void
    ) {
        guard let device else { return completion(.failure(OperationError(.invalid, "no storage is open"))) }
        let before = device.info.sectorCount
        if let bytes, bytes / 512 < before, !force {
            return completion(
                .failure(
                    OperationError(
                        .invalid, "\(bytes) bytes are less than the disk has, \(before) sectors of 512 bytes")))
        }
        guard question?.isDone ?? true else {
            return completion(.failure(OperationError(.invalid, "the plugin is busy; try again")))
        }
        calls.make("resize()") { () throws(OperationError) in
            try device.resize(to: bytes)
        } _: { [self] result in
            guard self.device === device else {
                return completion(.failure(OperationError(.invalid, "the storage was closed meanwhile")))
            }
            completion(result.map { adopt($0, device) })
        }
    }

    private func adopt(_ info: DeviceInfo, _ device: PluginDevice) -> VBDMachine.Event {
        device.adopt(info)
        connection?.offered.sectorCount = info.sectorCount
        if let connection { for queue in queues { queue.setOffered(connection.offered) } }
        return .deviceResized(sectorCount: info.sectorCount, offered: connection?.offered)
    }

    // MARK: The journal

    /// What it means that the queues have no journal that a successor finds; nil: they have one.
    var journalTrouble: String? {
        guard let missing = journal.missing else { return nil }
        let device = options.shortName.split(separator: "/").joined(separator: " ")
        return
            "no journal (\(missing)): if this process is killed, the guest loses its disk; where there is room again, "
            + "'xbbctl upgrade \(device)' gives it one"
    }

    // MARK: Limits

    /// Queues to pre-open Xen handles for.
    var mostQueues: Int { max(options.maxQueues, journal.queueCount, offeredBefore?.maximumQueueCount ?? 1) }

    /// What the process gives up before it serves. What an earlier one offered to a frontend that is connected needs room too.
    var confinement: ConfinementSettings? {
        let segments = min(inheritedTransfer.maximumIndirectSegments, BlkifLimits.mostIndirectSegments)
        return options.confinement(forQueues: mostQueues, segments: Int(segments))
    }

    /// What a frontend may have, whatever the plugin has. One that is connected already keeps what it has, and one that was
    /// made an offer by an earlier process gets that, whatever is offered to new ones now.
    func limits(_ origin: VBDMachine.RingOrigin) -> FrontendLimits {
        let order = max(options.maxRingPageOrder, offeredBefore?.maximumRingPageOrder ?? 0)
        return FrontendLimits(
            maximumRingPageOrder: origin == .inherited ? FrontendLimits.highestRingPageOrder : order,
            maximumQueueCount: origin == .inherited
                ? mostQueues : max(options.maxQueues, offeredBefore?.maximumQueueCount ?? 1))
    }

    /// How requests may bring their data. A frontend that is connected was told by an earlier process and goes by that.
    ///
    /// Grants are kept only where both ends have said that they will be: other frontends end them with each request.
    func transfer(_ origin: VBDMachine.RingOrigin, _ node: FrontendNode) -> TransferOffer {
        var offer = inheritedTransfer
        if origin == .fresh {
            offer = TransferOffer(
                maximumIndirectSegments: UInt32(clamping: options.maxIndirectSegments),
                keepsGrants: options.mapAtUse > 0)
        }
        offer.keepsGrants = offer.keepsGrants && node.usesPersistentGrants
        return offer
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

    /// Requests that were taken so far.
    var requestsTaken: UInt64 { statistics.reduce(0) { $0 &+ $1.value(.reqs_received) } }

    /// Queues run, or none do, and nothing is on its way.
    var isIdle: Bool {
        calls.running == nil && connecting == nil && startingQueue == nil && drain == nil && queuesToStart.isEmpty
            && requestsInFlight == 0 && heldRequests == 0 && throttledRequests == 0
    }

    /// Looks at the requests on their way; ``stalls(limit:now:)`` says which of them were there all the time.
    func lookAtRequests(now: UInt64) {
        var oldest: [Int: UnansweredRequest] = [:]
        // What waits for space is told as that, and is not the plugin's fault.
        for queue in queues where queue.heldRequests == 0 { oldest[queue.index] = queue.oldestRequest }
        watch.look(oldest, now: now)
    }

    /// Since when the storage is being opened or closed, or a queue started, in ns of the monotonic clock.
    var busySince: UInt64? { calls.running?.began ?? connecting?.began }

    /// Whether anything is going on that may not end.
    var canStall: Bool { calls.running != nil || startingQueue != nil || !queues.isEmpty }

    /// What has lasted for `limit` ns.
    func stalls(limit: UInt64, now: UInt64) -> [Stall] {
        let plugin = device?.library.name
        func stall(_ call: String, _ since: UInt64) -> [Stall] {
            now &- since < limit ? [] : [Stall(subject: .call(call), plugin: plugin, since: since)]
        }
        var found: [Stall] = []
        if let running = calls.running { found += stall(running.name, running.began) }
        if let connecting, let startingQueue {
            found += stall("the start of queue \(startingQueue.index)", connecting.began)
        }
        let requests = watch.stalls(plugin: plugin, limit: limit, now: now)
        found += requests
        if let drain, requests.isEmpty, let queue = queues.first(where: { !$0.hasEnded && $0.oldestRequest == nil }) {
            found += stall("the end of queue \(queue.index)", drain.began)
        }
        return found
    }

    /// Calls of complete() that broke the plugin ABI.
    var violations: UInt64 {
        queues.reduce(0) { $0 &+ $1.violations } &+ sharedQueues.reduce(0) { $0 &+ $1.violations }
    }
}
