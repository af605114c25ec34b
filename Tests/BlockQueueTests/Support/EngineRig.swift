// SPDX-License-Identifier: BSD-2-Clause
// A queue engine between a fake guest and a fake plugin: no Xen, no threads, no files, and one turn at a time.
import Base
import Blkif
import CXen
import Glibc
import Memory
import PluginAPI
import Xen

@testable import BlockQueue
@testable import PluginHost
@testable import PluginPort

/// A request that the guest sent.
struct Sent {
    let id: UInt64
    let operation: UInt8
    let sector: Int
    let count: Int
    let segments: [BlockSegment]
    /// What a write carries, one number for each sector.
    let tags: [UInt64]
    /// Pages with the segments of an indirect request.
    var lists: [UInt32] = []

    /// All pages that it has.
    var references: [UInt32] { segments.map(\.reference) + lists }
}

/// The engine and the two fakes; turns are the engine's own, with effects on the fakes.
final class EngineRig {
    /// What a rig is made of. `info` is what the plugin's get_info() gives.
    struct Setup {
        var ringPages = 1
        var abi = RingABI.x86_64
        var startIndex: UInt32 = 0
        var sectors = 4096
        var memoryBytes = 4 << 20
        var pluginRequests = 64
        var readOnly = false
        /// Segments of indirect requests that are offered.
        var indirectSegments: UInt32 = 0
        /// Pages of the guest; 0 for enough for a ring full of requests, or for a few indirect ones.
        var guestPages = 0

        func pageCount(_ entries: Int) -> Int {
            guestPages > 0 ? guestPages : entries * 12 + Int(indirectSegments) * 12
        }

        var offersBarrier = true
        /// Its place among the queues of a disk.
        var order: DiskOrder?
        var queue = 0
        var info = xbb_info()

        /// What a queue of the host would have.
        var wholeMemory: Int {
            QueueEngine.memoryBytes(
                memoryBytes, for: OfferedFeatures(sectorCount: 1, maximumIndirectSegments: indirectSegments))
        }

        init() {
            info.caps =
                UInt64(XBB_CAP_WRITE) | UInt64(XBB_CAP_FLUSH) | UInt64(XBB_CAP_FUA) | UInt64(XBB_CAP_DISCARD)
                | UInt64(XBB_CAP_DISCARD_SECURE) | UInt64(XBB_CAP_WRITE_ZEROES)
            info.logical_block = 512
        }

        /// Without discard there is none that is secure either: the host refuses a plugin that says so.
        mutating func remove(_ capability: UInt64) {
            info.caps &= ~capability
            if capability == UInt64(XBB_CAP_DISCARD) { info.caps &= ~UInt64(XBB_CAP_DISCARD_SECURE) }
        }
    }

    private let setup: Setup
    private var oldPorts: [CompletionPort] = []
    let guest: FakeGuest
    private(set) var plugin: FakePlugin
    let disk: FakeDisk
    private(set) var port: CompletionPort
    private(set) var memory: HostMemory
    let journal: JournalMapping
    let statistics = QueueStatistics()
    var engine: QueueEngine

    /// Makes the next call of the grant table fail as a whole.
    var failCopyCall = false
    /// Keeps pages mapped, in front of the guest's own copies.
    var grants: PersistentGrants<GuestGrants>?
    /// The guest writes anything anywhere: what it sees on its ring says nothing.
    var ignoresAnswers = false
    /// Called for each reference of a call that fails as a whole.
    var onFailedCall: ((UInt32) -> Void)?
    /// Responses in the order in which they came.
    private(set) var answers: [BlockResponse] = []
    private var statuses: [UInt64: Int16] = [:]
    private var pending: [UInt64: UInt8] = [:]
    private var rules: [String] = []
    /// Called for each response, after it was checked.
    var onAnswer: ((BlockResponse) -> Void)?
    /// Called after each publish that showed something.
    private(set) var notifications = 0
    private var nextID: UInt64 = 0x1111_0000_0000
    var nextTag: UInt64 = 0x2000_0001
    private var freePages: [UInt32]

    /// `shared`: the disk of other rigs.
    init(disk shared: FakeDisk? = nil, _ change: (inout Setup) -> Void = { _ in }) throws {
        var setup = Setup()
        change(&setup)
        setup.info.size = UInt64(setup.sectors) * 512
        self.setup = setup
        let info = try DeviceInfo(validating: setup.info)
        let entries = RingLayout(setup.abi).entryCount(pages: setup.ringPages)
        guest = FakeGuest(
            ringPageCount: setup.ringPages, abi: setup.abi, startIndex: setup.startIndex,
            pageCount: setup.pageCount(entries))
        freePages = (0..<UInt32(setup.pageCount(entries))).reversed().map {
            FakeGuest.firstReference + $0
        }
        disk = shared ?? FakeDisk(sectorCount: setup.sectors)
        port = try Self.take(CompletionPorts.take(requestCount: setup.pluginRequests, contextSize: 0))
        port.adoptThread()
        journal = try Self.take(JournalMapping.anonymous(queues: 1, entries: entries))
        memory = try Self.take(HostMemory(byteCount: setup.wholeMemory))
        plugin = FakePlugin(disk: disk, info: info, port: port)
        setup.order?.join(setup.queue, port: port)
        engine = try Self.engine(
            setup, info, guest, QueueJournalSource(mapping: journal, index: 0), memory, port, statistics)
    }

    private static func take<Resource>(_ resource: Resource?) throws(OperationError) -> Resource {
        guard let resource else { throw OperationError(ENOMEM, "make a rig") }
        return resource
    }

    private static func engine(
        _ setup: Setup, _ info: DeviceInfo, _ guest: FakeGuest, _ source: QueueJournalSource, _ memory: HostMemory,
        _ port: CompletionPort, _ statistics: QueueStatistics
    ) throws(OperationError) -> QueueEngine {
        let limits = OfferedFeatures(
            sectorCount: UInt64(setup.sectors), isReadOnly: setup.readOnly,
            discard: info.capabilities.contains(.discard) ? DiscardSupport() : nil, hasBarrier: setup.offersBarrier,
            maximumIndirectSegments: setup.indirectSegments)
        var ring = BackRing(attaching: guest.ringPages.shared, abi: setup.abi)
        let (journal, recovery) = try source.start(&ring)
        let capacity = QueueEngine.segments(of: limits)
        guard let segments = SegmentStore(requestCount: ring.entryCount, capacity: capacity) else {
            throw OperationError(ENOMEM, "reserve segments")
        }
        return QueueEngine(
            ring: ring, domain: FakeGuest.domain, device: info, disk: limits, memory: memory, segments: segments,
            fetch: FetchStage(requestCount: capacity > 0 ? ring.entryCount : 0), port: port,
            stats: statistics.cells, journal: journal, recovery: recovery,
            peers: QueuePeers(order: setup.order, queue: setup.queue))
    }

    deinit {
        setup.order?.leave(setup.queue)
        // Each has a descriptor and is never freed: the next rig takes them.
        for port in oldPorts + [port] { CompletionPorts.giveBack(port) }
    }

    // MARK: The host's death

    /// What a new process makes of the ring and the journal; the old one has had no time for anything.
    func succeed(_ predecessor: Predecessor = .killed("signal 9")) throws {
        rules += plugin.problems
        oldPorts.append(port)
        // A life has hundreds of deaths, and a process may have 1024 descriptors.
        if oldPorts.count > 16 { CompletionPorts.giveBack(oldPorts.removeFirst()) }
        port = try Self.take(CompletionPorts.take(requestCount: setup.pluginRequests, contextSize: 0))
        port.adoptThread()
        memory = try Self.take(HostMemory(byteCount: setup.wholeMemory))
        let info = plugin.info
        plugin = FakePlugin(disk: disk, info: info, port: port)
        setup.order?.leave(setup.queue)
        setup.order?.join(setup.queue, port: port)
        engine = try Self.engine(
            setup, info, guest, QueueJournalSource(mapping: journal, index: 0, inheritance: .journal(predecessor)),
            memory, port, statistics)
    }

    /// Changes the first sector of a request that was taken, where it stands in the journal.
    func moveTakenRequest(_ index: Int32, bySectors count: UInt32) {
        // struct blkif_request: the sector's number stands behind the id, which 32-bit x86 aligns to 4 bytes.
        let place = JournalLayout.slot(index) + JournalLayout.bytesOffset + (setup.abi == .x86_32 ? 12 : 16)
        let pages = journal.queue(0)
        pages.store(pages.load(at: place) &+ count, at: place)
    }

    /// The first `steps` of a turn, 0 to 7: completions, ring, copies, plugin, responses shown, seen, known.
    func turn(steps: Int) {
        _ = guest.publish()
        engine.now += 1000
        let effects = RigEffects(rig: self)
        if steps > 0 { _ = engine.absorbCompletions() }
        if steps > 1 { _ = engine.takeRequests() }
        if steps > 2, engine.collectFetches() { engine.fetched(succeeded: effects.copy(&engine.data)) }
        if steps > 2, engine.collectCopies() { engine.copiesDone(succeeded: effects.copy(&engine.data)) }
        if steps > 3 { _ = engine.submit(effects) }
        if steps > 4, engine.unpublished > 0 {
            engine.unpublished = 0
            _ = engine.ring.publish()
            if steps > 5 { takeAnswers() }
            if steps > 6 { engine.releaseAnswered() }
        }
    }

    // MARK: The guest's side

    func newPage() -> UInt32 {
        precondition(!freePages.isEmpty, "the guest has no free page")
        return freePages.removeLast()
    }

    func givePagesBack(_ sent: Sent) {
        for segment in sent.segments { freePages.append(segment.reference) }
        freePages += sent.lists
    }

    /// Pages that no request has.
    var freePageCount: Int { freePages.count }

    /// Segments on fresh pages for `count` sectors, the first of them `skip` sectors into its page.
    func segments(_ count: Int, skip: Int = 0) -> [BlockSegment] {
        var left = count
        var first = skip
        var list: [BlockSegment] = []
        while left > 0 {
            let here = min(left, 8 - first)
            list.append(
                BlockSegment(
                    reference: newPage(), firstSector: UInt8(first), lastSector: UInt8(first + here - 1)))
            left -= here
            first = 0
        }
        precondition(
            list.count <= max(BlkifLimits.segmentsPerRequest, Int(setup.indirectSegments)),
            "more than a request can carry")
        return list
    }

    /// The addresses of a request's sectors in the guest's memory.
    func addresses(_ segments: [BlockSegment]) -> [UnsafeMutableRawPointer] {
        segments.flatMap { segment in
            (Int(segment.firstSector)...Int(segment.lastSector)).map { guest.sector(segment.reference, $0) }
        }
    }

    /// Puts a request with segments on the ring.
    @discardableResult
    func send(
        _ operation: BlockOperation, _ sector: Int, _ segments: [BlockSegment], id: UInt64? = nil,
        segmentCount: UInt8? = nil
    ) -> Sent {
        let sent = prepare(operation, sector, segments, wire: operation.rawValue, id: id)
        guest.put(
            guest.encoder.slot(
                operation: operation.rawValue, id: sent.id, firstSector: UInt64(bitPattern: Int64(sector)),
                segments: segments, segmentCount: segmentCount))
        pending[sent.id] = sent.operation
        return sent
    }

    /// What the guest writes from now on is zeroes.
    var writesZeroes = false

    /// Fills the pages of a request as the guest does before it sends it.
    private func prepare(
        _ operation: BlockOperation, _ sector: Int, _ segments: [BlockSegment], wire: UInt8, id: UInt64? = nil
    ) -> Sent {
        let places = addresses(segments)
        var tags: [UInt64] = []
        for place in places {
            if operation == .read {
                memset(place, 0xDD, 512)
            } else if writesZeroes {
                tags.append(0)
                SectorTag.fill(place, 0)
            } else {
                tags.append(nextTag)
                SectorTag.fill(place, nextTag)
                nextTag += 1
            }
        }
        return Sent(
            id: id ?? newID(), operation: wire, sector: sector, count: places.count, segments: segments, tags: tags)
    }

    /// Puts an indirect request on the ring. `change` may change the pages of segments, which stand as the guest wrote them.
    @discardableResult
    func sendIndirect(
        _ operation: BlockOperation, _ sector: Int, _ segments: [BlockSegment], segmentCount: Int? = nil,
        inner: UInt8? = nil, _ change: ([UInt32]) -> Void = { _ in }
    ) -> Sent {
        // A frontend expects the inner operation in the response, as xen-blkback writes it.
        let wire = setup.indirectSegments > 0 ? inner ?? operation.rawValue : BlkifLimits.indirectOperation
        var data = prepare(operation, sector, segments, wire: wire)
        var references: [UInt32] = []
        for (number, segment) in segments.enumerated() {
            if number % 512 == 0 { references.append(newPage()) }
            let place = guest.sector(references[number / 512], 0) + number % 512 * 8
            place.storeBytes(of: segment.reference, as: UInt32.self)
            place.storeBytes(of: segment.firstSector, toByteOffset: 4, as: UInt8.self)
            place.storeBytes(of: segment.lastSector, toByteOffset: 5, as: UInt8.self)
        }
        data.lists = references
        change(references)
        guest.put(
            guest.encoder.indirect(
                operation: inner ?? operation.rawValue, id: data.id, firstSector: UInt64(bitPattern: Int64(sector)),
                segmentCount: UInt16(segmentCount ?? segments.count), references: references))
        pending[data.id] = data.operation
        return data
    }

    @discardableResult
    func read(_ sector: Int, _ count: Int, skip: Int = 0) -> Sent { send(.read, sector, segments(count, skip: skip)) }

    @discardableResult
    func write(_ sector: Int, _ count: Int, skip: Int = 0) -> Sent {
        send(.write, sector, segments(count, skip: skip))
    }

    @discardableResult
    func barrier(_ sector: Int = 0, _ count: Int = 0) -> Sent { send(.writeBarrier, sector, segments(count)) }

    @discardableResult
    func flush(_ sector: Int = 0, _ count: Int = 0) -> Sent { send(.flush, sector, segments(count)) }

    @discardableResult
    func discard(_ sector: UInt64, _ count: UInt64, secure: Bool = false) -> Sent {
        let sent = Sent(
            id: newID(), operation: BlockOperation.discard.rawValue, sector: Int(truncatingIfNeeded: sector),
            count: Int(truncatingIfNeeded: count), segments: [], tags: [])
        guest.put(guest.encoder.discard(id: sent.id, firstSector: sector, sectorCount: count, secure: secure))
        pending[sent.id] = sent.operation
        return sent
    }

    private func newID() -> UInt64 {
        nextID += 1
        return nextID
    }

    /// The status of the answer; nil while there is none.
    func status(_ sent: Sent) -> Int16? { statuses[sent.id] }
    func statuses(_ sent: [Sent]) -> [Int16?] { sent.map { statuses[$0.id] } }
    /// What stands in the guest's memory of a request now.
    func guestTags(_ sent: Sent) -> [UInt64] { addresses(sent.segments).map { SectorTag.read($0) } }
    /// What a read must give while nobody writes.
    func diskTags(_ sent: Sent) -> [UInt64] { disk.tags(sent.sector, sent.count) }
    /// True if the guest's memory has what is on the disk.
    func hasDiskData(_ read: Sent) -> Bool { guestTags(read) == diskTags(read) }
    /// True if all that a write carried is on the disk.
    func isOnDisk(_ write: Sent) -> Bool { write.tags == diskTags(write) }
    /// True if the sectors were never written.
    func isUntouched(_ sectors: Range<Int>) -> Bool { sectors.allSatisfy { disk.tag($0) == FakeDisk.firstTag($0) } }
    var unanswered: Int { pending.count }

    // MARK: The host's side

    /// One turn of the queue's loop.
    @discardableResult
    func turn() -> Bool {
        _ = guest.publish()
        engine.now += 1000
        let effects = RigEffects(rig: self)
        let answered = counter(.reqs_completed)
        let worked = engine.turn(effects)
        audit()
        takeAnswers()
        return worked || counter(.reqs_completed) != answered
    }

    /// Has the batch done by the fake guest.
    fileprivate func copy(_ data: inout DataPlane) -> Bool {
        if failCopyCall {
            failCopyCall = false
            data.execute { batch in
                for index in 0..<batch.count { onFailedCall?(cxen_copy_reference(&batch.segments[index])) }
            }
            return false
        }
        guard let grants else {
            data.execute { guest.execute(&$0) }
            return true
        }
        do throws(OperationError) {
            try data.execute(on: grants)
            return true
        } catch {
            return false
        }
    }

    /// What ``PluginQueue/submit(_:)`` does, with the fake.
    fileprivate func submit(_ side: inout PluginSide) -> Submission {
        var submission = Submission()
        var indices: [Int32] = []
        side.offer(max(side.offerable, 0)) { _, request, _ in indices.append(request) }
        submission.offered = indices.count
        while submission.taken < indices.count, plugin.accept(indices[submission.taken]) { submission.taken += 1 }
        for index in indices[submission.taken...].reversed() where !side.takeBack(index) {
            problem("a request that was not taken is gone")
        }
        return submission
    }

    fileprivate func countNotification() { notifications += 1 }

    /// The guest looks at its ring, whoever has written to it.
    func settleAnswers() { takeAnswers() }

    private func takeAnswers() {
        let fresh: [BlockResponse]
        do { fresh = try guest.takeResponses() } catch {
            if !ignoresAnswers { problem("rsp_prod runs ahead of the requests") }
            return
        }
        if ignoresAnswers { return }
        for answer in fresh {
            answers.append(answer)
            guard let operation = pending.removeValue(forKey: answer.id) else {
                problem("an answer to \(String(answer.id, radix: 16)), which is not waited for")
                continue
            }
            if operation != answer.wireOperation {
                problem("an answer to operation \(operation) says \(answer.wireOperation)")
            }
            statuses[answer.id] = answer.status
            onAnswer?(answer)
        }
    }

    func forget(_ sent: Sent) { statuses[sent.id] = nil }
    func forgetAnswers() { answers.removeAll(keepingCapacity: true) }
    /// `id`, or the next one that no request on the ring has: answers are told apart by it. An input of a fuzzer may be all zeroes.
    func unusedID(_ id: UInt64) -> UInt64 {
        var id = id
        while pending[id] != nil { id &+= 1 }
        return id
    }

    /// A request of the test's own making, with an answer to come.
    func expectAnswer(_ id: UInt64, _ operation: UInt8) { pending[id] = operation }

    /// Turns until nothing is left to do, with a plugin that completes all it has in its order.
    func run(completing status: Int32 = 0) {
        for _ in 0..<10_000 {
            let worked = turn()
            if plugin.held.isEmpty && !worked && port.localCount == 0 { return }
            plugin.completeAll(status)
        }
        problem("the engine does not come to an end")
    }

    /// Turns until nothing happens any more; the plugin keeps what it has.
    func settle() {
        for _ in 0..<10_000 where !turn() { return }
        problem("the engine does not settle")
    }

    // MARK: Checks

    /// What of the pools and queues is in use.
    struct Use: Equatable {
        var requests = 0
        var lists = 0
        var pluginRequests = 0
        var pages = 0
        /// Plugin requests that were not offered yet.
        var ready = 0
        /// Lists that wait for memory, for plugin requests, for copies.
        var waiting = [0, 0, 0]
    }

    var use: Use {
        Use(
            requests: engine.ring.entryCount - engine.freeRequests.count - engine.answered.count,
            lists: engine.listsInFlight,
            pluginRequests: port.requestCount - engine.plugin.freeCount, pages: engine.data.pool.pagesInUse,
            ready: engine.plugin.ready.count,
            waiting: [
                engine.memoryWaiters.count, engine.plugin.waiterCount,
                engine.data.waiting.count,
            ])
    }
    var isIdle: Bool { engine.isIdle }
    var hasOnlyHeld: Bool { engine.hasOnlyHeld }
    var leavesOnlyHeld: Bool { engine.leavesOnlyHeld }

    func problem(_ text: String) {
        if rules.count < 10 { rules.append(text) }
    }

    /// What was found to be wrong, by the audit, the guest and the plugin.
    var problems: [String] { rules + plugin.problems }

    func counter(_ counter: QueueCounter) -> UInt64 { statistics.value(counter) }

    /// Resources of answered requests are free; those of the others are counted once. Run before each publish, and after.
    func audit() { audit(engine) }

    fileprivate func audit(_ engine: borrowing QueueEngine) {
        let entries = engine.ring.entryCount
        var lists = 0
        var requests = 0
        var pages = 0
        var seen = [Bool](repeating: false, count: entries)
        var runs: [(Int32, Int32)] = []
        for number in 0..<entries where engine.lists[number].state.phase != .free {
            let list = engine.lists[number]
            lists += 1
            pages += engine.data.runs(of: Int32(number)).reduce(0) { $0 + Int($1.pages) }
            runs += engine.data.runs(of: Int32(number)).map { ($0.page, $0.pages) }
            var index = Int32(number)
            var length: Int32 = 0
            while index >= 0, length <= Int32(entries) {
                if seen[Int(index)] { problem("a request stands in two lists") }
                seen[Int(index)] = true
                length += 1
                index = engine.requests[Int(index)].next
            }
            if length != list.state.requestCount {
                problem("a list of \(list.state.requestCount) has \(length) requests")
            }
            requests += Int(length)
        }
        if lists != engine.listsInFlight { problem("\(lists) lists are used, \(engine.listsInFlight) are counted") }
        // Requests of a dead process that were not begun again are nobody's yet.
        requests += engine.replays.count
        if engine.freeRequests.count + engine.answered.count != entries - requests { problem("requests leak") }
        if engine.ring.outstanding != requests { problem("\(engine.ring.outstanding) outstanding, \(requests) held") }
        if engine.data.pool.pagesInUse != pages { problem("pages leak") }
        if engine.plugin.freeCount + engine.plugin.ready.count + engine.plugin.inFlight != port.requestCount {
            problem("plugin requests leak")
        }
        runs.sort { $0.0 < $1.0 }
        for (one, next) in zip(runs, runs.dropFirst()) where one.0 + one.1 > next.0 {
            problem("two lists have the same page")
        }
        if engine.exclusive >= 0, engine.lists[Int(engine.exclusive)].state.phase != .waitingForDrain {
            if listsOnTheirWay(engine) != 1 { problem("a list that must be alone is not") }
        }
    }

    private func listsOnTheirWay(_ engine: borrowing QueueEngine) -> Int {
        var count = 0
        for index in 0..<engine.ring.entryCount
        where ![ReqlistPhase.free, .collecting, .waitingForMemory].contains(engine.lists[index].state.phase) {
            count += 1
        }
        return count
    }
}

/// Effects on a rig's fakes.
private final class RigEffects: QueueEffects {
    unowned let rig: EngineRig

    init(rig: EngineRig) { self.rig = rig }

    func copy(_ data: inout DataPlane) -> Bool { rig.copy(&data) }
    func submit(_ side: inout PluginSide) -> Submission { rig.submit(&side) }
    func poll() -> Bool { false }
    func notify() { rig.countNotification() }
    func willPublish(_ engine: inout QueueEngine) { rig.audit(engine) }
}
