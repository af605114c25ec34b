// SPDX-License-Identifier: BSD-2-Clause
// Messages from queues and plugins to the control thread.
import Base
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
    private let bell: Descriptor
    private let messages = Mutex<[DeviceMessage]>([])

    /// Readable while there are messages.
    var descriptor: Int32 { bell.raw }

    /// Empty.
    init() throws(OperationError) {
        bell = try Descriptor.event()
    }

    /// Adds a message unless the same waits already; any thread.
    func post(_ message: DeviceMessage) {
        messages.withLock { if !$0.contains(message) && $0.count < 64 { $0.append(message) } }
        bell.signal()
    }

    /// Takes all messages.
    func take() -> [DeviceMessage] {
        bell.drain()
        return messages.withLock { list in
            let taken = list
            list = []
            return taken
        }
    }
}
