// SPDX-License-Identifier: BSD-2-Clause
// The memory of a queue at places of its own: completions come from the kernel's ring and from helper threads.
import FileKit
import Synchronization

/// What a queue's kernel side reaches by pointers, which outlives it.
@safe
package final class QueueCells<State> {
    /// What a completion needs.
    package let state: UnsafeMutablePointer<State>
    /// What the kernel side counts.
    package let counters: UnsafeMutablePointer<QueueCounters>
    /// The engine has looked at the places; the file may have any size.
    package let limit: UnsafeMutablePointer<Atomic<UInt64>>

    /// Of a queue whose completions need `content`.
    package init(_ content: State) {
        unsafe state = .allocate(capacity: 1)
        unsafe state.initialize(to: content)
        unsafe counters = .allocate(capacity: 1)
        unsafe counters.initialize(to: QueueCounters())
        unsafe limit = .allocate(capacity: 1)
        unsafe limit.initialize(to: Atomic(.max))
    }

    deinit {
        unsafe state.deinitialize(count: 1)
        unsafe state.deallocate()
        unsafe counters.deallocate()
        unsafe limit.deallocate()
    }
}
