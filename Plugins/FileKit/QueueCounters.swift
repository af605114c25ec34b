// SPDX-License-Identifier: BSD-2-Clause
// What a queue has done, written by its own thread and read by stats() from another.
import Synchronization

/// Counters of one queue.
package struct QueueCounters: ~Copyable {
    /// Calls of io_submit(2).
    package let submitCalls = Atomic<UInt64>(0)
    /// iocbs that the kernel took.
    package let submitted = Atomic<UInt64>(0)
    /// iocbs that the kernel finished.
    package let completions = Atomic<UInt64>(0)
    /// Requests that went to helper threads.
    package let pooled = Atomic<UInt64>(0)
    /// Transfers that the kernel did only in part.
    package let partial = Atomic<UInt64>(0)

    /// All zero.
    package init() {}

    /// Adds to a counter that has one writer: no locked instruction is needed.
    static func add(_ counter: borrowing Atomic<UInt64>, _ amount: UInt64) {
        counter.store(counter.load(ordering: .relaxed) &+ amount, ordering: .relaxed)
    }
}
