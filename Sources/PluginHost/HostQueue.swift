// SPDX-License-Identifier: BSD-2-Clause
// The host's side of `struct xbb_hqueue`: one queue of a plugin.
import PluginAPI
import PluginPort
import Synchronization

/// What `struct xbb_hqueue` points to: one queue of a plugin.
///
/// A blocking plugin has several queues for one queue of the host; their completions arrive at the same port.
///
/// `@unchecked Sendable`: `childQueues` belongs to the queue's thread; everything else is constant or under a lock.
@safe
package final class HostQueue: @unchecked Sendable {
    let port: CompletionPort
    private let current: Mutex<PluginEvents?>
    /// Queues of the disk's children. Only the queue's thread may use them.
    var childQueues: [ChildQueue] = []

    init(port: CompletionPort, events: PluginEvents?) {
        self.port = port
        current = Mutex(events)
    }

    /// nil while the queue is not open, and always for a blocking plugin: its threads sleep in submit() and cannot
    /// serve events.
    package var events: PluginEvents? {
        get { current.withLock { $0 } }
        set { current.withLock { $0 = newValue } }
    }

    /// Closes the children's queues, after the queue itself or when it could not be opened.
    func closeChildQueues() {
        for queue in childQueues { queue.close() }
        childQueues = []
    }

    /// The pointer that the plugin gets. It is valid for ever: a misbehaving plugin may use it at any time.
    func immortalPointer() -> OpaquePointer {
        unsafe OpaquePointer(Unmanaged.passRetained(self).toOpaque())
    }

    static func from(_ pointer: OpaquePointer?) -> HostQueue? {
        guard let pointer = unsafe pointer else { return nil }
        return unsafe Unmanaged<HostQueue>.fromOpaque(UnsafeRawPointer(pointer)).takeUnretainedValue()
    }
}

extension CompletionPort {
    /// The queue that a non-blocking plugin gets for this port. Made once, since a plugin may keep its address.
    package var hostQueue: HostQueue {
        if let queue = attachment as? HostQueue { return queue }
        let queue = HostQueue(port: self, events: nil)
        attachment = queue
        return queue
    }
}
