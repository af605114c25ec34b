// SPDX-License-Identifier: BSD-2-Clause
// A connected disk that any thread may use.
import Blkif
import CLinux
import Glibc
import Synchronization

/// A disk behind a ring, with blocking and non-blocking operations of any length.
///
/// Offsets and lengths are in bytes and multiples of ``sectorSize``. All functions may be called from any thread. An
/// operation ends with the backend's answer, or with the end of the device; there is no other timeout unless
/// ``ioTimeout`` is set. The threads of the disk keep it alive until ``close(drain:)``, which must be called.
///
/// `@unchecked Sendable`: `control` guards the device; everything else is constant, atomic or under a lock of its own.
public final class FrontDisk: @unchecked Sendable {
    private enum Phase { case open, closing, closed }

    private let device: FrontDevice
    /// Guards ``device`` and closing.
    private let control = Mutex<Phase>(.open)
    private let queues: [DiskQueue]
    private let next = Atomic<Int>(0)
    private let size: Atomic<UInt64>
    private let accepting = Atomic<Bool>(true)
    private let stopping = Atomic<Bool>(false)
    private let wake: Int32
    private let watcher = Mutex<FrontThread?>(nil)
    private let onEvent: (@Sendable (FrontEvent) -> Void)?
    private let health: FrontHealth
    /// The backend's description of the disk when the device was connected.
    public let info: BackendInfo
    /// Milliseconds after which an unanswered operation ends the device; nil for never.
    public let ioTimeout: Int?

    /// Takes over a connected device, which must not be used in any other way while the disk is open.
    ///
    /// All data start at sector `skew` (0 to 7) of their first page. `onEvent` is called on a thread of the disk when
    /// the backend changes the size or wants to close; in the latter case the disk has already closed itself.
    public init(
        _ device: FrontDevice, skew: Int = 0, ioTimeout: Int? = nil,
        onEvent: (@Sendable (FrontEvent) -> Void)? = nil
    ) throws(BlkfrontError) {
        guard device.state == .connected, skew >= 0, skew < 8 else {
            throw .invalid("the device must be connected and the skew 0 to 7")
        }
        self.device = device
        self.ioTimeout = ioTimeout
        self.onEvent = onEvent
        info = device.info
        health = device.health
        size = Atomic(device.info.byteCount)
        let unit = device.info.sectorUnit
        let health = device.health
        queues = device.queues.map { DiskQueue($0, health: health, sectorUnit: unit, skew: skew) }
        wake = makeEvent()
        do {
            for queue in queues { try queue.start() }
            let thread = try FrontThread(name: "front-watch") { [self] in watchStore() }
            watcher.withLock { $0 = thread }
        } catch {
            for queue in queues { queue.stop() }
            throw error
        }
    }

    deinit {
        Glibc.close(wake)
    }

    /// Size in bytes, as last published by the backend.
    public var byteCount: UInt64 { size.load(ordering: .relaxed) }
    /// Every offset and length must be a multiple of this many bytes.
    public var sectorSize: Int { info.sectorUnit }
    /// The reason why nothing works any more; nil while the disk is open.
    public var failure: BlkfrontError? { health.error }

    // MARK: Blocking operations

    /// Reads bytes at `offset` into memory that must be valid until this returns.
    @unsafe public func read(at offset: UInt64, into memory: UnsafeMutableRawBufferPointer) throws(BlkfrontError) {
        guard let base = memory.baseAddress else { return }
        try unsafe run(
            FrontIO(.read, offset: offset, byteCount: UInt64(memory.count), memory: .borrowed(base)))
    }

    /// Writes bytes at `offset`, as a barrier if `barrier` is set.
    @unsafe public func write(
        at offset: UInt64, from memory: UnsafeRawBufferPointer, barrier: Bool = false
    ) throws(BlkfrontError) {
        guard let base = memory.baseAddress else { return }
        try unsafe run(
            FrontIO(
                barrier ? .writeBarrier : .write, offset: offset, byteCount: UInt64(memory.count),
                memory: .borrowed(UnsafeMutableRawPointer(mutating: base))))
    }

    /// Reads `count` bytes at `offset`.
    public func read(at offset: UInt64, count: Int) throws(BlkfrontError) -> [UInt8] {
        let io = try startRead(at: offset, count: count)
        try finish(io)
        return io.bytes
    }

    /// Writes `bytes` at `offset`, as a barrier if `barrier` is set.
    public func write(_ bytes: [UInt8], at offset: UInt64, barrier: Bool = false) throws(BlkfrontError) {
        try finish(startWrite(bytes, at: offset, barrier: barrier))
    }

    /// Writes `count` zeroes at `offset`.
    public func writeZeroes(at offset: UInt64, count: UInt64) throws(BlkfrontError) {
        try run(FrontIO(.write, offset: offset, byteCount: count, memory: .zeroes))
    }

    /// Makes `count` bytes at `offset` zero. Parts that are zero already are read and not written, so that they take no
    /// storage that they did not take before.
    public func makeZero(at offset: UInt64, count: UInt64, part: Int = 1 << 20) throws(BlkfrontError) {
        var position = offset
        let (end, overflow) = offset.addingReportingOverflow(count)
        guard !overflow, part > 0 else { throw .invalid("\(count) bytes at \(offset)") }
        while position < end {
            let length = min(end - position, UInt64(part))
            let bytes = try read(at: position, count: Int(length))
            if bytes.contains(where: { $0 != 0 }) { try writeZeroes(at: position, count: length) }
            position += length
        }
    }

    /// Makes all writes that were answered before durable.
    public func flush() throws(BlkfrontError) {
        try finish(startFlush())
    }

    /// Tells the backend that `count` bytes at `offset` are no longer needed.
    public func discard(at offset: UInt64, count: UInt64, secure: Bool = false) throws(BlkfrontError) {
        try finish(startDiscard(at: offset, count: count, secure: secure))
    }

    // MARK: Operations that return at once

    /// Starts a read; ``FrontIO/bytes`` has the data after ``FrontIO/wait()``. `completion`, if given, is called on a
    /// thread of the disk and must not block.
    public func startRead(
        at offset: UInt64, count: Int, completion: (@Sendable (FrontIO) -> Void)? = nil
    ) throws(BlkfrontError) -> FrontIO {
        guard count >= 0 else { throw .invalid("a read of \(count) bytes") }
        let memory = UnsafeMutableRawPointer.allocate(byteCount: max(count, 1), alignment: 4096)
        return try unsafe start(
            FrontIO(.read, offset: offset, byteCount: UInt64(count), memory: .owned(memory), callback: completion))
    }

    /// Starts a write of a copy of `bytes`.
    public func startWrite(
        _ bytes: [UInt8], at offset: UInt64, barrier: Bool = false, completion: (@Sendable (FrontIO) -> Void)? = nil
    ) throws(BlkfrontError) -> FrontIO {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: max(bytes.count, 1), alignment: 4096)
        unsafe bytes.withUnsafeBytes { source in
            if let base = source.baseAddress { unsafe memory.copyMemory(from: base, byteCount: source.count) }
        }
        return try unsafe start(
            FrontIO(
                barrier ? .writeBarrier : .write, offset: offset, byteCount: UInt64(bytes.count),
                memory: .owned(memory), callback: completion))
    }

    /// Starts a flush.
    public func startFlush(completion: (@Sendable (FrontIO) -> Void)? = nil) throws(BlkfrontError) -> FrontIO {
        try start(FrontIO(.flush, offset: 0, byteCount: 0, memory: .none, callback: completion))
    }

    /// Starts a discard.
    public func startDiscard(
        at offset: UInt64, count: UInt64, secure: Bool = false, completion: (@Sendable (FrontIO) -> Void)? = nil
    ) throws(BlkfrontError) -> FrontIO {
        try start(
            FrontIO(
                .discard, offset: offset, byteCount: count, memory: .none, secure: secure, callback: completion))
    }

    private func start(_ io: FrontIO) throws(BlkfrontError) -> FrontIO {
        let unit = UInt64(sectorSize)
        guard io.offset % unit == 0, io.byteCount % unit == 0 else {
            throw .invalid("offset \(io.offset) and length \(io.byteCount) must be multiples of \(unit)")
        }
        try health.check()
        guard accepting.load(ordering: .acquiring) else { throw .closed("the device is closing") }
        if io.byteCount == 0 && io.operation != .flush {
            io.finish()
            return io
        }
        let turn = next.wrappingAdd(1, ordering: .relaxed).oldValue
        queues[Int(UInt(bitPattern: turn) % UInt(queues.count))].submit(io)
        return io
    }

    private func run(_ io: FrontIO) throws(BlkfrontError) { try finish(start(io)) }

    private func finish(_ io: FrontIO) throws(BlkfrontError) {
        guard let ioTimeout else { return try io.wait() }
        if try io.wait(timeout: ioTimeout) { return }
        // The memory may only be released once no thread of ours uses it, so the whole device has to end.
        health.end(.timeout("no answer to \(io.operation) at \(io.offset) in \(ioTimeout) ms"))
        for queue in queues { queue.failAll() }
        try io.wait()
    }

    // MARK: The end

    /// Closes the disk: accepts no new operations, waits for those in flight, then closes the device.
    ///
    /// `drain` is the longest time in milliseconds for operations in flight. Throws the error of closing the device; a
    /// second call does nothing. When this returns, all threads of the disk have ended, unless it was called from
    /// `onEvent`.
    public func close(drain: Int = 10_000) throws(BlkfrontError) {
        accepting.store(false, ordering: .releasing)
        let failure = control.withLock { phase -> BlkfrontError? in
            guard phase == .open else { return nil }
            phase = .closed
            return shutDown(drain: drain)
        }
        stopping.store(true, ordering: .releasing)
        _ = eventfd_write(wake, 1)
        let thread = watcher.withLock { thread in
            let taken = thread
            thread = nil
            return taken
        }
        if let thread {
            if thread.isCurrent { thread.detach() } else { thread.join() }
        }
        if let failure { throw failure }
    }

    private func shutDown(drain: Int) -> BlkfrontError? {
        let deadline = Deadline(milliseconds: drain)
        while health.isGood && deadline.left > 0 && !queues.allSatisfy({ $0.isIdle }) { usleep(200) }
        let cause = health.error
        health.end(.closed("closed by the frontend"))
        for queue in queues { queue.stop() }
        do throws(BlkfrontError) {
            try device.close()
        } catch {
            return error
        }
        if case .dead = cause { return cause }
        return nil
    }

    private func watchStore() {
        let descriptor = control.withLock { _ in device.store.watchFileDescriptor }
        var items = [
            pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0),
            pollfd(fd: wake, events: Int16(POLLIN), revents: 0),
        ]
        while !stopping.load(ordering: .acquiring) {
            _ = unsafe poll(&items, nfds_t(items.count), -1)
            if stopping.load(ordering: .acquiring) { return }
            guard let events = nextEvents() else { return }
            for event in events {
                if case .resized(let bytes) = event { size.store(bytes, ordering: .relaxed) }
                if case .backendCloses = event {
                    try? close(drain: 1000)
                    onEvent?(event)
                    return
                }
                onEvent?(event)
            }
        }
    }

    /// The waiting events; nil if XenStore is gone or the disk is closed.
    private func nextEvents() -> [FrontEvent]? {
        control.withLock { phase in
            guard phase == .open else { return nil }
            do throws(BlkfrontError) {
                return try device.handleStoreEvents()
            } catch {
                health.end(error)
                return nil
            }
        }
    }
}
