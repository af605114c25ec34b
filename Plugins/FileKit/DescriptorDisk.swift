// SPDX-License-Identifier: BSD-2-Clause
// One open disk of a plugin that serves a file descriptor: its size, its helper threads and its queues.
import Glibc
import PluginKit
import Synchronization

/// The base of the disks of RawDisk and File.
///
/// The I/O of reads, writes and flushes is here; a plugin adds what differs: how the size is measured, what else the
/// host is told, and how blocks are discarded or zeroed.
///
/// `@unchecked Sendable`: what changes is atomic or under a lock; the pool is started and stopped by control calls alone.
@safe
open class DescriptorDisk: CountingDisk, JobPerformer, @unchecked Sendable {
    /// What the host can be told.
    public let host: HostDisk
    /// The image or device; the host's, open until `close()` returns.
    public let fd: Int32
    /// The disk must not be written to.
    public let isReadOnly: Bool
    /// Linux AIO serves reads and writes, which needs `fd` to be in O_DIRECT mode and room in the kernel; else helper
    /// threads do.
    public let isAsynchronous: Bool
    /// The unit in which a partial transfer can be continued, a power of two.
    public let blockSize: UInt64
    let pool: HelperPool
    private let flushes: FlushGate
    private let threadCount: Int
    private let isThreaded = Atomic<Bool>(false)
    /// The size; outside the object, so that queues read it without counting references.
    let byteCount: UnsafeMutablePointer<Atomic<UInt64>>
    private let queues = Mutex(QueueBook())

    /// A disk over `opening.fd` with `byteCount` bytes and `threadCount` helper threads, of a plugin with
    /// ``requestScratch``.
    public init(
        opening: Opening, isAsynchronous: Bool, blockSize: UInt64, byteCount: UInt64, threadCount: Int
    ) {
        host = opening.hostDisk
        fd = opening.fd
        flushes = FlushGate(hasUntoldError: opening.hasLostWrites)
        isReadOnly = opening.isReadOnly
        let hasRoom = isAsynchronous && AsynchronousRoom.reserve(for: opening.hostDisk)
        self.isAsynchronous = hasRoom
        self.blockSize = blockSize
        unsafe self.byteCount = .allocate(capacity: 1)
        unsafe self.byteCount.initialize(to: Atomic(byteCount))
        self.threadCount =
            isAsynchronous && !hasRoom ? max(threadCount, AsynchronousRoom.threadCount) : threadCount
        pool = HelperPool()
    }

    deinit {
        unsafe byteCount.deinitialize(count: 1)
        unsafe byteCount.deallocate()
    }

    // MARK: What a plugin says

    /// The size as it is now, in bytes and a multiple of the logical block, or nil if it cannot be told.
    open func measureSize() -> UInt64? { nil }

    /// Fills in everything but the size.
    open func describe(_ info: inout DiskInfo) {}

    package func perform(_ job: UnsafeMutablePointer<Job>) {
        if unsafe job.pointee.isFlush { return unsafe flushes.perform(job) { BlockingIO.sync(fd: fd) } }
        let accepted = unsafe job.pointee.accepted
        let done = unsafe job.pointee.done
        let status = perform(accepted, done: done)
        accepted.complete(Outcome(status: status))
    }

    /// Performs a request on a helper thread; `done` bytes of a read or write are transferred already.
    ///
    /// - Returns: 0 or a negative errno.
    func perform(_ request: borrowing Request, done: UInt64) -> Int32 {
        switch request.operation {
        case .read, .write:
            return BlockingIO.transfer(fd: fd, request, done: done, alignment: blockSize)
        case .flush:
            return BlockingIO.sync(fd: fd)
        case .discard, .writeZeroes:
            let status = deallocate(request)
            return status == 0 && request.isForced ? BlockingIO.sync(fd: fd) : status
        }
    }

    /// Performs a discard or a request for zeroes on a helper thread.
    ///
    /// - Returns: 0 or a negative errno.
    open func deallocate(_ request: borrowing Request) -> Int32 { -EOPNOTSUPP }

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
        host.log(.info, "size changed from \(before) to \(now) bytes")
        if now == 0 { host.notify(.lost) }
        if before == 0 { host.notify(.found) }
        if now != 0 { host.notify(.info) }
    }

    // MARK: Control calls

    /// What the host is told: the size as it is now, and what ``describe(_:)`` says. The host asks when a guest connects:
    /// without a queue nobody else looks.
    public var info: DiskInfo {
        checkSize()
        var info = DiskInfo(size: size)
        if isAsynchronous { info.queueDepth = UInt32(AsynchronousRoom.depth) }
        describe(&info)
        return info
    }

    /// Starts the helper threads.
    public func start() throws(PluginError) { try pool.start(threadCount, for: self) }

    /// Ends them, and gives back what the disk took.
    public func close() {
        pool.stop()
        finish()
        queues.withLock { $0.free() }
    }

    /// A queue with a kernel context of its own.
    public func openQueue(_ parameters: QueueParameters) throws(PluginError) -> DescriptorQueue {
        guard pool.isRunning else { throw .invalid("queue_open() before start()") }
        guard parameters.depth > 0, parameters.depth <= 65536 else {
            throw .invalid("a queue depth of \(parameters.depth)")
        }
        let counters = UnsafeMutablePointer<QueueCounters>.allocate(capacity: 1)
        unsafe counters.initialize(to: QueueCounters())
        queues.withLock { unsafe $0.counters.append(counters) }
        let queue = DescriptorQueue(
            try unsafe IOQueue(
                handle: parameters.queue.handle, complete: parameters.queue.complete, fd: fd, pool: pool,
                depth: parameters.depth, isAsynchronous: isAsynchronous, size: byteCount, counters: counters
            ) { [self] code in servesByThreads(after: code) })
        do throws(PluginError) {
            try queue.attach(to: parameters.queue, checksSizeOf: parameters.index == 0 ? self : nil)
        } catch {
            queue.queueClosed()
            throw error
        }
        return queue
    }

    /// A queue gets no room in the kernel: threads serve it, and more of them.
    private func servesByThreads(after code: Int32) {
        if isThreaded.exchange(true, ordering: .relaxed) { return }
        host.log(.warning, AsynchronousRoom.refusal(code))
        pool.grow(to: AsynchronousRoom.threadCount)
    }

    /// The sums of all queues that this disk ever had.
    public var statistics: [(StaticString, UInt64)] { queues.withLock { $0.sums() } }
}

/// The counters of all queues, kept after a queue closed: the sums must not fall.
///
/// `@unchecked Sendable`: it is under the lock of its disk; the counters themselves are atomic.
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
