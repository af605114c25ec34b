// SPDX-License-Identifier: BSD-2-Clause
// Messages from queues and plugins to the control thread.
import CLinux
import Glibc
import Synchronization

/// What other threads tell the control thread.
enum DeviceMessage: Sendable, Equatable {
    /// A queue does not read its ring any more.
    case queueFailed(String)
    /// The queue of this number has begun the requests of an earlier process again.
    case replayed(Int)
    /// The plugin called notify() with an `XBB_NOTIFY_` number.
    case notified(UInt32)
}

/// A bounded list of messages with a descriptor that is readable while it is not empty.
final class Mailbox: Sendable {
    let descriptor: Int32
    private let messages = Mutex<[DeviceMessage]>([])

    init?() {
        descriptor = eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
        if descriptor < 0 { return nil }
    }

    deinit {
        close(descriptor)
    }

    /// Adds a message unless the same waits already; any thread.
    func post(_ message: DeviceMessage) {
        messages.withLock { if !$0.contains(message) && $0.count < 64 { $0.append(message) } }
        var one: UInt64 = 1
        _ = unsafe write(descriptor, &one, 8)
    }

    /// Takes all messages.
    func take() -> [DeviceMessage] {
        var value: UInt64 = 0
        _ = unsafe read(descriptor, &value, 8)
        return messages.withLock { list in
            let taken = list
            list = []
            return taken
        }
    }
}
