// SPDX-License-Identifier: BSD-2-Clause
// The frontend's end of a shared ring (`FRONT_RING` of xen/io/ring.h).
public import Memory

/// A response as the frontend reads it.
public struct BlockResponse: Sendable, Equatable {
    /// The number of the request.
    public var id: UInt64
    /// The operation of the request, echoed.
    public var wireOperation: UInt8
    /// `BLKIF_RSP_*`; any value until it is checked.
    public var status: Int16

    /// A response.
    public init(id: UInt64, wireOperation: UInt8, status: Int16) {
        self.id = id
        self.wireOperation = wireOperation
        self.status = status
    }
}

/// The frontend's private indices; used by the loopback frontend and by tests.
public struct FrontRing: ~Copyable, Sendable {
    private let pages: SharedPages
    /// The layout of this frontend's ABI.
    public let layout: RingLayout
    /// Number of slots, a power of two.
    public let entryCount: Int
    private let mask: UInt32
    /// Requests written, not all of them visible yet (`req_prod_pvt`).
    public private(set) var requestProducer: UInt32
    /// The next response to take (`rsp_cons`).
    public private(set) var responseConsumer: UInt32
    private var published: UInt32

    /// Makes an empty ring of the pages (`SHARED_RING_INIT` and `FRONT_RING_INIT`).
    ///
    /// `startIndex` is where the free-running indices begin; zero but in tests of their wrap-around.
    public init(initializing pages: SharedPages, abi: RingABI, startIndex: UInt32 = 0) {
        self.pages = pages
        layout = RingLayout(abi)
        entryCount = layout.entryCount(pages: pages.byteCount / 4096)
        precondition(entryCount > 0)
        mask = UInt32(truncatingIfNeeded: entryCount - 1)
        requestProducer = startIndex
        responseConsumer = startIndex
        published = startIndex
        pages.store(startIndex, at: RingLayout.requestProducer)
        pages.store(startIndex &+ 1, at: RingLayout.requestEvent)
        pages.store(startIndex, at: RingLayout.responseProducer)
        pages.store(startIndex &+ 1, at: RingLayout.responseEvent)
        for offset in stride(from: 16, to: RingLayout.ringHeaderSize, by: 4) { pages.store(0, at: offset) }
        SharedPages.fullFence()
    }

    /// Requests that can be written now (`RING_FREE_REQUESTS`).
    public var free: Int { entryCount - Int(requestProducer &- responseConsumer) }

    /// Writes a request of the ABI's slot size; the backend sees it after ``publish()``. There must be room.
    @inline(__always)
    public mutating func put(_ slot: SlotBytes) {
        let offset = RingLayout.ringHeaderSize + Int(requestProducer & mask) * layout.slotSize
        pages.storeSlot(slot, at: offset, byteCount: layout.slotSize)
        requestProducer &+= 1
    }

    /// Shows all written requests; true if the backend wants an event (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    @inline(__always)
    public mutating func publish() -> Bool {
        let old = published
        published = requestProducer
        if old == published { return false }
        pages.storeRelease(published, at: RingLayout.requestProducer)
        SharedPages.fullFence()
        let threshold = pages.load(at: RingLayout.requestEvent)
        return published &- threshold < published &- old
    }

    /// Responses that can be taken; throws if the backend moved `rsp_prod` too far (`RING_RESPONSE_PROD_OVERFLOW`).
    @inline(__always)
    public func available() throws(RingOverflow) -> Int {
        let producer = pages.loadAcquire(at: RingLayout.responseProducer)
        let waiting = producer &- responseConsumer
        if waiting > requestProducer &- responseConsumer {
            throw RingOverflow(requestProducer: producer, entryCount: entryCount)
        }
        return Int(waiting)
    }

    /// Copies the next response out of the ring, once. Call at most as often as ``available()`` said.
    @inline(__always)
    public mutating func take() -> BlockResponse {
        let offset = RingLayout.ringHeaderSize + Int(responseConsumer & mask) * layout.slotSize
        var copy = SlotBytes()
        pages.copySlot(at: offset, byteCount: layout.responseSize, into: &copy)
        responseConsumer &+= 1
        return BlockResponse(
            id: copy.load(UInt64.self, at: 0), wireOperation: copy.load(UInt8.self, at: 8),
            status: copy.load(Int16.self, at: 10))
    }

    /// Asks for an event at the next response, and looks a last time (`RING_FINAL_CHECK_FOR_RESPONSES`).
    @inline(__always)
    public mutating func finalCheck() -> Bool {
        if pages.loadAcquire(at: RingLayout.responseProducer) != responseConsumer { return true }
        pages.store(responseConsumer &+ 1, at: RingLayout.responseEvent)
        SharedPages.fullFence()
        return pages.loadAcquire(at: RingLayout.responseProducer) != responseConsumer
    }

    /// Writes the shared `req_prod` to any value; a hostile frontend's tool, for tests.
    public func forgeRequestProducer(_ value: UInt32) {
        pages.storeRelease(value, at: RingLayout.requestProducer)
    }
}

/// Builds the slot of a request; the inverse of ``BlockRequest/parse(_:layout:disk:segments:)``.
public struct RequestEncoder: Sendable {
    /// The layout of the ABI.
    public let layout: RingLayout

    /// An encoder for a layout.
    public init(layout: RingLayout) {
        self.layout = layout
    }

    /// A read, write, barrier or flush. `segmentCount` is the byte on the wire, which a hostile frontend may choose.
    public func slot(
        operation: UInt8, id: UInt64, firstSector: UInt64, segments: [BlockSegment], segmentCount: UInt8? = nil,
        handle: UInt16 = 0
    ) -> SlotBytes {
        var slot = SlotBytes()
        begin(&slot, operation, segmentCount ?? UInt8(truncatingIfNeeded: segments.count), handle, id, firstSector)
        for (index, segment) in segments.prefix(BlkifLimits.segmentsPerRequest).enumerated() {
            setSegment(&slot, index, segment)
        }
        return slot
    }

    /// A discard.
    public func discard(id: UInt64, firstSector: UInt64, sectorCount: UInt64, secure: Bool = false) -> SlotBytes {
        var slot = SlotBytes()
        begin(&slot, BlockOperation.discard.rawValue, secure ? 1 : 0, 0, id, firstSector)
        slot.store(sectorCount, at: layout.segmentsOffset)
        return slot
    }

    /// A read or write whose `segmentCount` segments stand in the pages behind `references`, at most eight.
    public func indirect(
        operation: UInt8, id: UInt64, firstSector: UInt64, segmentCount: UInt16, references: [UInt32]
    ) -> SlotBytes {
        var slot = SlotBytes()
        beginIndirect(&slot, operation, segmentCount, id, firstSector)
        for (index, reference) in references.prefix(BlkifLimits.indirectPagesPerRequest).enumerated() {
            setListPage(&slot, index, reference)
        }
        return slot
    }

    /// Writes all of an indirect request but the references of its pages; for callers that must not allocate.
    public func beginIndirect(
        _ slot: inout SlotBytes, _ operation: UInt8, _ segmentCount: UInt16, _ id: UInt64, _ firstSector: UInt64
    ) {
        begin(&slot, BlkifLimits.indirectOperation, operation, segmentCount, id, firstSector)
    }

    /// Writes the reference of a page of segments, 0 to 7.
    public func setListPage(_ slot: inout SlotBytes, _ index: Int, _ reference: UInt32) {
        slot.store(reference, at: layout.sectorOffset + 12 + index * 4)
    }

    /// Writes what all requests have; for callers that must not allocate.
    public func begin(
        _ slot: inout SlotBytes, _ operation: UInt8, _ second: UInt8, _ handle: UInt16, _ id: UInt64,
        _ firstSector: UInt64
    ) {
        slot.store(operation, at: 0)
        slot.store(second, at: 1)
        slot.store(handle, at: 2)
        slot.store(id, at: layout.idOffset)
        slot.store(firstSector, at: layout.sectorOffset)
    }

    /// Writes one segment.
    public func setSegment(_ slot: inout SlotBytes, _ index: Int, _ segment: BlockSegment) {
        let offset = layout.segmentsOffset + index * 8
        slot.store(segment.reference, at: offset)
        slot.store(segment.firstSector, at: offset + 4)
        slot.store(segment.lastSector, at: offset + 5)
    }
}
