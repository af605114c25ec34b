// SPDX-License-Identifier: BSD-2-Clause
// A device's own threads: for what would block a queue's thread, and for files that asynchronous I/O cannot serve.
//
// Jobs live in the scratch memory of their requests and are linked there, so that handing one over allocates nothing.
import CLinux
import Glibc
import PluginAPI

/// What is left to do for a request; lies in `xbb_req.ctx`.
@safe
struct Job {
    var next: UnsafeMutablePointer<Job>?
    var request: UnsafeMutablePointer<xbb_req>
    /// `xbb_hqueue`, which the request came by.
    var queue: OpaquePointer
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
final class HelperPool {
    private let lock: UnsafeMutablePointer<pthread_mutex_t>
    private let wake: UnsafeMutablePointer<pthread_cond_t>
    private let complete: HostComplete
    private var jobs = JobList()
    private var idle = 0
    private var stopping = false
    private var threads: [pthread_t] = []
    /// The owner; alive as long as a thread runs, because its `deinit` stops them.
    private unowned(unsafe) var device: StorageDevice?

    init(complete: @escaping HostComplete) {
        unsafe self.complete = complete
        unsafe lock = .allocate(capacity: 1)
        unsafe wake = .allocate(capacity: 1)
        unsafe lock.initialize(to: pthread_mutex_t())
        unsafe wake.initialize(to: pthread_cond_t())
        unsafe pthread_mutex_init(lock, nil)
        unsafe pthread_cond_init(wake, nil)
    }

    deinit {
        stop()
        unsafe pthread_cond_destroy(wake)
        unsafe pthread_mutex_destroy(lock)
        unsafe lock.deallocate()
        unsafe wake.deallocate()
    }

    var isRunning: Bool { !threads.isEmpty }

    func start(_ count: Int, for device: StorageDevice) throws(PluginError) {
        guard threads.isEmpty else { return }
        unsafe self.device = device
        for _ in 0..<max(count, 1) {
            var thread = pthread_t()
            let code = unsafe clinux_thread_start(
                &thread,
                { argument in
                    unsafe unboxed(argument, as: HelperPool.self)?.run()
                    return nil
                }, Unmanaged.passUnretained(self).toOpaque())
            guard code == 0 else {
                stop()
                throw PluginError(system: "cannot start a thread", code)
            }
            threads.append(thread)
        }
    }

    /// Finishes what was pushed, then joins the threads.
    func stop() {
        unsafe pthread_mutex_lock(lock)
        stopping = true
        unsafe pthread_cond_broadcast(wake)
        unsafe pthread_mutex_unlock(lock)
        for thread in threads { pthread_join(thread, nil) }
        threads.removeAll()
        stopping = false
    }

    func push(_ list: JobList) {
        guard list.count > 0 else { return }
        unsafe pthread_mutex_lock(lock)
        jobs.append(list)
        let sleepers = min(idle, list.count)
        unsafe pthread_mutex_unlock(lock)
        for _ in 0..<sleepers { unsafe pthread_cond_signal(wake) }
    }

    private func run() {
        unsafe pthread_mutex_lock(lock)
        while true {
            if let job = unsafe jobs.removeFirst() {
                unsafe pthread_mutex_unlock(lock)
                let request = unsafe job.pointee.request
                let queue = unsafe job.pointee.queue
                let status = unsafe device?.perform(request, done: job.pointee.done) ?? -ENODEV
                // The job's memory is the request's: not to be looked at any more after this.
                unsafe complete(queue, request, min(status, 0))
                unsafe pthread_mutex_lock(lock)
            } else if stopping {
                break
            } else {
                idle += 1
                unsafe pthread_cond_wait(wake, lock)
                idle -= 1
            }
        }
        unsafe pthread_mutex_unlock(lock)
    }
}
