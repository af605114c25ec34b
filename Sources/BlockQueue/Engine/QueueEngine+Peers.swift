// SPDX-License-Identifier: BSD-2-Clause
// A queue beside others of the same disk: blocks of which a part is written are one list's.
import Blkif

/// A queue's place among the queues of its disk.
struct QueuePeers {
    /// nil: it is the only one.
    let order: DiskOrder?
    /// The number of the queue.
    let queue: Int
    /// A list waits for another queue.
    fileprivate(set) var isWaiting = false
    /// It waits for what does not go on by itself: ``PeerAnswer/stuck``.
    fileprivate(set) var isStuck = false

    init(order: DiskOrder?, queue: Int) {
        self.order = order
        self.queue = queue
    }
}

extension QueueEngine {
    /// Goes on with lists that wait for other queues; true if they need not wait any more.
    @inline(never)
    mutating func meetPeers() -> Bool {
        if !peers.isWaiting { return false }
        peers.isWaiting = false
        peers.isStuck = false
        startWaitingLists()
        return !peers.isWaiting
    }

    /// Takes the blocks that a list writes; false if a list of another queue has them.
    @inline(never)
    mutating func lockBlocks(of list: Int32) -> Bool {
        guard let order = peers.order else { return true }
        let operation = lists[Int(list)].state.operation
        if operation == .read || lists[Int(list)].sectorCount == 0 { return true }
        let mask = traits.blockMask >> 9
        let first = lists[Int(list)].firstSector
        let end = first &+ lists[Int(list)].sectorCount
        let isPartial =
            operation != .discard
            && (lists[Int(list)].state.data == .partialBlocks || hasRequestOfPartialBlocks(list))
        let answer = order.lock(
            peers.queue, list: list, first: first & ~mask, end: (end &+ mask) & ~mask, isPartial: isPartial)
        if answer == .granted { return true }
        peers.isWaiting = true
        peers.isStuck = answer == .stuck
        return false
    }

    /// Lets the blocks of a list go.
    @inline(never)
    func unlockBlocks(of list: Int32) { peers.order?.unlock(peers.queue, list: list) }
}
