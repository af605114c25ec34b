// SPDX-License-Identifier: BSD-2-Clause
// What `struct xbb_hqueue` is to the host: one of the plugin's queues.
import PluginAPI
import PluginPort
import Synchronization

/// What `struct xbb_hqueue` points to: one of the plugin's queues.
///
/// A blocking plugin has several for one queue of the host; their completions arrive at one port.
@safe
package final class HostQueue: @unchecked Sendable {
    let port: CompletionPort
    private let current: Mutex<PluginEvents?>
    /// Queues of the children of the disk; for the queue's thread.
    var childQueues: [ChildQueue] = []

    init(port: CompletionPort, events: PluginEvents?) {
        self.port = port
        current = Mutex(events)
    }

    /// nil while the queue is not open, and for the queues of a blocking plugin, whose threads sleep in submit() and
    /// cannot serve events.
    package var events: PluginEvents? {
        get { current.withLock { $0 } }
        set { current.withLock { $0 = newValue } }
    }

    /// Closes them, behind the queue itself or where it cannot be opened.
    func closeChildQueues() {
        for queue in childQueues { queue.close() }
        childQueues = []
    }

    /// The pointer for the plugin. It stays valid for ever: a plugin that breaks the rules may use it at any time.
    func immortalPointer() -> OpaquePointer {
        unsafe OpaquePointer(Unmanaged.passRetained(self).toOpaque())
    }

    static func from(_ pointer: OpaquePointer?) -> HostQueue? {
        guard let pointer = unsafe pointer else { return nil }
        return unsafe Unmanaged<HostQueue>.fromOpaque(UnsafeRawPointer(pointer)).takeUnretainedValue()
    }
}

extension CompletionPort {
    /// The port's queue of a plugin that does not block; made once, since a plugin may keep its address.
    package var hostQueue: HostQueue {
        if let queue = attachment as? HostQueue { return queue }
        let queue = HostQueue(port: self, events: nil)
        attachment = queue
        return queue
    }
}
