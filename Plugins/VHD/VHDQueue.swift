// SPDX-License-Identifier: BSD-2-Clause
// A queue: what stands at one place of the file goes there as it is; the rest is done by helper threads.
import FileKit
import Glibc
import ImageCore
import ImageKit
import ImageWriting
import PluginAPI
import PluginKit
import Synchronization
import VHDEngine

/// The short way of requests.
///
/// `@unchecked Sendable`: all of it is for the queue's thread, but for what completions of helper threads look at, which never
/// changes.
@safe
final class VHDQueue: StorageQueue, @unchecked Sendable {
    private let state: UnsafeMutablePointer<QueueState>
    private let io: UnsafeMutablePointer<IOQueue>
    private let batch: UnsafeMutablePointer<UnsafeMutablePointer<xbb_req>?>
    private let depth: Int
    private let cells: QueueCells<QueueState>
    private let device: VHDDevice
    private let pool: HelperPool
    private let engine: VHDEngine
    private let size: UInt64
    private let isReadOnly: Bool
    private var watch: Watch?

    init(_ device: VHDDevice, _ parameters: QueueParameters) throws(PluginError) {
        guard parameters.depth > 0, parameters.depth <= 65536 else {
            throw .invalid("a queue depth of \(parameters.depth)")
        }
        self.device = device
        (pool, engine, size, isReadOnly) = (device.pool, device.engine, device.size, device.isReadOnly)
        depth = parameters.depth
        let cells = unsafe QueueCells(
            QueueState(
                host: parameters.queue.handle, complete: parameters.queue.complete,
                engine: .passUnretained(device.engine)))
        let queue = unsafe try IOQueue(
            handle: OpaquePointer(cells.state), complete: QueueState.completed, fd: device.file.fd, pool: device.pool,
            depth: depth, isAsynchronous: device.file.isDirect, size: cells.limit, counters: cells.counters
        ) { code in device.servesByThreads(after: code) }
        self.cells = cells
        unsafe state = cells.state
        unsafe io = .allocate(capacity: 1)
        unsafe io.initialize(to: queue)
        unsafe batch = .allocate(capacity: depth)
        unsafe batch.initialize(repeating: nil, count: depth)
        if let fd = unsafe io.pointee.watchedFD {
            let io = unsafe io
            watch = try parameters.queue.watch(fd) { _ in unsafe io.pointee.completionsAreReady() }
        }
    }

    deinit {
        unsafe io.deinitialize(count: 1)
        unsafe io.deallocate()
        unsafe batch.deallocate()
    }

    /// The completion ring of the kernel is looked at without a system call.
    static var isPolled: Bool { true }

    func poll() -> Int { unsafe io.pointee.reap() }

    func queueClosed() { watch?.remove() }

    func submit(_ batch: inout RequestBatch) {
        var direct = 0
        var others = JobList()
        while let request = batch.next() {
            switch route(request) {
            case .file(let place):
                let taken = unsafe request.release()
                unsafe RequestTag.set(taken, 0, place: place)
                unsafe self.batch[direct] = unsafe taken
                direct += 1
                if direct == depth { send(&direct) }
            case .zeroes:
                request.fillWithZeroes()
                request.complete()
            case .done(let status):
                request.complete(Outcome(status: status))
            case .helper:
                let taken = unsafe request.release()
                unsafe RequestTag.clear(taken)
                unsafe append(taken, to: &others)
            }
        }
        send(&direct)
        if others.count > 0 {
            device.helped.wrappingAdd(UInt64(others.count), ordering: .relaxed)
            pool.push(others)
        }
    }

    /// Where a request goes.
    private enum Route {
        /// To this place of the file.
        case file(UInt64)
        case zeroes
        case done(Int32)
        case helper
    }

    @inline(__always)
    private func route(_ request: borrowing Request) -> Route {
        let (offset, length) = (request.offset, request.length)
        switch request.operation {
        case .read:
            guard isInside(offset, length) else { return .done(-EIO) }
            return route(engine.placeOfRead(offset, length))
        case .write:
            guard !isReadOnly else { return .done(-EROFS) }
            guard isInside(offset, length) else { return .done(-EIO) }
            return route(engine.placeOfWrite(offset, length))
        case .flush:
            // By the engine, which lets no two syncs end at once.
            return isReadOnly ? .done(0) : .helper
        case .discard, .writeZeroes:
            return isReadOnly ? .done(-EROFS) : .helper
        }
    }

    @inline(__always)
    private func route(_ place: Place) -> Route {
        switch place {
        case .file(let start): .file(start)
        case .zeroes: .zeroes
        case .engine: .helper
        }
    }

    @inline(__always)
    private func isInside(_ offset: UInt64, _ length: UInt64) -> Bool {
        length > 0 && offset <= size && length <= size - offset
    }

    /// Gives requests to the kernel; what it has no room for is done by the helpers.
    private func send(_ count: inout Int) {
        guard count > 0 else { return }
        let accepted = unsafe io.pointee.submit(UnsafePointer(batch), count)
        var rest = JobList()
        for index in accepted..<count {
            if let request = unsafe batch[index] { unsafe append(request, to: &rest) }
        }
        if rest.count > 0 { pool.push(rest) }
        count = 0
    }

    private func append(_ request: UnsafeMutablePointer<xbb_req>, to jobs: inout JobList) {
        let queue = unsafe OpaquePointer(state)
        guard let memory = unsafe request.pointee.ctx else {
            return unsafe QueueState.completed(queue, request, -EINVAL)
        }
        let job = unsafe memory.assumingMemoryBound(to: Job.self)
        unsafe job.initialize(to: Job(request, queue: queue, complete: QueueState.completed))
        unsafe jobs.append(job)
    }
}

/// What a completion needs, at a place of its own: it comes from the kernel's ring and from helper threads.
@safe
struct QueueState {
    let host: OpaquePointer
    let complete: HostComplete
    let engine: Unmanaged<VHDEngine>

    /// A request has ended: it begins where it did, and the host learns it.
    static let completed: HostComplete = { queue, request, status in
        guard let queue = unsafe queue, let request = unsafe request else { return }
        let state = unsafe UnsafePointer<QueueState>(queue)
        unsafe _ = RequestTag.take(request)
        if status != 0 { unsafe state.pointee.engine._withUnsafeGuaranteedRef { $0.examineEnd() } }
        unsafe state.pointee.complete(state.pointee.host, request, status)
    }
}
