// SPDX-License-Identifier: BSD-2-Clause
// A queue of an image: what stands at one place of the file goes there as it is; the rest is done by helper threads.
import FileKit
import Glibc
import PluginAPI
import PluginKit
import Synchronization

/// Where a request goes.
package enum Route {
    /// To this place of the file, in bytes. The token is the router's.
    case file(UInt64, token: UInt8)
    /// It is a read of nothing but zeroes.
    case zeroes
    /// It ends with this status, 0 or a negative errno.
    case done(Int32)
    /// To a helper thread.
    case helper
}

/// Says where the requests of one queue go.
package protocol RequestRouter {
    /// Looks at a request, without sleeping. The queue's thread.
    func route(_ request: borrowing Request) -> Route
    /// A request that went to the file has ended with `status`. Any thread.
    func ended(_ token: UInt8, _ status: Int32)
    /// So many requests go to helper threads. The queue's thread.
    func countHelped(_ count: UInt64)
    /// Calls ``QueueState/end(_:_:_:)``: what the kernel side calls cannot be generic.
    static var completed: HostComplete { get }
}

/// What a completion needs, at a place of its own: it comes from the kernel's ring and from helper threads.
@safe
package struct QueueState<Router: RequestRouter> {
    private let host: OpaquePointer
    private let complete: HostComplete
    private let router: Router

    init(host: OpaquePointer, complete: @escaping HostComplete, router: Router) {
        unsafe (self.host, self.complete, self.router) = unsafe (host, complete, router)
    }

    /// A request has ended: it begins where it did, and the router and the host learn it.
    @inline(__always)
    package static func end(_ queue: OpaquePointer?, _ request: UnsafeMutablePointer<xbb_req>?, _ status: Int32) {
        guard let queue = unsafe queue, let request = unsafe request else { return }
        let state = unsafe UnsafePointer<QueueState>(queue)
        if let token = unsafe RequestTag.take(request) { unsafe state.pointee.router.ended(token, status) }
        unsafe state.pointee.complete(state.pointee.host, request, status)
    }
}

/// The short way of requests.
///
/// `@unchecked Sendable`: all of it is for the queue's thread, but for what completions of helper threads look at, which never
/// changes.
@safe
package final class ImageQueue<Router: RequestRouter>: StorageQueue, @unchecked Sendable {
    private let router: Router
    /// What the kernel side reaches by pointers, which outlives it.
    private let state: UnsafeMutablePointer<QueueState<Router>>
    private let counters: UnsafeMutablePointer<QueueCounters>
    /// The router has looked at the places; the file may have any size.
    private let limit: UnsafeMutablePointer<Atomic<UInt64>>
    private let io: UnsafeMutablePointer<IOQueue>
    private let batch: UnsafeMutablePointer<UnsafeMutablePointer<xbb_req>?>
    private let depth: Int
    private let pool: HelperPool
    private var watch: Watch?

    /// A queue over `fd`, to which data go past the page cache if `isDirect`. Where the kernel has no room for it, `refused` gets
    /// its errno, and threads serve the queue.
    package init(
        _ router: Router, _ parameters: QueueParameters, fd: Int32, isDirect: Bool, pool: HelperPool,
        refused: (Int32) -> Void
    ) throws(PluginError) {
        guard parameters.depth > 0, parameters.depth <= 65536 else {
            throw .invalid("a queue depth of \(parameters.depth)")
        }
        self.router = router
        self.pool = pool
        depth = parameters.depth
        unsafe state = .allocate(capacity: 1)
        unsafe state.initialize(
            to: QueueState(host: parameters.queue.handle, complete: parameters.queue.complete, router: router))
        unsafe counters = .allocate(capacity: 1)
        unsafe counters.initialize(to: QueueCounters())
        unsafe limit = .allocate(capacity: 1)
        unsafe limit.initialize(to: Atomic(.max))
        unsafe batch = .allocate(capacity: depth)
        unsafe batch.initialize(repeating: nil, count: depth)
        unsafe io = .allocate(capacity: 1)
        do throws(PluginError) {
            let queue = unsafe try IOQueue(
                handle: OpaquePointer(state), complete: Router.completed, fd: fd, pool: pool, depth: depth,
                isAsynchronous: isDirect, size: limit, counters: counters, refused: refused)
            unsafe io.initialize(to: queue)
        } catch {
            freeMemory()
            throw error
        }
        if let fd = unsafe io.pointee.watchedFD {
            let io = unsafe io
            watch = try parameters.queue.watch(fd) { _ in unsafe io.pointee.completionsAreReady() }
        }
    }

    deinit {
        unsafe io.deinitialize(count: 1)
        freeMemory()
    }

    private func freeMemory() {
        unsafe io.deallocate()
        unsafe state.deinitialize(count: 1)
        unsafe state.deallocate()
        unsafe counters.deallocate()
        unsafe limit.deallocate()
        unsafe batch.deallocate()
    }

    /// The completion ring of the kernel is looked at without a system call.
    package static var isPolled: Bool { true }

    package func poll() -> Int { unsafe io.pointee.reap() }

    package func queueClosed() { watch?.remove() }

    package func submit(_ batch: inout RequestBatch) {
        var direct = 0
        var others = JobList()
        while let request = batch.next() {
            switch router.route(request) {
            case .file(let place, let token):
                let taken = unsafe request.release()
                unsafe RequestTag.set(taken, token, place: place)
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
            router.countHelped(UInt64(others.count))
            pool.push(others)
        }
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
        guard let memory = unsafe request.pointee.ctx else { return unsafe Router.completed(queue, request, -EINVAL) }
        let job = unsafe memory.assumingMemoryBound(to: Job.self)
        unsafe job.initialize(to: Job(request, queue: queue, complete: Router.completed))
        unsafe jobs.append(job)
    }
}
