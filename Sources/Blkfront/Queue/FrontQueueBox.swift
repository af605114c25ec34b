// SPDX-License-Identifier: BSD-2-Clause
// A queue that several threads can reach, one at a time.
import Base
import Synchronization
public import XenLoopback

/// Holds a queue behind a lock. A load run keeps the lock for as long as it runs; ``FrontDisk`` takes it per request.
public final class FrontQueueBox: Sendable {
    /// The number of the queue in its device.
    public let index: Int
    /// The grants of the ring's pages.
    public let ringReferences: [UInt32]
    /// The event channel.
    public let port: LoopbackPort
    /// The most requests that can be in flight.
    public let slotCount: Int
    private let queue: Mutex<FrontQueue>

    init(_ queue: consuming sending FrontQueue) {
        index = queue.index
        ringReferences = queue.ringReferences
        port = queue.port
        slotCount = queue.slotCount
        self.queue = Mutex(queue)
    }

    /// Runs `body` with the queue; other threads wait.
    @inline(__always)
    public func withQueue<Result: ~Copyable, Failure: Error>(
        _ body: (inout sending FrontQueue) throws(Failure) -> sending Result
    ) throws(Failure) -> sending Result {
        try queue.withLock(body)
    }

    /// The most bytes of a read or a write.
    public var bufferSize: Int { queue.withLock { $0.bufferSize } }

    func useIndirect(_ segments: Int) throws(OperationError) {
        try queue.withLock { (queue) throws(OperationError) in try queue.useIndirect(segments) }
    }

    func dismantle() -> [UInt32] { queue.withLock { $0.dismantle() } }
}
