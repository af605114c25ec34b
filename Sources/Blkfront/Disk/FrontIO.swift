// SPDX-License-Identifier: BSD-2-Clause
// One operation on a disk, of any length: split into requests, completed once.
public import Blkif
import CLinux
import Glibc

/// An operation that was started on a ``FrontDisk``.
///
/// `@unchecked Sendable`: everything that changes is guarded by the lock of its queue until ``finish(_:)``, and is
/// constant afterwards.
///
/// Unsafe code here is the semaphore, at a fixed address, and the memory of the operation.
@safe
public final class FrontIO: @unchecked Sendable {
    /// Where the bytes are.
    @safe enum Memory {
        /// A flush or a discard.
        case none
        /// A write of zeroes.
        case zeroes
        /// The caller's memory, valid until the operation is finished.
        case borrowed(UnsafeMutableRawPointer)
        /// Memory of this object, freed with it.
        case owned(UnsafeMutableRawPointer)
    }

    /// The operation.
    public let operation: BlockOperation
    /// First byte on the disk.
    public let offset: UInt64
    /// Length in bytes.
    public let byteCount: UInt64
    /// For a discard: the bytes must be erased.
    let secure: Bool
    let memory: Memory
    /// Bytes that are on the ring or answered.
    var submitted: UInt64 = 0
    /// Requests on the ring.
    var pending = 0
    /// A flush or a discard was put on the ring.
    var started = false
    /// It was put on the list of finished operations.
    var hasEnded = false
    private var result: BlkfrontError?
    private let callback: (@Sendable (FrontIO) -> Void)?
    private let done: UnsafeMutablePointer<sem_t>

    init(
        _ operation: BlockOperation, offset: UInt64, byteCount: UInt64, memory: Memory, secure: Bool = false,
        callback: (@Sendable (FrontIO) -> Void)? = nil
    ) {
        self.operation = operation
        self.offset = offset
        self.byteCount = byteCount
        self.memory = memory
        self.secure = secure
        self.callback = callback
        unsafe done = .allocate(capacity: 1)
        unsafe done.initialize(to: sem_t())
        _ = unsafe sem_init(done, 0, 0)
    }

    deinit {
        _ = unsafe sem_destroy(done)
        unsafe done.deallocate()
        if case .owned(let bytes) = memory { unsafe bytes.deallocate() }
    }

    /// Waits for the end of the operation and throws its error. May be called more than once, from one thread.
    public func wait() throws(BlkfrontError) {
        while unsafe sem_wait(done) != 0 {}
        _ = unsafe sem_post(done)
        if let result { throw result }
    }

    /// Like ``wait()``, but for at most `timeout` milliseconds; false at the timeout, and the operation continues.
    func wait(timeout: Int) throws(BlkfrontError) -> Bool {
        var end = timespec()
        _ = unsafe clock_gettime(CLOCK_REALTIME, &end)
        end.tv_sec += timeout / 1000
        end.tv_nsec += timeout % 1000 * 1_000_000
        if end.tv_nsec >= 1_000_000_000 {
            end.tv_sec += 1
            end.tv_nsec -= 1_000_000_000
        }
        while unsafe sem_timedwait(done, &end) != 0 {
            if errno == ETIMEDOUT { return false }
        }
        _ = unsafe sem_post(done)
        if let result { throw result }
        return true
    }

    /// The bytes that were read by an operation with its own memory. Call it after ``wait()``.
    public var bytes: [UInt8] {
        guard case .owned(let bytes) = memory else { return [] }
        return unsafe [UInt8](UnsafeRawBufferPointer(start: bytes, count: Int(byteCount)))
    }

    /// True if every byte is on the ring or answered.
    var isSubmitted: Bool {
        switch operation {
        case .read, .write, .writeBarrier: submitted == byteCount
        case .flush, .discard: started
        }
    }

    /// Keeps the first error.
    func fail(_ error: BlkfrontError) {
        if result == nil { result = error }
    }

    var hasFailed: Bool { result != nil }

    /// Ends the operation: the caller's memory is no longer used. Call it once, without the queue's lock.
    func finish() {
        callback?(self)
        _ = unsafe sem_post(done)
    }
}
