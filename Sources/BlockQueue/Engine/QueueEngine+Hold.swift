// SPDX-License-Identifier: BSD-2-Clause
// Lists that failed for want of space wait, and are tried again: `on-enospc=stop`.
//
// A list that waits stays in its phase with its data, unanswered: what must be alone waits behind it, and a successor finds
// its requests in the journal. Only writes and discards wait. A flush that failed is told to the guest: the kernel reports an
// error of writing back once, so that a second flush which succeeds says nothing of the data. So is a write that is a flush
// of its own data (FUA), which takes that one report away from the flush behind it.
import Blkif
import Glibc

/// The lists of a queue that wait for space.
struct SpaceHold: ~Copyable {
    /// Those that are to be tried again.
    fileprivate var waiting: IndexQueue
    /// These, and those that are being tried again.
    fileprivate var lists: IndexQueue
    /// When they are tried again, in ns of the monotonic clock.
    fileprivate(set) var retryAt: UInt64 = 0
    /// What becomes of them at the end of the connection; nil before.
    fileprivate(set) var end: HoldEnd?

    /// They are tried again after 5 s, in ns, until there is room.
    static var pause: UInt64 { 5_000_000_000 }

    /// Room for all lists of a queue.
    init(listCount: Int) {
        waiting = IndexQueue(capacity: listCount)
        lists = IndexQueue(capacity: listCount)
    }

    /// There are such lists.
    @inline(__always)
    var isActive: Bool { !lists.isEmpty }
}

/// What becomes of requests that wait for space when a connection ends.
package enum HoldEnd: Sendable, Equatable {
    /// They fail at once.
    case fail
    /// They are tried a last time.
    case tryOnce
    /// They are left to a successor, which finds them in the journal.
    case leave
}

extension QueueEngine {
    /// Requests that wait for space, or are being tried again.
    var heldRequests: Int {
        var count = 0
        for position in 0..<hold.lists.count where isStillHeld(hold.lists[position]) {
            count += Int(lists[Int(hold.lists[position])].state.requestCount)
        }
        return count
    }

    /// Nothing is on its way but what waits for space and is left to a successor.
    var leavesOnlyHeld: Bool { hold.end == .leave && hasOnlyHeld }

    /// What waits for space is tried again when its time comes.
    var retriesHeld: Bool { hold.isActive && hold.end != .leave && !isHeld }

    /// Nothing is on its way but what waits for space, here or in another queue of the disk.
    var hasOnlyHeld: Bool {
        (hold.isActive || peers.isStuck) && plugin.inFlight == 0 && plugin.ready.isEmpty
            && plugin.port.localCount == 0
            && unpublished == 0 && !fetch.isPending
    }

    /// True if a list that failed with `status` in its phase may be tried again.
    func canWaitForSpace(_ list: Int32, _ status: Int32) -> Bool {
        guard tuning.holdsWithoutSpace, hold.end == nil || hold.end == .leave, status == -ENOSPC || status == -EDQUOT,
            lists[Int(list)].state.phase == .transfer
        else { return false }
        switch lists[Int(list)].state.operation {
        case .write, .flush, .discard: return true
        case .writeBarrier: return !traits.hasFUA
        case .read: return false
        }
    }

    /// Lets a list wait that failed for want of space.
    mutating func hold(_ list: Int32) {
        if !hold.isActive { hold.retryAt = now &+ SpaceHold.pause }
        if !lists[Int(list)].wasHeld {
            lists[Int(list)].wasHeld = true
            hold.lists.append(list)
            stats.add(.held_requests, UInt64(lists[Int(list)].state.requestCount))
        }
        hold.waiting.append(list)
    }

    /// Tries again what waits, when it is time; forgets what is answered.
    @inline(never)
    mutating func careForHeld() {
        for _ in 0..<hold.lists.count {
            guard let list = hold.lists.popFirst() else { break }
            if isStillHeld(list) { hold.lists.append(list) }
        }
        if retriesHeld, now >= hold.retryAt { tryHeldAgain() }
    }

    /// An index is used again for a new list, which has not waited.
    private func isStillHeld(_ list: Int32) -> Bool {
        lists[Int(list)].wasHeld && lists[Int(list)].state.phase != .free
    }

    /// Tries again what waits.
    mutating func tryHeldAgain() {
        hold.retryAt = now &+ SpaceHold.pause
        for _ in 0..<hold.waiting.count {
            guard let list = hold.waiting.popFirst() else { break }
            startTransfer(list)
        }
    }

    /// The connection ends: nothing new waits any more, but for a successor.
    mutating func endHolding(_ end: HoldEnd) {
        hold.end = end
        switch end {
        case .leave: break
        case .tryOnce: tryHeldAgain()
        case .fail:
            for _ in 0..<hold.waiting.count {
                guard let list = hold.waiting.popFirst() else { break }
                lists[Int(list)].state.waitsForSpace = false
                go(list, after: .completed)
            }
            startWaitingLists()
        }
    }
}
