// SPDX-License-Identifier: BSD-2-Clause
// What a plugin in Swift is made of: a disk and its queues, and what the host is told about them.
import Glibc
import PluginAPI

/// What a disk can do beside reads; `XBB_CAP_*`.
public struct Capabilities: OptionSet, Sendable {
    /// `XBB_CAP_*`
    public let rawValue: UInt64
    /// From `XBB_CAP_*`.
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Writes.
    public static let write = Capabilities(rawValue: XBB_CAP_WRITE)
    /// There is a cache that a loss of power empties; without this every completed write is durable.
    public static let flush = Capabilities(rawValue: XBB_CAP_FLUSH)
    /// Single writes that are durable at once (FUA).
    public static let force = Capabilities(rawValue: XBB_CAP_FUA)
    /// Discards.
    public static let discard = Capabilities(rawValue: XBB_CAP_DISCARD)
    /// Discards that leave nothing to find.
    public static let secureDiscard = Capabilities(rawValue: XBB_CAP_DISCARD_SECURE)
    /// What was discarded reads as zeroes.
    public static let discardZeroes = Capabilities(rawValue: XBB_CAP_DISCARD_ZEROES)
    /// Zeroes without data.
    public static let writeZeroes = Capabilities(rawValue: XBB_CAP_WRITE_ZEROES)
    /// The data of writes are looked at more than once: the host hands over copies that no guest changes.
    public static let stableBuffers = Capabilities(rawValue: XBB_CAP_STABLE_BUFFERS)
    /// A disk that turns.
    public static let rotational = Capabilities(rawValue: XBB_CAP_ROTATIONAL)
}

/// The description of a disk; `xbb_info`. 0 is "no limit" or "as the host likes".
public struct DiskInfo: Sendable {
    /// Bytes, a multiple of `logicalBlock`. The one thing that may change later.
    public var size: UInt64
    /// What it can do. Of a read-only disk the kit leaves the rest away.
    public var capabilities: Capabilities
    /// The unit of offsets and lengths: 512 to 4096, a power of two.
    public var logicalBlock: UInt32 = 512
    /// The unit in which writes are fast.
    public var physicalBlock: UInt32 = 0
    /// The best size of a request.
    public var optimalTransfer: UInt32 = 0
    /// Bytes of a read or write.
    public var maxTransfer: UInt64 = 0
    /// Bytes of a discard.
    public var maxDiscard: UInt64 = 0
    /// Bytes of a request for zeroes.
    public var maxWriteZeroes: UInt64 = 0
    /// Queues, each of which has its own thread.
    public var maxQueues: UInt32 = 1
    /// Requests in flight on a queue.
    public var queueDepth: UInt32 = 0
    /// What address and length of each buffer are multiples of: a power of two up to 4096.
    public var memoryAlignment: UInt32 = 0
    /// Buffers of a request.
    public var maxBuffers: UInt32 = 0
    /// The unit in which a discard gives something back, and the first byte that one can give back, for the guest to know.
    public var discardGranularity: UInt32 = 0
    /// See ``discardGranularity``.
    public var discardOffset: UInt32 = 0

    /// A disk of so many bytes.
    public init(size: UInt64, capabilities: Capabilities = []) {
        self.size = size
        self.capabilities = capabilities
    }

    func allowed(isReadOnly: Bool) -> Capabilities {
        isReadOnly ? capabilities.intersection([.rotational, .stableBuffers]) : capabilities
    }

    func fill(_ info: inout xbb_info, isReadOnly: Bool) {
        info.size = size
        info.caps = allowed(isReadOnly: isReadOnly).rawValue
        info.logical_block = logicalBlock
        info.physical_block = physicalBlock
        info.optimal_io = optimalTransfer
        info.max_transfer = maxTransfer
        info.max_discard = maxDiscard
        info.max_write_zeroes = maxWriteZeroes
        info.max_queues = maxQueues
        info.queue_depth = queueDepth
        info.mem_align = memoryAlignment
        info.max_iov = maxBuffers
        info.discard_granularity = discardGranularity
        info.discard_offset = discardOffset
    }
}

/// Which queue is opened.
public struct QueueParameters: Sendable {
    /// 0 and upwards.
    public let index: Int
    /// The host never has more requests in flight on it.
    public let depth: Int
    /// The host's side of it: watches, timers, calls from other threads.
    public let queue: HostQueue
}

/// Takes requests. Called on the queue's thread, and never for two batches of one queue at once.
public protocol StorageQueue: AnyObject, Sendable {
    /// Accepts requests with `batch.next()`. Those that are accepted must be on their way when this returns: completed,
    /// or handed to somebody who will. It must not wait.
    func submit(_ batch: inout RequestBatch)
    /// Its requests are polled for, and `poll()` counts. Watches are not asked then while the queue is busy.
    static var isPolled: Bool { get }
    /// Completes what is finished, without sleeping.
    ///
    /// - Returns: how many completions that were.
    func poll() -> Int
    /// The queue is closed; nothing is in flight.
    func queueClosed()
}

extension StorageQueue {
    /// It is not.
    public static var isPolled: Bool { false }
    /// Nothing.
    public func poll() -> Int { 0 }
    /// Nothing.
    public func queueClosed() {}
}

/// An open disk. What is not said to be otherwise is called on one thread at a time, and beside calls on queues.
public protocol StorageDisk: AnyObject, Sendable {
    /// What its queues are; a disk that needs no state for each queue is its own (`typealias Queue = MyDisk`).
    associatedtype Queue: StorageQueue
    /// Asked before ``start()``, and after ``HostDisk/notify(_:)`` with `info`.
    var info: DiskInfo { get }
    /// Threads may be made from here on.
    func start() throws(PluginError)
    /// On the thread of the queue that is opened.
    func openQueue(_ parameters: QueueParameters) throws(PluginError) -> Queue
    /// Ends threads. No queue is open, and nothing comes after this.
    func close()
}

extension StorageDisk {
    /// Nothing.
    public func start() throws(PluginError) {}
    /// Nothing.
    public func close() {}
}

extension StorageDisk where Queue == Self {
    /// The disk itself.
    public func openQueue(_ parameters: QueueParameters) throws(PluginError) -> Self { self }
}

// MARK: What some can do beside that

/// A queue that can finish requests early.
public protocol CancellingQueue: StorageQueue {
    /// Finish this request (nil: all of the queue) now, with ECANCELED if need be. On the queue's thread; a hint.
    func cancel(_ request: RequestID?)
}

/// A disk whose size can be set.
public protocol ResizableDisk: StorageDisk {
    /// Makes the disk `size` bytes long.
    func resize(to size: UInt64) throws(PluginError)
}

/// A disk that knows what of it is allocated.
public protocol MappedDisk: StorageDisk {
    /// Reports what a range of the disk consists of, ascending and without gaps, until `report` gives false. The first range
    /// contains `offset`.
    func map(from offset: UInt64, length: UInt64, _ report: (MappedRange) -> Bool) throws(PluginError)
}

/// A part of a disk that is all of one kind.
public struct MappedRange: Sendable, Equatable {
    /// What it is; `XBB_EXTENT_*`.
    public struct Kind: OptionSet, Sendable {
        /// `XBB_EXTENT_*`
        public let rawValue: UInt32
        /// From `XBB_EXTENT_*`.
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Not allocated in this layer.
        public static let hole = Kind(rawValue: XBB_EXTENT_HOLE)
        /// Reads as zeroes.
        public static let zeroes = Kind(rawValue: XBB_EXTENT_ZERO)
    }

    /// Bytes from the beginning of the disk.
    public let offset: UInt64
    /// Bytes.
    public let length: UInt64
    /// What it is; empty: data.
    public let kind: Kind

    /// A range.
    public init(_ offset: UInt64, _ length: UInt64, _ kind: Kind = []) {
        (self.offset, self.length, self.kind) = (offset, length, kind)
    }
}

/// A disk that does something by itself, beside requests: prefetching, cleaning.
public protocol DrainingDisk: StorageDisk {
    /// Nothing is in flight, and nothing is submitted before ``endDrain()`` or ``StorageDisk/close()``: the disk is to stop what it does
    /// by itself, so that its storage is at rest.
    func beginDrain() throws(PluginError)
    /// Requests come again.
    func endDrain()
}

/// A disk that counts what it does.
public protocol CountingDisk: StorageDisk {
    /// Names, as `small-letters`, with sums over all queues that there ever were: they do not fall. Any thread.
    var statistics: [(StaticString, UInt64)] { get }
}
