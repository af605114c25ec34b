// SPDX-License-Identifier: BSD-2-Clause
// What the queues of one disk agree on: who writes which blocks.
//
// Off the way of most requests: the lock is taken only for writes on a disk whose blocks are larger than a sector.
import PluginPort
import Synchronization

/// What a queue is told that asks for blocks.
enum PeerAnswer {
    /// It may begin.
    case granted
    /// It is woken when it may ask again.
    case later
    /// The same, but not before a pause ends: what it waits for waits for space itself, and is not tried again meanwhile.
    case stuck
}

/// The order among the queues of a frontend's connection. Any thread; whoever waits is woken at its port.
package final class DiskOrder: Sendable {
    private struct State {
        /// The port of each queue that runs.
        var ports: [CompletionPort?]
        var locks: BlockLocks
        /// Queues of which a list waits for blocks.
        var waitsForBlocks: Set<Int> = []
        /// Queues that are paused and have nothing in flight. They begin nothing before they go on.
        var resting: Set<Int> = []

        func wakeAll(except queue: Int? = nil) {
            for index in ports.indices where index != queue { ports[index]?.wake() }
        }
    }
    private let state: Mutex<State>
    private let listsPerQueue: Int

    /// For `queueCount` queues, each with at most `listsPerQueue` lists at a time.
    package init(queueCount: Int, listsPerQueue: Int) {
        self.listsPerQueue = listsPerQueue
        state = Mutex(
            State(
                ports: Array(repeating: nil, count: queueCount),
                locks: BlockLocks(listCount: queueCount * listsPerQueue)))
    }

    /// The queue runs; its thread is woken at `port`.
    func join(_ queue: Int, port: CompletionPort) {
        state.withLock { $0.ports[queue] = port }
    }

    /// The queue has ended: nobody waits for it, and it holds nothing. What it left without an answer is its successor's.
    func leave(_ queue: Int) {
        state.withLock { state in
            state.resting.remove(queue)
            state.ports[queue] = nil
            state.waitsForBlocks.remove(queue)
            for list in 0..<listsPerQueue { state.locks.unlock(queue * listsPerQueue + list) }
            state.wakeAll()
        }
    }

    /// The queue is paused and has nothing in flight, or goes on.
    func setResting(_ queue: Int, _ rests: Bool) {
        state.withLock { state in
            if state.resting.contains(queue) == rests { return }
            if rests { state.resting.insert(queue) } else { state.resting.remove(queue) }
            state.wakeAll(except: queue)
        }
    }

    /// Locks sectors of 512 bytes for a list, as ``BlockLocks/lock(_:first:end:isPartial:)``.
    func lock(_ queue: Int, list: Int32, first: UInt64, end: UInt64, isPartial: Bool) -> PeerAnswer {
        state.withLock { state in
            if state.resting.contains(queue) { return .stuck }
            let slot = queue * listsPerQueue + Int(list)
            if state.locks.lock(slot, first: first, end: end, isPartial: isPartial) { return .granted }
            state.waitsForBlocks.insert(queue)
            let isStuck = state.locks.conflicts(first: first, end: end, isPartial: isPartial).contains {
                state.resting.contains($0 / listsPerQueue)
            }
            return isStuck ? .stuck : .later
        }
    }

    /// Lets the sectors of a list go.
    func unlock(_ queue: Int, list: Int32) {
        state.withLock { state in
            guard state.locks.unlock(queue * listsPerQueue + Int(list)), !state.waitsForBlocks.isEmpty else { return }
            for waiting in state.waitsForBlocks { state.ports[waiting]?.wake() }
            state.waitsForBlocks = []
        }
    }

    /// Ranges that are locked.
    var lockCount: Int { state.withLock { $0.locks.count } }
}
