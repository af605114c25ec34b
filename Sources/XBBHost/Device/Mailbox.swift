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
    /// The queue that was to start has done so, or failed.
    case queueStarted
    /// A call of ``PluginCalls`` has ended.
    case callEnded
    /// A queue that was to pause has nothing in flight.
    case queuePaused
    /// A queue logged an error of the storage.
    case storageFailed
    /// A queue has more or fewer requests that wait for space.
    case holdChanged
    /// A queue that had nothing to do has something.
    case queueAwoke
    /// The plugin has said what it counted, or failed to.
    case pluginCounted
    /// A queue's thread has ended.
    case queueEnded
    /// Storage that a guest waits for cannot be opened yet; the text says why.
    case storageAwaited(String)
    /// A plugin has logged this in its start(), for which a guest waits.
    case startTroubled(String)
    /// The plugin called notify() with an `XBB_NOTIFY_` number.
    case notified(UInt32)

    /// A plugin can make up any number of messages; the others are few, and the control thread waits for them.
    fileprivate var mayBeDropped: Bool {
        switch self {
        case .notified: true
        case .queueFailed, .replayed, .queueStarted, .callEnded, .queuePaused, .storageFailed, .holdChanged,
            .queueAwoke, .pluginCounted, .queueEnded, .storageAwaited, .startTroubled:
            false
        }
    }
}

/// A bounded list of messages with a descriptor that is readable while it is not empty.
final class Mailbox: Sendable {
    private let bell: Descriptor
    private let messages = Mutex<[DeviceMessage]>([])
    private static let mostNotifications = 64

    /// Readable while there are messages.
    var descriptor: Int32 { bell.raw }

    /// Empty.
    init() throws(OperationError) {
        bell = try Descriptor.event()
    }

    /// Adds a message unless the same waits already; any thread.
    func post(_ message: DeviceMessage) {
        messages.withLock { list in
            if list.contains(message) { return }
            if message.mayBeDropped && list.count >= Self.mostNotifications { return }
            list.append(message)
        }
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
