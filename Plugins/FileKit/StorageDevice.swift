// SPDX-License-Identifier: BSD-2-Clause
// One open disk of a plugin that serves a file descriptor: its size, its helper threads and its queues.
import CLinux
import Glibc
import PluginAPI
import PluginKit
import Synchronization

/// The base of the devices of RawDisk and File.
///
/// The I/O of reads, writes and flushes is here; a plugin adds what differs: how the size is measured, what
/// `get_info()` says, and how blocks are discarded or zeroed.
@safe
open class StorageDevice {
    /// The host that loaded the plugin.
    public let host: PluginHost
    /// `xbb_hdev`.
    public let disk: OpaquePointer?
    /// The image or device; the host's, open until `close()` returns.
    public let fd: Int32
    /// The disk must not be written to.
    public let isReadOnly: Bool
    /// Linux AIO serves reads and writes, which needs `fd` to be in O_DIRECT mode; else helper threads do.
    public let isAsynchronous: Bool
    /// The unit in which a partial transfer can be continued, a power of two.
    public let blockSize: UInt64
    let pool: HelperPool
    private let threadCount: Int
    /// The size; outside the object, so that queues read it without counting references.
    let byteCount: UnsafeMutablePointer<Atomic<UInt64>>
    private let queues = Mutex(QueueBook())

    /// A device over `opening.fd` with `byteCount` bytes and `threadCount` helper threads.
    public init(
        host: PluginHost, opening: Opening, isAsynchronous: Bool, blockSize: UInt64, byteCount: UInt64,
        threadCount: Int
    ) {
        self.host = host
        unsafe disk = opening.disk
        fd = opening.fd
        isReadOnly = opening.isReadOnly
        self.isAsynchronous = isAsynchronous
        self.blockSize = blockSize
        unsafe self.byteCount = .allocate(capacity: 1)
        unsafe self.byteCount.initialize(to: Atomic(byteCount))
        self.threadCount = threadCount
        unsafe pool = HelperPool(complete: host.complete)
    }

    deinit {
        unsafe byteCount.deinitialize(count: 1)
        unsafe byteCount.deallocate()
    }

    // MARK: What a plugin says

    /// The size as it is now, in bytes and a multiple of the logical block, or nil if it cannot be told.
    open func measureSize() -> UInt64? { nil }

    /// Fills in everything but the size.
    open func describe(_ info: inout xbb_info) {}

    /// Performs a request on a helper thread; `done` bytes of a READ or WRITE are transferred already.
    ///
    /// - Returns: 0 or a negative errno.
    open func perform(_ request: UnsafeMutablePointer<xbb_req>, done: UInt64) -> Int32 {
        switch unsafe Int(request.pointee.op) {
        case XBB_OP_READ, XBB_OP_WRITE:
            return unsafe BlockingIO.transfer(fd: fd, request, done: done, alignment: blockSize)
        case XBB_OP_FLUSH:
            return BlockingIO.sync(fd: fd)
        case XBB_OP_DISCARD, XBB_OP_WRITE_ZEROES:
            let isForced = unsafe Int(request.pointee.flags) & XBB_REQ_FUA != 0
            let status = unsafe deallocate(request)
            return status == 0 && isForced ? BlockingIO.sync(fd: fd) : status
        default:
            return -EOPNOTSUPP
        }
    }

    /// Performs a DISCARD or WRITE_ZEROES on a helper thread.
    ///
    /// - Returns: 0 or a negative errno.
    open func deallocate(_ request: UnsafeMutablePointer<xbb_req>) -> Int32 { -EOPNOTSUPP }

    /// Called once by `close()`, after the threads ended: gives back what `init` took beside memory.
    open func finish() {}

    // MARK: Size

    /// The size that the host was told last, in bytes.
    public var size: UInt64 { unsafe byteCount.pointee.load(ordering: .relaxed) }

    /// Looks whether the size changed and tells the host.  Any thread; the call is cheap (fstat or one ioctl).
    public func checkSize() {
        guard let now = measureSize() else { return }
        let before = unsafe byteCount.pointee.exchange(now, ordering: .relaxed)
        guard now != before else { return }
        unsafe host.log(.info, disk: disk, "size changed from \(before) to \(now) bytes")
        if now == 0 { unsafe host.notify(disk: disk, XBB_NOTIFY_LOST) }
        if before == 0 { unsafe host.notify(disk: disk, XBB_NOTIFY_FOUND) }
        if now != 0 { unsafe host.notify(disk: disk, XBB_NOTIFY_INFO) }
    }

    // MARK: Control calls

    func start() throws(PluginError) { try pool.start(threadCount, for: self) }

    func close() {
        pool.stop()
        finish()
        queues.withLock { $0.free() }
    }

    func fillIn(_ info: inout xbb_info) {
        info.size = size
        describe(&info)
    }

    func openQueue(_ handle: OpaquePointer, index: UInt32, depth: UInt32) throws(PluginError)
        -> UnsafeMutablePointer<OpenQueue>
    {
        guard pool.isRunning else { throw PluginError(EINVAL, "queue_open() before start()") }
        guard depth > 0, depth <= 65536 else { throw PluginError(EINVAL, "a queue depth of \(depth)") }
        let counters = UnsafeMutablePointer<QueueCounters>.allocate(capacity: 1)
        unsafe counters.initialize(to: QueueCounters())
        queues.withLock { unsafe $0.counters.append(counters) }
        let queue = try unsafe IOQueue(
            handle: handle, complete: host.complete, fd: fd, pool: pool, depth: Int(depth),
            isAsynchronous: isAsynchronous, size: byteCount, counters: counters)
        let place = UnsafeMutablePointer<OpenQueue>.allocate(capacity: 1)
        unsafe place.initialize(to: OpenQueue(queue: queue, device: Unmanaged.passUnretained(self)))
        do {
            try unsafe place.pointee.attach(to: host, handle, watchesSize: index == 0, argument: place)
        } catch {
            unsafe place.deinitialize(count: 1)
            unsafe place.deallocate()
            throw error
        }
        return unsafe place
    }

    /// The sums of all queues that this device ever had.
    func statistics() -> [(StaticString, UInt64)] {
        queues.withLock { $0.sums() }
    }
}

/// The counters of all queues, kept after a queue closed: the sums must not fall.
@safe
private struct QueueBook: ~Copyable, @unchecked Sendable {
    var counters: [UnsafeMutablePointer<QueueCounters>] = unsafe []

    func sums() -> [(StaticString, UInt64)] {
        var sums: [(StaticString, UInt64)] = [
            ("io-submit-calls", 0), ("io-submitted", 0), ("io-completed", 0), ("helper-requests", 0),
            ("partial-transfers", 0),
        ]
        for index in unsafe counters.indices {
            let queue = unsafe counters[index]
            unsafe sums[0].1 &+= queue.pointee.submitCalls.load(ordering: .relaxed)
            unsafe sums[1].1 &+= queue.pointee.submitted.load(ordering: .relaxed)
            unsafe sums[2].1 &+= queue.pointee.completions.load(ordering: .relaxed)
            unsafe sums[3].1 &+= queue.pointee.pooled.load(ordering: .relaxed)
            unsafe sums[4].1 &+= queue.pointee.partial.load(ordering: .relaxed)
        }
        return sums
    }

    mutating func free() {
        for index in unsafe counters.indices {
            let queue = unsafe counters[index]
            unsafe queue.deinitialize(count: 1)
            unsafe queue.deallocate()
        }
        unsafe counters.removeAll()
    }
}
