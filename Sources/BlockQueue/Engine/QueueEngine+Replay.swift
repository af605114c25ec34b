// SPDX-License-Identifier: BSD-2-Clause
// Requests of an earlier process are done again: all before the first new one, in the order in which they were taken.
//
// They go the same way as requests from the ring, from parsing on, so that nothing depends on how far they had come.
import Blkif
import Memory

/// What is particular to the replay of a queue.
struct Replaying {
    /// One request at a time, and nothing beside it.
    fileprivate(set) var isCareful: Bool
    /// Requests that are not tried again.
    fileprivate let poisonous: Set<Int32>
    /// A request that was answered with an error instead of being tried again, for the log.
    var poison: BlockRequest?
    /// All of them were begun, and the last is answered if they were done carefully; said once.
    var isDone = false

    init(_ recovery: QueueRecovery) {
        isCareful = recovery.isCareful && !recovery.replays.isEmpty
        poisonous = recovery.poisonous
    }
}

extension QueueEngine {
    /// Begins requests of an earlier process again; true if there was one that could be.
    @inline(never)
    mutating func replay() -> Bool {
        rule.disabled = tuning.noCoalesce
        var slot = SlotBytes()
        var begun = false
        while exclusive < 0, memoryWaiters.isEmpty {
            if replaying.isCareful && !(isIdle && answered.isEmpty) { break }
            guard let index = replays.popFirst() else { break }
            begun = true
            journal.copy(index, into: &slot)
            if replaying.isCareful {
                if replaying.poisonous.contains(index) {
                    refuse(index, slot)
                    continue
                }
                journal.setAlone(index)
            }
            accept(index, slot)
            stats.add(.reqs_received)
            stats.add(.replayed_requests)
        }
        fetch.isOfReplay = fetch.isPending
        closeTail(forced: false)
        startWaitingLists()
        if replays.isEmpty && !replaying.isCareful { replaying.isDone = true }
        if begun { KillPoint.reach(.replayed) }
        return begun
    }

    /// Answers a request that is not tried again.
    private mutating func refuse(_ index: Int32, _ slot: SlotBytes) {
        requests[Int(index)].received = now
        requests[Int(index)].next = -1
        _ = requests[Int(index)].request.read(slot, layout: ring.layout, disk: disk, segments: segments[Int(index)])
        requests[Int(index)].status = .error
        replaying.poison = requests[Int(index)].request
        stats.add(.reqs_received)
        stats.add(.poisoned_requests)
        respond(index)
    }

    /// The frontend can see the response of the request that was alone.
    @inline(never)
    mutating func replayedAlone() {
        journal.setAlone(nil)
        if replays.isEmpty && isIdle {
            replaying.isCareful = false
            replaying.isDone = true
        }
    }
}
