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
struct Job {
    var next: UnsafeMutablePointer<Job>?
    var request: UnsafeMutablePointer<xbb_req>
    /// `xbb_hqueue`, which the request came by.
    var queue: OpaquePointer
    /// `xbb_host.complete`.
    var complete: HostComplete
    /// Bytes that are already transferred.
    var done: UInt64
    /// Place in the batch, while the batch is handed over.
    var index: UInt32
    /// A status that is known without doing anything.
    var status: Int32
}

/// A first-in first-out list of jobs.
@safe
struct JobList {
    private(set) var first: UnsafeMutablePointer<Job>?
    private var last: UnsafeMutablePointer<Job>?
    private(set) var count = 0

    mutating func append(_ job: UnsafeMutablePointer<Job>) {
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
final class HelperPool: ThreadBody {
    private let monitor = Monitor()
    private var jobs = JobList()
    private var idle = 0
    private var stopping = false
    private var threads: [PluginThread] = []
    /// The owner; it lives longer than the threads, because its `close()` stops them.
    private unowned(unsafe) var disk: DescriptorDisk?

    var isRunning: Bool { monitor.locked { !threads.isEmpty } }

    func start(_ count: Int, for disk: DescriptorDisk) throws(PluginError) {
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
    func grow(to count: Int) {
        monitor.locked {
            while threads.count < count, let thread = try? PluginThread(self) { threads.append(thread) }
        }
    }

    /// Finishes what was pushed, then joins the threads.
    func stop() {
        monitor.locked { stopping = true }
        monitor.broadcast()
        for thread in monitor.locked({ threads }) { thread.join() }
        threads.removeAll()
        stopping = false
    }

    func push(_ list: JobList) {
        guard list.count > 0 else { return }
        monitor.lock()
        jobs.append(list)
        let sleepers = min(idle, list.count)
        monitor.unlock()
        for _ in 0..<sleepers { monitor.signal() }
    }

    func run() {
        monitor.lock()
        while true {
            if let job = unsafe jobs.removeFirst() {
                monitor.unlock()
                // The job's memory is the request's: not to be looked at any more once it is completed.
                let done = unsafe job.pointee.done
                let accepted = unsafe Request(
                    job.pointee.request, queue: job.pointee.queue, complete: job.pointee.complete)
                let status = unsafe disk?.perform(accepted, done: done) ?? -ENODEV
                accepted.complete(Outcome(status: status))
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
