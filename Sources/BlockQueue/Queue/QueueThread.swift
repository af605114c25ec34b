// SPDX-License-Identifier: BSD-2-Clause
// One queue: one thread, one event loop, nothing shared with other queues on the way of a request.
import PluginHost
import PluginPort
import Base
import Blkif
import CLinux
import Glibc
import Memory
import PluginAPI
import Synchronization
import Xen
import Support

/// What a queue is made of.
package struct QueueConfiguration: Sendable {
    /// The frontend's domain.
    package var domain: DomainID
    /// The number of the queue.
    package var index: Int
    /// Grant references of the ring's pages, in order.
    package var ringReferences: [UInt32]
    /// The frontend's event channel.
    package var eventChannel: EventPort
    /// The frontend's ABI.
    package var abi: RingABI
    /// What requests are checked against.
    package var disk: OfferedFeatures
    /// Bytes for the data of requests.
    package var memoryBytes: Int
    /// Threads for a plugin that may sleep.
    package var blockingThreads: Int
    /// Where ``disk`` says that grants are kept: the use of a page at which it is mapped, 1 to 255; 0: none is.
    package var mapAtUse: UInt8 = 0
    /// The most pages that it keeps mapped.
    package var mappedPages = 0
    /// What it begins with of all that can be changed while it runs.
    package var tuning: QueueTuning
    /// The order among the queues of the disk; nil for the only one.
    package var order: DiskOrder?
    /// The plugin's queue, where it has fewer than there are rings; nil: the ring opens one of its own.
    package var sharedQueue: SharedPluginQueue?
    /// Where its requests are written down while they are on their way; nil: where nobody will read it.
    package var journal: QueueJournalSource?

    /// A queue of `domain` with the usual limits.
    package init(
        domain: DomainID, index: Int, ringReferences: [UInt32], eventChannel: EventPort, abi: RingABI,
        disk: OfferedFeatures, memoryBytes: Int = 16 << 20, blockingThreads: Int = 4,
        tuning: QueueTuning = QueueTuning()
    ) {
        self.domain = domain
        self.index = index
        self.ringReferences = ringReferences
        self.eventChannel = eventChannel
        self.abi = abi
        self.disk = disk
        self.memoryBytes = memoryBytes
        self.blockingThreads = blockingThreads
        self.tuning = tuning
    }
}

/// A running queue. Methods are for the control thread.
///
/// Unchecked, because of two members: `thread` is the control thread's alone, and the port checks by itself who uses what.
/// All else is constant, atomic or behind a lock.
package final class QueueThread<Platform: XenPlatform>: @unchecked Sendable {
    /// What the control thread wants of the queue's thread, and what that says back.
    private struct Control {
        var tuning: QueueTuning
        var offered: OfferedFeatures
        /// The frontend was told that we are connected.
        var mayTake = false
        var isPaused = false
        /// The queue's thread has nothing in flight since ``isPaused`` was set.
        var isAtRest = false
        var drain: DrainRule?
        /// Requests that wait for space are to be tried again.
        var triesHeld = false
        /// The plugin is to finish what it has in hand.
        var cancels = false
    }

    package let statistics: QueueStatistics
    private let platform: Platform
    private let device: PluginDevice
    private let configuration: QueueConfiguration
    private let log: Log
    private let errorLimit: StorageErrorLimit
    /// Called on the queue's thread when the ring is not read any more.
    private let onFailure: @Sendable (OperationError) -> Void
    /// Called on the queue's thread when the requests of an earlier process were begun again.
    private let onReplayed: @Sendable () -> Void
    /// Called on the queue's thread when it was paused and nothing is in flight any more.
    private let onPaused: @Sendable () -> Void
    /// Called on the queue's thread when it has started, or failed to.
    private let onStarted: @Sendable () -> Void
    /// Called on the queue's thread when an error of the storage was logged.
    private let onStorageError: @Sendable () -> Void
    /// Called on the queue's thread when ``heldRequests`` changed.
    private let onHold: @Sendable () -> Void
    /// Called on the queue's thread when it has something to do for the first time since ``tellWhenAwake()``, before it does it.
    private let onAwake: @Sendable () -> Void
    /// Called on the queue's thread, which ends with that.
    private let onEnd: @Sendable () -> Void
    private let journal: QueueJournalSource
    private let summary = Mutex<RecoverySummary?>(nil)
    private let control: Mutex<Control>
    private let controlChanged = Atomic<Bool>(false)
    private let tellsAwake = Atomic<Bool>(false)
    private let ended = Atomic<Bool>(false)
    private let held = Atomic<Int>(0)
    private let left = Atomic<Int>(0)
    private let port: CompletionPort
    private let started = Semaphore()
    private let startResult = Mutex<OperationError?>(nil)
    private var thread: pthread_t?

    /// Prepares a queue; ``start()`` makes it run.
    package convenience init(
        platform: Platform, device: PluginDevice, configuration: QueueConfiguration, statistics: QueueStatistics,
        log: Log, errorLimit: StorageErrorLimit = StorageErrorLimit(),
        onFailure: @escaping @Sendable (OperationError) -> Void,
        onStarted: @escaping @Sendable () -> Void = {}, onReplayed: @escaping @Sendable () -> Void = {},
        onPaused: @escaping @Sendable () -> Void = {},
        onStorageError: @escaping @Sendable () -> Void = {}, onHold: @escaping @Sendable () -> Void = {},
        onAwake: @escaping @Sendable () -> Void = {}, onEnd: @escaping @Sendable () -> Void = {}
    ) throws(OperationError) {
        let entries = RingLayout(configuration.abi).entryCount(pages: configuration.ringReferences.count)
        // Unsafe as a C struct with pointers; this member is a number.
        let context = unsafe Int(device.library.table.req_ctx_size)
        // A list can be several plugin requests where the plugin's limit is small; the more fit, the deeper it runs.
        guard let port = CompletionPorts.take(requestCount: max(entries, 32) + 32, contextSize: context) else {
            throw OperationError(errno, "make a descriptor for queue \(configuration.index)")
        }
        guard let journal = configuration.journal ?? .anonymous(entries: entries) else {
            CompletionPorts.giveBack(port)
            throw OperationError(ENOMEM, "reserve a journal for queue \(configuration.index)")
        }
        self.init(
            platform, device, configuration, statistics, log, errorLimit, onFailure, onStarted, onReplayed, onPaused,
            onStorageError, onHold, onAwake, onEnd, port: port, journal: journal)
    }

    /// Cannot fail: where an initialiser of a generic class leaves early with a `Mutex` in place, Swift 6.3.1 crashes in
    /// modules that specialise it (docs/decisions/0012-modules.md).
    private init(
        _ platform: Platform, _ device: PluginDevice, _ configuration: QueueConfiguration,
        _ statistics: QueueStatistics, _ log: Log, _ errorLimit: StorageErrorLimit,
        _ onFailure: @escaping @Sendable (OperationError) -> Void, _ onStarted: @escaping @Sendable () -> Void,
        _ onReplayed: @escaping @Sendable () -> Void,
        _ onPaused: @escaping @Sendable () -> Void, _ onStorageError: @escaping @Sendable () -> Void,
        _ onHold: @escaping @Sendable () -> Void, _ onAwake: @escaping @Sendable () -> Void,
        _ onEnd: @escaping @Sendable () -> Void,
        port: CompletionPort, journal: QueueJournalSource
    ) {
        self.platform = platform
        self.device = device
        self.configuration = configuration
        self.statistics = statistics
        self.log = log
        self.errorLimit = errorLimit
        self.onFailure = onFailure
        self.onStarted = onStarted
        self.onReplayed = onReplayed
        self.onPaused = onPaused
        self.onStorageError = onStorageError
        self.onHold = onHold
        self.onAwake = onAwake
        self.onEnd = onEnd
        control = Mutex(Control(tuning: configuration.tuning, offered: configuration.disk))
        self.journal = journal
        // Immortal: a plugin that completes too late must not write to memory of somebody else.
        self.port = port
    }

    deinit {
        // Whoever started the thread has waited for its end, and with it for the plugin queue's.
        CompletionPorts.giveBack(port)
    }

    /// Begins to map the ring, bind the event channel and open the plugin's queue; `onStarted` is called when that has been
    /// done or has failed, and the queue runs where it has been done. That may take for ever: it is the plugin's time.
    package func begin() throws(OperationError) {
        thread = try startThread(named: "xbb-queue-\(configuration.index)") { [self] in run() }
    }

    /// After `onStarted`: throws what went wrong, if the queue does not run.
    package func finishStart() throws(OperationError) {
        if let failure = startResult.withLock({ $0 }) {
            join()
            throw failure
        }
    }

    /// ``begin()``, waits for that, and ``finishStart()``.
    package func start() throws(OperationError) {
        try begin()
        started.wait()
        try finishStart()
    }

    /// Begins to take requests from the ring.
    package func beginTaking() {
        change { $0.mayTake = true }
    }

    /// Takes no more requests until ``resume()``, and finishes those in flight; `onPaused` is called then. The ring stays
    /// mapped and the event channel bound.
    package func pause() {
        change {
            $0.isPaused = true
            $0.isAtRest = false
        }
    }

    /// Goes on after ``pause()``, and looks at the ring at once.
    package func resume() {
        change {
            $0.isPaused = false
            $0.isAtRest = false
        }
    }

    /// Tries again what waits for space, at once.
    package func tryHeldAgain() { change { $0.triesHeld = true } }

    /// `onAwake` is called once, when there is something to do the next time.
    package func tellWhenAwake() { tellsAwake.store(true, ordering: .releasing) }

    /// Asks the plugin to finish what it has in hand, with errors if need be: the disk is over, and nobody waits for its data.
    package func cancel() { change { $0.cancels = true } }

    /// Requests that wait for space, or are being tried again; a moment old.
    package var heldRequests: Int { held.load(ordering: .relaxed) }

    /// Requests that a queue which ended has left to a successor of the process.
    package var leftRequests: Int { left.load(ordering: .acquiring) }

    /// Paused, with nothing in flight.
    package var isPaused: Bool { control.withLock { $0.isPaused && $0.isAtRest } }

    /// Takes what `rule` says, finishes what is in flight, disconnects and ends the thread; `onEnd` is called then. A queue
    /// that is paused takes nothing. Only the first call counts.
    package func beginDraining(_ rule: DrainRule = .atOnce) {
        change { $0.drain = $0.drain ?? rule }
    }

    /// The thread has ended but for its last instructions: ``join()`` does not wait.
    package var hasEnded: Bool { ended.load(ordering: .acquiring) }

    /// Waits for the thread's end, which ``beginDraining()`` has asked for.
    package func join() {
        guard let thread else { return }
        pthread_join(thread, nil)
        self.thread = nil
    }

    /// Drains and waits for the end.
    package func stop() {
        beginDraining()
        join()
    }

    /// Changes what can be changed while the queue runs.
    package func setTuning(_ tuning: QueueTuning) {
        change { $0.tuning = tuning }
    }

    /// Holds requests that are parsed from now on to `offered`.
    package func setOffered(_ offered: OfferedFeatures) {
        change { $0.offered = offered }
    }

    /// What an earlier process left; nil for a queue that begins with nothing in flight.
    package var recovery: RecoverySummary? { summary.withLock { $0 } }

    /// The request that was taken first of those that are not answered, at this moment.
    package var oldestRequest: UnansweredRequest? {
        let layout = RingLayout(configuration.abi)
        return journal.oldestRequest(
            layout: layout, disk: control.withLock { $0.offered },
            entries: layout.entryCount(pages: configuration.ringReferences.count))
    }

    /// The number of the queue.
    package var index: Int { configuration.index }

    /// Calls of complete() that broke the plugin ABI.
    package var violations: UInt64 { port.violations }

    private func change(_ body: (inout Control) -> Void) {
        control.withLock { body(&$0) }
        controlChanged.store(true, ordering: .releasing)
        port.wake()
    }

    // MARK: The queue's thread

    private func run() {
        do throws(OperationError) {
            try serve()
        } catch {
            startResult.withLock { $0 = error }
            started.signal()
            onStarted()
            return
        }
        ended.store(true, ordering: .releasing)
        onEnd()
    }

    /// Everything that can fail comes first and undoes itself; then the loop.
    private func serve() throws(OperationError) {
        port.adoptThread()
        let domain = configuration.domain
        let grants = try platform.openGrants()
        let mapping = try grants.map(configuration.ringReferences, of: domain, writable: true)
        defer { unmap(mapping, grants) }
        KillPoint.reach(.mapped)
        let channels = try platform.openEvents()
        let channel = try bind(
            configuration.eventChannel, of: domain, on: channels, patient: journal.isInherited)
        defer { unbind(channel, channels) }
        KillPoint.reach(.bound)
        guard
            let memory = HostMemory(
                byteCount: QueueEngine.memoryBytes(configuration.memoryBytes, for: configuration.disk)),
            let events = PluginEvents(port: port)
        else { throw OperationError(ENOMEM, "reserve memory for queue \(configuration.index)") }
        let watched = events.add(
            channels.fileDescriptor, UInt32(EPOLLIN.rawValue), PluginEvents.Source.eventChannel.rawValue)
        if watched != 0 { throw OperationError(-watched, "watch event channel \(channel)") }
        configuration.order?.join(configuration.index, port: port)
        defer { configuration.order?.leave(configuration.index) }
        let engine = try makeEngine(BackRing(attaching: mapping.pages, abi: configuration.abi), memory)
        // The memory lives to the end of this function, behind the unmap below.
        unsafe try device.map(memory.address(at: 0, count: memory.byteCount), byteCount: memory.byteCount)
        let queue = try PluginQueue(
            device: device, port: port, events: events, index: configuration.index,
            depth: engine.plugin.depthLimit, threadCount: configuration.blockingThreads,
            shared: configuration.sharedQueue)
        let batchCapacity = engine.data.copies.capacity
        started.signal()
        onStarted()
        var loop = QueueLoop(
            engine: engine, effects: makeEffects(queue, grants, channels, channel, batchCapacity), events: events)
        if journal.isInherited { loop.notify() }
        run(&loop)
        left.store(loop.leftRequests, ordering: .releasing)
        loop.finish()
        unsafe device.unmap(memory.address(at: 0, count: memory.byteCount), byteCount: memory.byteCount)
    }

    /// The engine, behind what an earlier process left in the ring and in the journal.
    private func makeEngine(_ attached: consuming BackRing, _ memory: HostMemory) throws(OperationError) -> QueueEngine
    {
        var ring = attached
        let (journal, recovery) = try self.journal.start(&ring)
        if !recovery.replays.isEmpty {
            let found = RecoverySummary(recovery, journal, layout: ring.layout, disk: configuration.disk)
            summary.withLock { $0 = found }
        }
        let capacity = QueueEngine.segments(of: configuration.disk)
        guard let segments = SegmentStore(requestCount: ring.entryCount, capacity: capacity) else {
            throw OperationError(ENOMEM, "reserve segments for queue \(configuration.index)")
        }
        var engine = QueueEngine(
            ring: ring, domain: configuration.domain, device: device.info, disk: configuration.disk, memory: memory,
            segments: segments, fetch: FetchStage(requestCount: capacity > 0 ? ring.entryCount : 0), port: port,
            stats: statistics.cells, journal: journal, recovery: recovery,
            peers: QueuePeers(order: configuration.order, queue: configuration.index))
        engine.throttle.queue = configuration.index
        return engine
    }

    /// What the loop has done for it. Pages that stay mapped are unmapped with it, whatever ends the queue.
    private func makeEffects(
        _ queue: consuming PluginQueue, _ grants: Platform.Grants, _ channels: Platform.Events, _ channel: EventPort,
        _ batchCapacity: Int
    ) -> any LoopEffects {
        guard configuration.disk.keepsGrants, configuration.mapAtUse > 0, configuration.mappedPages > 0 else {
            return XenEffects(queue: queue, grants: grants, channels: channels, channel: channel)
        }
        let cells = statistics.cells
        let kept = PersistentGrants(
            grants, of: configuration.domain, batchCapacity: batchCapacity, mapAtUse: configuration.mapAtUse,
            pages: configuration.mappedPages
        ) { counts in
            cells.add(.mapped_copies, counts.copies)
            cells.add(.grants_mapped, counts.maps)
            cells.add(.grants_unmapped, counts.unmaps)
            cells.add(.grant_map_errors, counts.errors)
        }
        return XenEffects(queue: queue, grants: kept, channels: channels, channel: channel)
    }

    private func unmap(_ mapping: GrantMapping, _ grants: Platform.Grants) {
        do { try grants.unmap(mapping) } catch { log.error("queue \(configuration.index): \(error)") }
    }

    private func unbind(_ channel: EventPort, _ channels: Platform.Events) {
        do { try channels.unbind(channel) } catch { log.error("queue \(configuration.index): \(error)") }
    }

    private func run(_ loop: inout QueueLoop) {
        var reportedOverflow = false
        takeControl(&loop)
        while true {
            if controlChanged.load(ordering: .acquiring) { takeControl(&loop) }
            // Without a turn nothing is taken that nobody was told of, whatever has woken the thread.
            let worked = tellsAwake.load(ordering: .relaxed) && !tellWork(&loop) ? false : loop.turn()
            if let fault = loop.takeFault() { report(fault) }
            if let failure = loop.takeStorageFailure() { report(failure.last, failure.count) }
            let holding = loop.heldRequests
            if holding != held.load(ordering: .relaxed) {
                held.store(holding, ordering: .relaxed)
                onHold()
            }
            if let overflow = loop.overflow, !reportedOverflow {
                reportedOverflow = true
                onFailure(
                    OperationError(
                        .queue,
                        "queue \(configuration.index): the frontend moved req_prod to "
                            + "\(overflow.requestProducer), further than its ring of \(overflow.entryCount) slots "
                            + "allows; its ring is not read any more"))
            }
            if let poison = loop.takePoison() { report(poison: poison) }
            if loop.takeReplayed() { onReplayed() }
            if let error = loop.takeXenError() { reportXenError(error) }
            if worked { continue }
            if loop.isDrained { return }
            if loop.isAtRest { reportPause() }
            loop.sleep { controlChanged.load(ordering: .acquiring) }
        }
    }

    /// Says that there is something to do, before it is done; false where there is nothing, as after a timer of the plugin.
    @inline(never)
    private func tellWork(_ loop: inout QueueLoop) -> Bool {
        guard loop.mayWork() else { return false }
        if tellsAwake.exchange(false, ordering: .acquiringAndReleasing) { onAwake() }
        return true
    }

    /// Says once for each pause that nothing is in flight.
    private func reportPause() {
        // A queue that has not begun is not paused: others wait for it.
        if control.withLock({ $0.isPaused && $0.drain == nil }) {
            configuration.order?.setResting(configuration.index, true)
        }
        let isNew = control.withLock { control in
            // The loop stays at rest until it takes ``control``, so this is true of a newer pause, too.
            let isNew = control.isPaused && !control.isAtRest
            if isNew { control.isAtRest = true }
            return isNew
        }
        if isNew { onPaused() }
    }

    private func takeControl(_ loop: inout QueueLoop) {
        controlChanged.store(false, ordering: .releasing)
        let current = control.withLock { control in
            defer { (control.triesHeld, control.cancels) = (false, false) }
            return control
        }
        if current.cancels { loop.cancel() }
        // One that ends its requests is at rest for nobody: what waits behind them may begin.
        if !current.isPaused || current.drain != nil { configuration.order?.setResting(configuration.index, false) }
        loop.apply(
            tuning: current.tuning, offered: current.offered, mayTake: current.mayTake && !current.isPaused,
            triesHeld: current.triesHeld, drain: current.drain)
    }

    private func report(_ fault: GuestFault) {
        log.warning(
            "queue \(configuration.index): request refused: \(fault.error.text): operation \(fault.wireOperation), "
                + "sector \(fault.firstSector), \(fault.sectorCount) sectors")
    }

    /// Tells of an error of the storage, the last of `count`.
    private func report(_ failure: StorageFailure, _ count: UInt64) {
        statistics.setLast(failure, time: UInt64(max(Glibc.time(nil), 0)))
        guard let unlogged = errorLimit.admit(count) else { return }
        log.error(
            "queue \(configuration.index): \(failure.text) failed in plugin '\(device.library.name)': "
                + StorageError.reason(failure.code) + (unlogged > 0 ? " (\(unlogged) more were not logged)" : ""))
        onStorageError()
    }

    private func report(poison: BlockRequest) {
        log.error(
            "queue \(configuration.index): \(poison.text): plugin '\(device.library.name)' crashed with this request "
                + "alone \(QueueRecovery.poisonLimit) times; it is answered with an error and not tried again")
    }

    private func reportXenError(_ error: OperationError) {
        log.error("queue \(configuration.index): \(error)")
    }
}
