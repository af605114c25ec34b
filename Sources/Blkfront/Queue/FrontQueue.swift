// SPDX-License-Identifier: BSD-2-Clause
// One ring of a frontend: it sends requests, takes responses, and checks every rule that blkfront checks.
//
// Nothing here allocates after the queue was made, so that a load run measures the backend.
import Base
public import Blkif
public import Memory
public import Xen
public import XenLoopback

/// A request that was answered. The slot belongs to the caller until ``FrontQueue/release(_:)``.
public struct FrontCompletion: Sendable, Equatable {
    /// The number of the request.
    public let id: Int
    /// What was asked for.
    public let operation: BlockOperation
    /// `BLKIF_RSP_*`, or a number that the protocol does not know.
    public let status: Int16

    /// nil if the request succeeded.
    public var error: BlkfrontError? {
        switch status {
        case BlockStatus.okay.rawValue: nil
        case BlockStatus.notSupported.rawValue: .notSupported
        default: .failed(status: status)
        }
    }
}

/// A queue: a ring, an event channel, and for each request a slot with 44 KiB of the domain's memory, or with more where the
/// backend takes indirect requests (``useIndirect(_:)``).
///
/// A request goes `allocate` → fill ``buffer(of:)`` → `submit` → `publish` (one for many) → `nextCompletion` → use the
/// buffer → `release`. Use from one thread at a time.
///
/// `@unchecked Sendable`: it cannot be copied, so passing it on also passes on its pointers and its port.
///
/// Unsafe code here is the address of a slot's buffer, whose index is checked.
@safe
public struct FrontQueue: ~Copyable, @unchecked Sendable {
    /// The most bytes of a request that is not indirect: 11 pages.
    public static let directSize = BlkifLimits.segmentsPerRequest * 4096
    /// Size of a slot's buffer in bytes: ``directSize``, or more where reads and writes may be indirect.
    public var bufferSize: Int { segmentsPerRequest * 4096 }
    /// Pages of a slot's buffer.
    public private(set) var segmentsPerRequest = BlkifLimits.segmentsPerRequest

    private enum SlotState {
        static let free: UInt8 = 0
        static let owned: UInt8 = 1
        static let waiting: UInt8 = 2
    }

    struct Shadow: BitwiseCopyable, Sendable {
        var state: UInt8
        var operation: UInt8
        /// References of ``grants``, in use until the response.
        var grantCount: UInt16
    }

    /// The number of the queue in its device.
    public let index: Int
    /// The most requests that can be in flight.
    public let slotCount: Int
    /// The grants of the ring's pages, in order.
    public let ringReferences: [UInt32]
    /// The event channel, a port of the frontend's domain.
    public let port: LoopbackPort
    /// The domain of the backend.
    public let backend: DomainID
    /// The ring as the backend sees it, for tests that write what ``FrontRing`` never would.
    public let ringPages: SharedPages
    /// The indices of this end.
    public private(set) var ring: FrontRing
    /// Slots that ``allocate()`` can return.
    public private(set) var freeCount: Int
    /// Requests submitted and not answered.
    public private(set) var inFlight = 0
    /// Number of events sent.
    public private(set) var notifications: UInt64 = 0
    /// Number of times that the ring was published.
    public private(set) var publications: UInt64 = 0
    /// Requests whose segments stood in pages of their own.
    public private(set) var indirectRequests: UInt64 = 0

    private let domain: LoopbackDomain
    private let health: FrontHealth
    private let encoder: RequestEncoder
    private let handle: UInt16
    private var resources: QueueResources
    private var dataBase: UnsafeMutableRawPointer
    private let verifiesPadding: Bool
    private var shadows: FixedArray<Shadow>
    /// The references of each slot's request, as many for each as it has frames.
    private var grants: FixedArray<UInt32>
    private var freeIDs: FixedArray<UInt32>
    private var pool: FixedArray<UInt32>
    private let pooled: Bool
    private var seen = 0

    /// A queue with resources that were allocated from the domain.
    init(
        index: Int, resources: QueueResources, backend: DomainID, handle: UInt16, options: FrontOptions,
        health: FrontHealth
    ) {
        self.index = index
        self.resources = resources
        self.backend = backend
        self.handle = handle
        self.health = health
        domain = resources.domain
        port = resources.port
        ringReferences = resources.ringReferences
        verifiesPadding = options.verifiesPadding
        ringPages = domain.pages(at: resources.ringFrame, count: resources.ringPageCount)
        ring = FrontRing(initializing: ringPages, abi: options.abi, startIndex: options.startIndex)
        encoder = RequestEncoder(layout: ring.layout)
        slotCount = resources.slotCount
        unsafe dataBase = domain.address(ofFrame: resources.dataFrame, count: resources.dataFrameCount)
        grants = FixedArray(zeroed: resources.dataFrameCount)
        shadows = FixedArray(zeroed: slotCount)
        freeIDs = FixedArray(zeroed: slotCount)
        for id in 0..<slotCount { freeIDs[id] = UInt32(slotCount - 1 - id) }
        freeCount = slotCount
        pooled = !resources.pool.isEmpty
        pool = FixedArray(zeroed: resources.pool.count)
        for (frame, reference) in resources.pool.enumerated() { pool[frame] = reference }
    }

    /// Gives every slot room for `segments` pages, as blkfront does once the backend has said how many it takes
    /// (`blkfront_setup_indirect()`). Throws, and changes nothing, where the domain has no room.
    mutating func useIndirect(_ segments: Int) throws(OperationError) {
        precondition(inFlight == 0 && freeCount == slotCount)
        try resources.enlarge(segments, backend: backend)
        unsafe dataBase = domain.address(ofFrame: resources.dataFrame, count: resources.dataFrameCount)
        grants = FixedArray(zeroed: resources.dataFrameCount)
        pool = FixedArray(zeroed: resources.pool.count)
        for (frame, reference) in resources.pool.enumerated() { pool[frame] = reference }
        segmentsPerRequest = segments
    }

    /// The most bytes of a request: only reads and writes can be indirect.
    @inline(__always)
    public func mostBytes(_ operation: BlockOperation) -> Int {
        operation == .read || operation == .write ? bufferSize : Self.directSize
    }

    // MARK: Slots

    /// Takes a free slot; nil if all are in use.
    @inline(__always)
    public mutating func allocate() -> Int? {
        if freeCount == 0 { return nil }
        freeCount -= 1
        let id = Int(freeIDs[freeCount])
        shadows[id].state = SlotState.owned
        return id
    }

    /// Gives back a slot that is not in flight.
    @inline(__always)
    public mutating func release(_ id: Int) {
        precondition(shadows[id].state == SlotState.owned)
        shadows[id].state = SlotState.free
        freeIDs[freeCount] = UInt32(truncatingIfNeeded: id)
        freeCount += 1
    }

    /// The memory of a slot, ``bufferSize`` bytes in the domain's own frames, valid as long as the queue lives.
    @inline(__always)
    @unsafe public func buffer(of id: Int) -> UnsafeMutableRawBufferPointer {
        precondition(id >= 0 && id < slotCount)
        return unsafe UnsafeMutableRawBufferPointer(start: address(of: id), count: bufferSize)
    }

    /// The address of a slot's buffer.
    @unsafe func address(of id: Int) -> UnsafeMutableRawPointer {
        precondition(id >= 0 && id < slotCount)
        return unsafe dataBase + id &* resources.framesPerSlot &* 4096
    }

    // MARK: Requests

    /// Puts a read, write, barrier or flush on the ring; the backend sees it after ``publish()``.
    ///
    /// The data are `byteCount` bytes, a multiple of 512, from sector `skew` of the slot's buffer; none for a flush. On more
    /// than 11 pages the request is indirect, as Linux's are.
    /// `sector` is in the device's own unit. On an error the slot still belongs to the caller.
    @inline(__always)
    public mutating func submit(
        _ id: Int, _ operation: BlockOperation, sector: UInt64, byteCount: Int, skew: Int = 0
    ) throws(BlkfrontError) {
        precondition(shadows[id].state == SlotState.owned && ring.free > 0)
        precondition(byteCount >= 0 && byteCount % 512 == 0 && skew >= 0 && skew < 8)
        precondition(byteCount + skew * 512 <= mostBytes(operation))
        try health.check()
        let begin = skew * 512
        let pageCount = byteCount == 0 ? 0 : (begin + byteCount + 4095) / 4096
        let lastByte = begin + byteCount - 1
        var slot = SlotBytes()
        let isIndirect = pageCount > BlkifLimits.segmentsPerRequest
        if !isIndirect {
            encoder.begin(
                &slot, operation.rawValue, UInt8(truncatingIfNeeded: pageCount), handle, UInt64(id), sector)
        }
        for page in 0..<pageCount {
            // The backend only reads the pages of a write.
            let reference = try grant(page, of: id, readOnly: operation != .read)
            let first = page == 0 ? skew : 0
            let last = page == pageCount - 1 ? lastByte / 512 - page * 8 : 7
            let segment = BlockSegment(
                reference: reference, firstSector: UInt8(truncatingIfNeeded: first),
                lastSector: UInt8(truncatingIfNeeded: last))
            if isIndirect {
                // The pages of the list follow those of the data.
                unsafe (address(of: id) + bufferSize + page &* MemoryLayout<BlockSegment>.stride).storeBytes(
                    of: segment, as: BlockSegment.self)
            } else {
                encoder.setSegment(&slot, page, segment)
            }
        }
        if isIndirect { slot = try list(pageCount, of: id, operation, sector) }
        put(slot, id, operation)
    }

    /// The slot of an indirect request whose segments stand in the pages behind its data.
    private mutating func list(
        _ count: Int, of id: Int, _ operation: BlockOperation, _ sector: UInt64
    ) throws(BlkfrontError) -> SlotBytes {
        var slot = SlotBytes()
        indirectRequests &+= 1
        encoder.beginIndirect(&slot, operation.rawValue, UInt16(truncatingIfNeeded: count), UInt64(id), sector)
        for page in 0..<(count + BlkifLimits.segmentsPerIndirectPage - 1) / BlkifLimits.segmentsPerIndirectPage {
            encoder.setListPage(&slot, page, try grant(segmentsPerRequest + page, of: id, readOnly: true))
        }
        return slot
    }

    /// The reference for a frame of a slot; a new one unless all are granted for good. An error ends those of the request.
    @inline(__always)
    private mutating func grant(_ frame: Int, of id: Int, readOnly: Bool) throws(BlkfrontError) -> UInt32 {
        let number = id &* resources.framesPerSlot &+ frame
        if pooled { return pool[number] }
        let reference: UInt32
        do {
            reference = try domain.grantAccess(
                to: backend, frame: resources.dataFrame &+ UInt32(truncatingIfNeeded: number), readOnly: readOnly)
        } catch {
            _ = endGrants(id)
            throw .domain(error)
        }
        grants[id &* resources.framesPerSlot &+ Int(shadows[id].grantCount)] = reference
        shadows[id].grantCount &+= 1
        return reference
    }

    /// Puts a discard on the ring.
    public mutating func submitDiscard(
        _ id: Int, sector: UInt64, sectorCount: UInt64, secure: Bool = false
    ) throws(BlkfrontError) {
        precondition(shadows[id].state == SlotState.owned && ring.free > 0)
        try health.check()
        put(
            encoder.discard(id: UInt64(id), firstSector: sector, sectorCount: sectorCount, secure: secure), id,
            .discard)
    }

    /// Puts arbitrary bytes on the ring, for tests. If `id` is not nil, a response with that id is then expected, for
    /// the operation in the first byte of the slot, of an indirect request for the inner one.
    public mutating func submitRaw(_ slot: SlotBytes, expecting id: Int?) {
        precondition(ring.free > 0)
        if let id {
            precondition(shadows[id].state == SlotState.owned)
            shadows[id].state = SlotState.waiting
            let operation = slot.load(UInt8.self, at: 0)
            let isIndirect = operation == BlkifLimits.indirectOperation && resources.hasLists
            shadows[id].operation = isIndirect ? slot.load(UInt8.self, at: 1) : operation
            inFlight += 1
        }
        ring.put(slot)
    }

    @inline(__always)
    private mutating func put(_ slot: SlotBytes, _ id: Int, _ operation: BlockOperation) {
        shadows[id].state = SlotState.waiting
        shadows[id].operation = operation.rawValue
        inFlight += 1
        ring.put(slot)
    }

    /// Shows all requests to the backend and sends an event if it wants one.
    @inline(__always)
    public mutating func publish() throws(BlkfrontError) {
        publications &+= 1
        if ring.publish() { try notify() }
    }

    /// Sends an event whether the backend wants one or not.
    public mutating func notify() throws(BlkfrontError) {
        notifications &+= 1
        do {
            try port.notify()
        } catch {
            throw .domain(error)
        }
    }

    // MARK: Responses

    /// The next response; nil if there is none. Throws once the backend has broken a rule, and from then on.
    @inline(__always)
    public mutating func nextCompletion() throws(BlkfrontError) -> FrontCompletion? {
        if seen == 0 {
            try health.check()
            do {
                seen = try ring.available()
            } catch {
                throw die(
                    .responseOverflow(
                        producer: error.requestProducer, consumer: ring.responseConsumer,
                        requests: ring.requestProducer))
            }
            if seen == 0 { return nil }
        }
        seen -= 1
        let paddingIsZero = !verifiesPadding || nextPaddingIsZero()
        let response = ring.take()
        return try verify(response, paddingIsZero: paddingIsZero)
    }

    /// The checks of blkif_interrupt() and blkif_completion().
    @inline(__always)
    private mutating func verify(
        _ response: BlockResponse, paddingIsZero: Bool
    ) throws(BlkfrontError) -> FrontCompletion {
        if response.id >= UInt64(ring.entryCount) {
            throw die(.incorrectID(response.id, slots: ring.entryCount))
        }
        let id = Int(truncatingIfNeeded: response.id)
        if id >= slotCount || shadows[id].state != SlotState.waiting { throw die(.noPendingRequest(id: response.id)) }
        if response.wireOperation != shadows[id].operation {
            throw die(
                .wrongOperation(got: response.wireOperation, expected: shadows[id].operation, id: response.id))
        }
        if !paddingIsZero { throw die(.paddingNotZero(id: response.id)) }
        shadows[id].state = SlotState.owned
        inFlight -= 1
        if let reference = endGrants(id) { throw die(.grantInUse(reference: reference, id: response.id)) }
        return FrontCompletion(
            id: id, operation: BlockOperation(rawValue: response.wireOperation) ?? .read, status: response.status)
    }

    /// Ends the grants of a request; returns the first one that the backend still uses.
    @inline(__always)
    private mutating func endGrants(_ id: Int) -> UInt32? {
        var used: UInt32?
        for index in 0..<Int(shadows[id].grantCount) {
            let reference = grants[id &* resources.framesPerSlot &+ index]
            if !resources.end(reference), used == nil { used = reference }
        }
        shadows[id].grantCount = 0
        return used
    }

    /// Checks the bytes of the next response that belong to no field (XSA-216).
    @inline(__always)
    private func nextPaddingIsZero() -> Bool {
        let mask = ring.entryCount - 1
        let layout = ring.layout
        let offset = RingLayout.ringHeaderSize + (Int(ring.responseConsumer) & mask) * layout.slotSize
        let betweenFields = ringPages.load(at: offset + 8) >> 8 & 0xff
        let atEnd = layout.responseSize == 16 ? ringPages.load(at: offset + 12) : 0
        return betweenFields | atEnd == 0
    }

    private func die(_ fault: FrontFault) -> BlkfrontError { health.end(.dead(fault)) }

    // MARK: Waiting

    /// True if the backend has published responses, or an impossible index. One load; for loops that poll.
    @inline(__always)
    public var hasResponses: Bool { seen > 0 || (try? ring.available()) != 0 }

    /// Asks for an event at the next response; true if there are responses already.
    @inline(__always)
    public mutating func finalCheck() -> Bool { ring.finalCheck() }

    /// Waits for an event, at most `timeout` milliseconds; -1 for no limit. False at the timeout.
    ///
    /// Returns at once if responses are there already.
    public mutating func wait(timeout: Int32 = -1) throws(BlkfrontError) -> Bool {
        if ring.finalCheck() { return true }
        return try waitForEvent(timeout: timeout)
    }

    /// Waits for an event without looking at the ring.
    public func waitForEvent(timeout: Int32 = -1) throws(BlkfrontError) -> Bool {
        try health.check()
        return port.wait(milliseconds: timeout)
    }

    // MARK: Misuse, for tests

    /// Moves the shared `req_prod` by any amount from where it is.
    public func moveProducer(by amount: UInt32) {
        ring.forgeRequestProducer(ring.requestProducer &+ amount)
    }

    // MARK: End

    /// Ends all grants and frees the frames. Returns the references that the backend still uses.
    ///
    /// The frames of such references are not used again. Call it when the backend has closed, or never will.
    mutating func dismantle() -> [UInt32] {
        var used: [UInt32] = []
        for id in 0..<slotCount {
            for index in 0..<Int(shadows[id].grantCount) {
                let reference = grants[id &* resources.framesPerSlot &+ index]
                if !resources.end(reference) { used.append(reference) }
            }
            shadows[id].grantCount = 0
        }
        return used + resources.giveBack(keepingFrames: !used.isEmpty)
    }
}
