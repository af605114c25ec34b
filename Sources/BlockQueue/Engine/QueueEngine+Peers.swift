// SPDX-License-Identifier: BSD-2-Clause
// A queue beside others of the same disk: it comes to rest for their barriers, and they for its own; blocks of which a part
// is written are one list's.
import Blkif

/// A queue's place among the queues of its disk.
struct QueuePeers {
    /// nil: it is the only one.
    let order: DiskOrder?
    /// The number of the queue.
    let queue: Int
    /// The barrier that was noticed last; 0 for none.
    fileprivate var barrier: UInt64 = 0
    /// Requests that the ring held when that barrier was noticed and that are still to be taken.
    fileprivate var quota = 0
    fileprivate var hasArrived = true
    /// A list waits for another queue.
    fileprivate(set) var isWaiting = false
    /// It waits for what does not go on by itself: ``PeerAnswer/stuck``.
    fileprivate(set) var isStuck = false

    init(order: DiskOrder?, queue: Int) {
        self.order = order
        self.queue = queue
    }

    /// So many requests were taken from the ring.
    @inline(__always)
    mutating func took(_ count: Int) { quota &-= count }
}

extension QueueEngine {
    /// Looks at what the other queues want, and goes on with lists that wait for them; true if they need not wait any more.
    @inline(never)
    mutating func meetPeers() -> Bool {
        guard let order = peers.order else { return false }
        let barrier = order.barrier
        if barrier != peers.barrier { notice(barrier) }
        if !peers.hasArrived { comeToRest(order) }
        if !peers.isWaiting { return false }
        peers.isWaiting = false
        peers.isStuck = false
        startWaitingLists()
        return !peers.isWaiting
    }

    private mutating func notice(_ barrier: UInt64) {
        peers.barrier = barrier
        peers.hasArrived = barrier == 0 || DiskOrder.owner(of: barrier) == peers.queue
        isShut = false
        if !peers.hasArrived { peers.quota = requestsOnRing() }
    }

    /// What the frontend has put on this ring may be meant to come before the barrier on the other.
    private mutating func requestsOnRing() -> Int {
        guard overflow == nil else { return 0 }
        do throws(RingOverflow) {
            return try ring.available()
        } catch {
            return 0
        }
    }

    /// Takes no more once the ring's requests are taken, and says so when nothing is on its way.
    private mutating func comeToRest(_ order: DiskOrder) {
        let waitsItself = exclusive >= 0 && lists[Int(exclusive)].state.operation == .writeBarrier
        if !isShut {
            let isOwed = peers.quota > 0 || !replays.isEmpty
            if isOwed && takesMore && !waitsItself { return }
            isShut = true
        }
        // A successor does again what the frontend was not shown as answered: after the barrier, that would be too late.
        if unpublished > 0 { return }
        // A barrier of its own, and what waits behind it, come later.
        let ownLists = waitsItself ? 1 + memoryWaiters.count : 0
        if listsInFlight == ownLists && plugin.inFlight == 0 && !fetch.isPending {
            peers.hasArrived = true
            order.arrive(peers.queue, for: peers.barrier)
        }
    }

    /// The queue takes what its ring holds, now or after a pause; or it ends and leaves it to a successor.
    private var takesMore: Bool {
        if overflow != nil || replaying.isCareful || (isDraining && hold.end != .leave) { return false }
        // The next queue begins when the request that is done again alone is done.
        return !(isHeld && peers.order?.isCareful == true)
    }

    /// True if nothing that other queues have on their way keeps a list from beginning that is alone in this one.
    mutating func mayBegin(exclusive list: Int32) -> Bool {
        guard let order = peers.order else { return true }
        if lists[Int(list)].state.operation == .writeBarrier && !isGranted(order.enter(peers.queue)) { return false }
        return !locksBlocks || lockBlocks(of: list)
    }

    private mutating func isGranted(_ answer: PeerAnswer) -> Bool {
        if answer == .granted { return true }
        peers.isWaiting = true
        peers.isStuck = answer == .stuck
        return false
    }

    /// Lets the other queues go on after a barrier.
    @inline(never)
    mutating func endExclusive() {
        exclusive = -1
        peers.order?.exit(peers.queue)
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
        return isGranted(
            order.lock(
                peers.queue, list: list, first: first & ~mask, end: (end &+ mask) & ~mask, isPartial: isPartial))
    }

    /// Lets the blocks of a list go.
    @inline(never)
    func unlockBlocks(of list: Int32) { peers.order?.unlock(peers.queue, list: list) }
}
