// SPDX-License-Identifier: BSD-2-Clause
// A device's own threads: for what would block a queue's thread, and for files that asynchronous I/O cannot serve.
//
// Jobs live in the scratch memory of their requests and are linked there, so that handing one over allocates nothing.
import CLinux
import Glibc
import PluginAPI
import PluginKit

/// What is left to do for a request; lies in `xbb_req.ctx`.
@safe
package struct Job {
    var next: UnsafeMutablePointer<Job>?
    var request: UnsafeMutablePointer<xbb_req>
    /// `xbb_hqueue`, which the request came by.
    var queue: OpaquePointer
    /// `xbb_host.complete`.
    var complete: HostComplete
    /// Bytes that are already transferred.
    package var done: UInt64
    /// Place in the batch, while the batch is handed over.
    var index: UInt32
    /// A status that is known without doing anything.
    var status: Int32

    /// All of a request is left.
    package init(_ request: UnsafeMutablePointer<xbb_req>, queue: OpaquePointer, complete: @escaping HostComplete) {
        unsafe self.init(next: nil, request: request, queue: queue, complete: complete, done: 0, index: 0, status: 0)
    }

    init(
        next: UnsafeMutablePointer<Job>?, request: UnsafeMutablePointer<xbb_req>, queue: OpaquePointer,
        complete: @escaping HostComplete, done: UInt64, index: UInt32, status: Int32
    ) {
        unsafe (self.next, self.request, self.queue, self.complete) = unsafe (next, request, queue, complete)
        (self.done, self.index, self.status) = (done, index, status)
    }

    var isFlush: Bool { unsafe Int(request.pointee.op) == XBB_OP_FLUSH }

    /// The request, which is the caller's to complete.
    package var accepted: Request { unsafe Request(request, queue: queue, complete: complete) }
}

/// Who does what helper threads take.
package protocol JobPerformer: AnyObject {
    /// Does a job, and completes its request now or later. The job's memory is the request's: it is gone with that.
    func perform(_ job: UnsafeMutablePointer<Job>)
}

/// A first-in first-out list of jobs.
@safe
package struct JobList {
    private(set) var first: UnsafeMutablePointer<Job>?
    private var last: UnsafeMutablePointer<Job>?
    package private(set) var count = 0

    /// An empty list.
    package init() {}

    /// Puts a job behind the others.
    package mutating func append(_ job: UnsafeMutablePointer<Job>) {
        unsafe job.pointee.next = nil
        if let last = unsafe last { unsafe last.pointee.next = unsafe job } else { unsafe first = unsafe job }
        unsafe last = unsafe job
        count &+= 1
    }

    mutating func append(_ list: JobList) {
        guard let head = unsafe list.first else { return }
        if let last = unsafe last { unsafe last.pointee.next = unsafe head } else { unsafe first = unsafe head }
        unsafe last = unsafe list.last
        count &+= list.count
    }

    mutating func removeFirst() -> UnsafeMutablePointer<Job>? {
        guard let job = unsafe first else { return nil }
        unsafe first = unsafe job.pointee.next
        if unsafe first == nil { unsafe last = nil }
        count &-= 1
        return unsafe job
    }
}

/// Threads that perform jobs and complete their requests.  They exist from `start` to `stop`.
@safe
package final class HelperPool: ThreadBody {
    private let monitor = Monitor()
    private var jobs = JobList()
    private var idle = 0
    private var stopping = false
    private var threads: [PluginThread] = []
    /// The owner; it lives longer than the threads, because its `close()` stops them.
    private unowned(unsafe) var disk: (any JobPerformer)?

    /// No threads yet.
    package init() {}

    package var isRunning: Bool { monitor.locked { !threads.isEmpty } }

    /// Starts threads.
    package func start(_ count: Int, for disk: any JobPerformer) throws(PluginError) {
        guard threads.isEmpty else { return }
        unsafe self.disk = disk
        do throws(PluginError) {
            for _ in 0..<max(count, 1) { threads.append(try PluginThread(self)) }
        } catch {
            stop()
            throw error
        }
    }

    /// Adds threads until there are `count`, or as many as the system allows. Any thread, between start and stop.
    package func grow(to count: Int) {
        monitor.locked {
            while threads.count < count, let thread = try? PluginThread(self) { threads.append(thread) }
        }
    }

    /// Finishes what was pushed, then joins the threads.
    package func stop() {
        monitor.locked { stopping = true }
        monitor.broadcast()
        for thread in monitor.locked({ threads }) { thread.join() }
        threads.removeAll()
        stopping = false
    }

    /// Lets threads do these jobs. Any thread.
    package func push(_ list: JobList) {
        guard list.count > 0 else { return }
        monitor.lock()
        jobs.append(list)
        let sleepers = min(idle, list.count)
        monitor.unlock()
        for _ in 0..<sleepers { monitor.signal() }
    }

    package func run() {
        monitor.lock()
        while true {
            if let job = unsafe jobs.removeFirst() {
                monitor.unlock()
                if let disk = unsafe disk {
                    unsafe disk.perform(job)
                } else {
                    unsafe job.pointee.accepted.complete(.failed(ENODEV))
                }
                monitor.lock()
            } else if stopping {
                break
            } else {
                idle += 1
                monitor.wait()
                idle -= 1
            }
        }
        monitor.unlock()
    }
}
