// SPDX-License-Identifier: BSD-2-Clause
// The backend's end of a shared ring (`BACK_RING` of xen/io/ring.h).
public import Memory

/// The frontend moved `req_prod` further than the ring is long: it cannot be trusted with anything any more.
public struct RingOverflow: Error, Sendable, Equatable {
    /// `req_prod` as it was read.
    public let requestProducer: UInt32
    /// The slots that could be in use.
    public let entryCount: Int
}

/// The backend's private indices and its way to the slots.
///
/// Indices are free-running 32-bit numbers that wrap around. Only the two producer indices and the two event
/// thresholds are shared; all else is private, so the frontend cannot change it.
public struct BackRing: ~Copyable, Sendable {
    @usableFromInline let pages: SharedPages
    /// The layout of the frontend's ABI.
    public let layout: RingLayout
    /// Number of slots, a power of two.
    public let entryCount: Int
    @usableFromInline let mask: UInt32
    /// The next request to take (`req_cons`).
    @inlinable public var requestConsumer: UInt32 { consumer }
    @usableFromInline var consumer: UInt32
    /// Responses written, not all of them visible yet (`rsp_prod_pvt`).
    @inlinable public var responseProducer: UInt32 { producer }
    @usableFromInline var producer: UInt32
    /// Responses that the frontend can see: `sring.rsp_prod` as we last wrote it.
    @usableFromInline var published: UInt32
    /// The frontend was asked for an event at its next request.
    @usableFromInline var asksForEvent = true

    /// Attaches to a ring in whatever state it is, at `sring.rsp_prod` (`BACK_RING_ATTACH`).
    ///
    /// A fresh ring has all indices zero. Starting from `rsp_prod` is what lets another process take over a ring:
    /// requests between it and `req_prod` that were taken before are seen again.
    public init(attaching pages: SharedPages, abi: RingABI) {
        self.pages = pages
        layout = RingLayout(abi)
        entryCount = layout.entryCount(pages: pages.byteCount / 4096)
        precondition(entryCount > 0)
        mask = UInt32(truncatingIfNeeded: entryCount - 1)
        published = pages.loadAcquire(at: RingLayout.responseProducer)
        producer = published
        consumer = published
    }

    /// Goes on behind requests that an earlier process took and that have no response yet.
    ///
    /// At most ``entryCount`` of them, so that ``available()`` finds no overflow where there is none.
    public mutating func resume(consumer: UInt32) {
        precondition(consumer &- producer <= UInt32(truncatingIfNeeded: entryCount))
        self.consumer = consumer
    }

    /// Requests that were taken and have no response yet.
    @inlinable public var outstanding: Int { Int(requestConsumer &- responseProducer) }

    /// Reads how many requests can be taken, `RING_HAS_UNCONSUMED_REQUESTS` with both overflow tests.
    ///
    /// Throws if the frontend claims more requests than slots are free (`RING_REQUEST_PROD_OVERFLOW`).
    public mutating func available() throws(RingOverflow) -> Int {
        let shown = pages.loadAcquire(at: RingLayout.requestProducer)
        if shown &- producer > UInt32(truncatingIfNeeded: entryCount) {
            throw RingOverflow(requestProducer: shown, entryCount: entryCount)
        }
        let waiting = Int32(bitPattern: shown &- consumer)
        if waiting < 0 {
            // The producer index went backwards, behind what was already taken.
            throw RingOverflow(requestProducer: shown, entryCount: entryCount)
        }
        // RING_REQUEST_CONS_OVERFLOW: never hold more requests than there are slots for their responses.
        let room = Int32(truncatingIfNeeded: entryCount) &- Int32(bitPattern: consumer &- producer)
        return Int(min(waiting, room))
    }

    /// Copies the next request out of the ring, once, and counts it as taken.
    ///
    /// Call at most as often as ``available()`` said.
    @inlinable @inline(__always)
    public mutating func take(into copy: inout SlotBytes) {
        // Once for each layout, with sizes that the compiler knows: it spares most of the checks.
        if layout.slotSize == RingLayout.wide.slotSize {
            pages.copySlot(at: offset(of: consumer, in: .wide), byteCount: RingLayout.wide.slotSize, into: &copy)
        } else {
            pages.copySlot(at: offset(of: consumer, in: .narrow), byteCount: RingLayout.narrow.slotSize, into: &copy)
        }
        consumer &+= 1
    }

    /// Leaves the request that was taken last on the ring: it is the next one again, and is copied anew then.
    public mutating func putBack() {
        precondition(consumer != producer)
        consumer &-= 1
    }

    /// Where the slot of an index begins.
    @inlinable @inline(__always)
    func offset(of index: UInt32, in layout: RingLayout) -> Int {
        RingLayout.ringHeaderSize &+ Int(index & mask) &* layout.slotSize
    }

    /// Writes a response; the frontend sees it after ``publish()``.
    ///
    /// The padding is zeroed, so that nothing of ours shows through it (XSA-216).
    @inlinable @inline(__always)
    public mutating func respond(id: UInt64, wireOperation: UInt8, status: BlockStatus) {
        let rest = UInt32(wireOperation) | UInt32(UInt16(bitPattern: status.rawValue)) << 16
        if layout.slotSize == RingLayout.wide.slotSize {
            pages.storeResponse(id, rest, hasTail: true, at: offset(of: producer, in: .wide))
        } else {
            pages.storeResponse(id, rest, hasTail: false, at: offset(of: producer, in: .narrow))
        }
        producer &+= 1
    }

    /// Shows all written responses to the frontend; true if it wants an event
    /// (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    @inlinable @inline(__always)
    public mutating func publish() -> Bool {
        let old = published
        published = producer
        if old == published { return false }
        pages.storeRelease(published, at: RingLayout.responseProducer)
        SharedPages.fullFence()
        let threshold = pages.load(at: RingLayout.responseEvent)
        return published &- threshold < published &- old
    }

    /// Asks for an event at the next request, and looks a last time: true if there is work after all
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`).
    ///
    /// A producer index that makes no sense counts as work; ``available()`` then says what is wrong.
    @inlinable @inline(__always)
    public mutating func finalCheck() -> Bool {
        if hasNewRequests { return true }
        pages.store(requestConsumer &+ 1, at: RingLayout.requestEvent)
        asksForEvent = true
        SharedPages.fullFence()
        return hasNewRequests
    }

    /// Takes back what ``finalCheck()`` asked for: no events while the backend looks at the ring of its own accord.
    ///
    /// The threshold becomes an index that the frontend has passed. An event that is on its way comes nevertheless.
    @inlinable @inline(__always)
    public mutating func holdOffEvents() {
        if !asksForEvent { return }
        asksForEvent = false
        pages.store(requestConsumer, at: RingLayout.requestEvent)
    }

    /// True if the frontend's index says that there is something to take and there is room for it.
    @inlinable @inline(__always)
    public var hasNewRequests: Bool {
        let shown = pages.loadAcquire(at: RingLayout.requestProducer)
        return shown != consumer && outstanding < entryCount
    }
}
