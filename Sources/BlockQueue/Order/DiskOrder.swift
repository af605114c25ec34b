// SPDX-License-Identifier: BSD-2-Clause
// What the queues of one disk agree on: when a barrier is alone, and who writes which blocks.
//
// Off the way of most requests: a queue reads one number in each turn, and takes the lock only for a barrier, and for writes
// on a disk whose blocks are larger than a sector.
//
//   the queue with a barrier                 every other queue
//   enter(): false, the others are woken ►   takes what its ring holds, then no more; ends what is in flight
//   enter(): true                        ◄   arrive()
//   does the barrier; exit()             ►   goes on
import PluginPort
import Synchronization

/// What a queue is told that asks the others.
enum PeerAnswer {
    /// It may begin.
    case granted
    /// It is woken when it may ask again.
    case later
    /// The same, but not before a pause ends, or never: what it waits for waits for space itself, and is not tried again or was
    /// left to a successor.
    case stuck
}

/// The order among the queues of a frontend's connection. Any thread; whoever waits is woken at its port.
package final class DiskOrder: Sendable {
    private struct State {
        /// The port of each queue that runs.
        var ports: [CompletionPort?]
        /// The queue whose barrier is or will be alone.
        var owner: Int?
        /// Queues whose barriers come next, in their order.
        var candidates: [Int] = []
        /// Queues that are at rest for the barrier of ``owner``.
        var arrived: Set<Int> = []
        /// Barriers until now.
        var count: UInt64 = 0
        var locks: BlockLocks
        /// Queues of which a list waits for blocks.
        var waitsForBlocks: Set<Int> = []
        /// Queues that are paused and have nothing in flight. They begin nothing before they go on.
        var resting: Set<Int> = []
        /// A queue has ended and left requests to a successor: no barrier may pass them.
        var hasLeftRequests = false

        func wake(_ queue: Int) { ports[queue]?.wake() }

        func wakeAll(except queue: Int? = nil) {
            for index in ports.indices where index != queue { wake(index) }
        }

        /// True if no queue is on its way but `queue`.
        func isAlone(_ queue: Int) -> Bool {
            ports.indices.allSatisfy { $0 == queue || ports[$0] == nil || arrived.contains($0) }
        }

        /// What a queue is told whose barrier has to wait.
        var wait: PeerAnswer { hasLeftRequests || !resting.isSubset(of: arrived) ? .stuck : .later }
    }
    private let state: Mutex<State>
    private let listsPerQueue: Int
    private let current = Atomic<UInt64>(0)
    private let careful = Atomic<Bool>(false)

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
    func leave(_ queue: Int, leavesRequests: Bool = false) {
        state.withLock { state in
            if leavesRequests { state.hasLeftRequests = true }
            state.resting.remove(queue)
            state.ports[queue] = nil
            state.candidates.removeAll { $0 == queue }
            state.waitsForBlocks.remove(queue)
            for list in 0..<listsPerQueue { state.locks.unlock(queue * listsPerQueue + list) }
            if state.owner == queue { open(&state) }
            state.wakeAll()
        }
    }

    /// Queues begin one after the other: none waits for one that has not begun.
    var isCareful: Bool { careful.load(ordering: .relaxed) }

    /// See ``isCareful``.
    func beginCarefully() { careful.store(true, ordering: .relaxed) }

    /// The queue is paused and has nothing in flight, or goes on.
    func setResting(_ queue: Int, _ rests: Bool) {
        state.withLock { state in
            if state.resting.contains(queue) == rests { return }
            if rests { state.resting.insert(queue) } else { state.resting.remove(queue) }
            state.wakeAll(except: queue)
        }
    }

    // MARK: Barriers

    /// The barrier that is or will be alone, by a number that no other has; 0: there is none.
    var barrier: UInt64 { current.load(ordering: .acquiring) }

    /// The queue whose barrier it is.
    static func owner(of barrier: UInt64) -> Int { Int(barrier & 0xff) - 1 }

    /// Asks for all other queues to come to rest; granted when they have.
    func enter(_ queue: Int) -> PeerAnswer {
        state.withLock { state in
            if state.hasLeftRequests || state.resting.contains(queue) { return .stuck }
            if state.owner == queue { return state.isAlone(queue) ? .granted : state.wait }
            guard state.owner == nil, state.candidates.first ?? queue == queue else {
                if !state.candidates.contains(queue) { state.candidates.append(queue) }
                return state.wait
            }
            state.candidates.removeAll { $0 == queue }
            state.owner = queue
            state.arrived = []
            state.count &+= 1
            current.store(state.count << 8 | UInt64(queue + 1), ordering: .releasing)
            state.wakeAll(except: queue)
            return state.isAlone(queue) ? .granted : state.wait
        }
    }

    /// The queue is at rest, and stays so until `barrier` is over.
    func arrive(_ queue: Int, for barrier: UInt64) {
        state.withLock { state in
            guard barrier == self.barrier, let owner = state.owner else { return }
            state.arrived.insert(queue)
            if state.isAlone(owner) { state.wake(owner) }
        }
    }

    /// The barrier of the queue is over; nothing if it has none.
    func exit(_ queue: Int) {
        state.withLock { state in
            guard state.owner == queue else { return }
            open(&state)
            state.wakeAll(except: queue)
        }
    }

    private func open(_ state: inout State) {
        state.owner = nil
        current.store(0, ordering: .releasing)
    }

    // MARK: Blocks

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
            for waiting in state.waitsForBlocks { state.wake(waiting) }
            state.waitsForBlocks = []
        }
    }

    /// Ranges that are locked.
    var lockCount: Int { state.withLock { $0.locks.count } }
}
