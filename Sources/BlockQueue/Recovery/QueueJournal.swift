// SPDX-License-Identifier: BSD-2-Clause
// What a queue writes down of each request while it is on its way.
//
// All stores are the queue's thread's, in the order in which they stand here. A process that is killed has done all
// stores up to some point and none behind it, so that every state between two of them is one that can be left behind.
import Memory

/// The journal of one queue: a view, without a system call, a lock or an allocation.
///
/// Requests have the index that they have in the engine's pool. Whoever made the view keeps the memory.
struct QueueJournal: Sendable {
    let pages: SharedPages
    /// Requests taken since the connection began; the low 32 bits are the ring's `req_cons`.
    private(set) var consumed: UInt64

    /// A view of a queue's part that goes on at `consumed`.
    init(_ pages: SharedPages, consumed: UInt64) {
        self.pages = pages
        self.consumed = consumed
    }

    /// A request was copied out of the ring. The last store makes it taken: until then it is still the ring's.
    @inline(__always)
    mutating func take(_ index: Int32, _ bytes: borrowing SlotBytes) {
        let offset = JournalLayout.slot(index)
        pages.storeSlot(copy bytes, at: offset &+ JournalLayout.bytesOffset, byteCount: SlotBytes.byteCount)
        pages.store64(0, at: offset &+ JournalLayout.answerOffset)
        consumed &+= 1
        pages.storeRelease64(consumed, at: offset &+ JournalLayout.takenOffset)
        KillPoint.reach(.taking)
        pages.storeRelease64(consumed, at: JournalLayout.consumedOffset)
    }

    /// The response of a request is being written to the ring at an index; the frontend cannot see it yet.
    @inline(__always)
    func answer(_ index: Int32, at position: UInt32) {
        pages.storeRelease64(
            JournalLayout.answeredBit | UInt64(position), at: JournalLayout.slot(index) &+ JournalLayout.answerOffset)
    }

    /// The frontend can see the response of a request.
    @inline(__always)
    func release(_ index: Int32) {
        pages.storeRelease64(0, at: JournalLayout.slot(index) &+ JournalLayout.takenOffset)
    }

    /// A private copy of a request.
    func copy(_ index: Int32, into bytes: inout SlotBytes) {
        pages.copySlot(
            at: JournalLayout.slot(index) + JournalLayout.bytesOffset, byteCount: SlotBytes.byteCount, into: &bytes)
    }

    /// The request that is replayed alone, or none.
    func setAlone(_ index: Int32?) {
        pages.storeRelease(index.map { UInt32($0) + 1 } ?? 0, at: JournalLayout.aloneOffset)
    }
}
