// SPDX-License-Identifier: BSD-2-Clause
// A queue: what stands at one place of the file goes there as it is; the rest is done by helper threads.
import FileKit
import Glibc
import ImageCore
import ImageKit
import PluginAPI
import PluginKit
import QCOW2
import QCOWEngine
import Synchronization

/// The short way of requests.
///
/// `@unchecked Sendable`: all of it is for the queue's thread, but for what completions of helper threads look at, which never
/// changes.
@safe
final class QCOWQueue: StorageQueue, @unchecked Sendable {
    private let state: UnsafeMutablePointer<QueueState>
    private let io: UnsafeMutablePointer<IOQueue>
    private let batch: UnsafeMutablePointer<UnsafeMutablePointer<xbb_req>?>
    private let depth: Int
    private let cells: QueueCells<QueueState>
    private let device: QCOWDevice
    private let pool: HelperPool
    private let engine: ImageEngine?
    private let map: ClusterMap
    private let lowerSize: UInt64
    /// Where this queue counts its I/O; 0 is the helpers'.
    private let place: UInt8
    private var watch: Watch?

    init(_ device: QCOWDevice, _ parameters: QueueParameters) throws(PluginError) {
        guard parameters.depth > 0, parameters.depth <= 65536 else {
            throw .invalid("a queue depth of \(parameters.depth)")
        }
        self.device = device
        (pool, engine, map, lowerSize) = (device.pool, device.engine, device.map, device.backing?.size ?? 0)
        depth = parameters.depth
        place = UInt8(truncatingIfNeeded: parameters.index % 31 + 1)
        let cells = unsafe QueueCells(
            QueueState(
                host: parameters.queue.handle, complete: parameters.queue.complete,
                engine: device.engine.map { unsafe Unmanaged.passUnretained($0) }))
        let queue = unsafe try IOQueue(
            handle: OpaquePointer(cells.state), complete: QueueState.completed, fd: device.data.fd, pool: device.pool,
            depth: depth, isAsynchronous: device.data.isDirect, size: cells.limit, counters: cells.counters
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
            case .file(let place, let token):
                let taken = unsafe request.release()
                unsafe RequestTag.set(taken, token.number, place: place)
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
            device.counters.helped.wrappingAdd(UInt64(others.count), ordering: .relaxed)
            pool.push(others)
        }
    }

    /// Where a request goes.
    private enum Route {
        /// To this place of the file.
        case file(UInt64, EngineToken)
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
            let token = engine?.begin(at: place) ?? EngineToken(number: 0)
            let found = map.placeOfRead(offset, length, lowerSize: lowerSize)
            if case .file(let start) = found { return .file(start, token) }
            engine?.end(token)
            return found == .zeroes ? .zeroes : .helper
        case .write:
            guard let engine else { return .done(-EROFS) }
            guard isInside(offset, length) else { return .done(-EIO) }
            let token = engine.begin(at: place)
            if case .file(let start) = engine.placeOfWrite(offset, length) { return .file(start, token) }
            engine.end(token)
            return .helper
        case .flush:
            guard let engine else { return .done(0) }
            // No two syncs run at once: of an error only one would learn.
            return engine.failure == 0 ? .helper : .done(engine.failure)
        case .discard, .writeZeroes:
            return engine == nil ? .done(-EROFS) : .helper
        }
    }

    /// What stands behind the end of the disk is nothing: a map would show a hole there.
    @inline(__always)
    private func isInside(_ offset: UInt64, _ length: UInt64) -> Bool {
        let size = device.size
        return length > 0 && offset <= size && length <= size - offset
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
    let engine: Unmanaged<ImageEngine>?

    /// A request has ended: its token does, and the host learns it.
    static let completed: HostComplete = { queue, request, status in
        guard let queue = unsafe queue, let request = unsafe request else { return }
        let state = unsafe UnsafePointer<QueueState>(queue)
        if let token = unsafe RequestTag.take(request) {
            unsafe state.pointee.engine?._withUnsafeGuaranteedRef {
                $0.end(EngineToken(number: token))
                if status != 0 { $0.examineEnd() }
            }
        }
        unsafe state.pointee.complete(state.pointee.host, request, status)
    }
}
