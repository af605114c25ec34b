// SPDX-License-Identifier: BSD-2-Clause
// A submission queue over Linux AIO: one io_submit per batch, completions read from the mapped ring.
//
// Everything here runs on the queue's thread.  Nothing on the way of a read or write allocates, locks or counts
// references: the iocb lies in the request's scratch memory, and the queue is reached by pointer.
import CAIO
import CLinux
import Glibc
import PluginAPI
import PluginKit
import Synchronization

/// Scratch memory per request: an iocb while the kernel has the request, a `Job` while a helper thread has it.
public let requestScratch = 64

/// The state of one queue.  It has a place in memory of its own, so that what the kernel and the host call reach it without
/// counting references.
@safe
package struct IOQueue: ~Copyable {
    private let handle: OpaquePointer
    private let complete: HostComplete
    private let fd: Int32
    private let pool: Unmanaged<HelperPool>
    /// nil: every request goes to the helper threads.
    private let context: io_context_t?
    /// Requests that the context has room for.
    private let contextDepth: Int
    private let isRingReadable: Bool
    private let completionFD: Int32
    private let batch: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>
    private let events: UnsafeMutablePointer<io_event>
    private let capacity: Int
    /// Bytes of the disk now; a request behind it fails here, so that a write cannot make a shrunken file grow again.
    private let size: UnsafeMutablePointer<Atomic<UInt64>>
    package let counters: UnsafeMutablePointer<QueueCounters>

    private static let eventRoom = 128

    /// A queue for at most `depth` requests in flight. Where the kernel has no room for them, `refused` gets its errno, and
    /// threads serve the queue.
    package init(
        handle: OpaquePointer, complete: @escaping HostComplete, fd: Int32, pool: HelperPool, depth: Int,
        isAsynchronous: Bool, size: UnsafeMutablePointer<Atomic<UInt64>>, counters: UnsafeMutablePointer<QueueCounters>,
        refused: (Int32) -> Void
    ) throws(PluginError) {
        var context: io_context_t?
        var contextDepth = 0
        var completionFD: Int32 = -1
        if isAsynchronous {
            let code: Int32
            unsafe (code, context, contextDepth) = unsafe KernelContexts.take(
                depth: min(depth, AsynchronousRoom.depth))
            if code != 0 {
                unsafe context = nil
                refused(code)
            }
        }
        if unsafe context != nil {
            completionFD = eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
            guard completionFD >= 0 else {
                let failure = PluginError(system: "eventfd")
                if let context = unsafe context { unsafe KernelContexts.giveBack(context, depth: contextDepth) }
                throw failure
            }
        }
        unsafe self.handle = unsafe handle
        unsafe self.complete = unsafe complete
        self.fd = fd
        unsafe self.pool = unsafe Unmanaged.passUnretained(pool)
        unsafe self.context = unsafe context
        self.contextDepth = contextDepth
        unsafe isRingReadable = caio_ring_readable(context)
        self.completionFD = completionFD
        unsafe batch = .allocate(capacity: depth)
        unsafe batch.initialize(repeating: nil, count: depth)
        unsafe events = .allocate(capacity: IOQueue.eventRoom)
        unsafe events.initialize(repeating: io_event(), count: IOQueue.eventRoom)
        capacity = depth
        unsafe self.size = unsafe size
        unsafe self.counters = unsafe counters
    }

    deinit {
        if let context = unsafe context {
            unsafe KernelContexts.giveBack(context, depth: contextDepth)
            close(completionFD)
        }
        unsafe batch.deallocate()
        unsafe events.deallocate()
    }

    /// The eventfd that the kernel signals, or nil for a queue of helper threads.
    package var watchedFD: Int32? { completionFD >= 0 ? completionFD : nil }

    /// Requests that were begun so far, by the kernel or by helper threads.
    package var submitted: UInt64 {
        unsafe counters.pointee.submitted.load(ordering: .relaxed)
            &+ counters.pointee.pooled.load(ordering: .relaxed)
    }

    /// Accepts a prefix of the batch, whose iocbs go to the kernel in one call.
    package mutating func submit(_ requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>, _ count: Int) -> Int {
        var accepted = unsafe context == nil ? count : min(count, capacity)
        var prepared = 0
        var others = JobList()
        for index in 0..<accepted {
            guard let request = unsafe requests[index] else { continue }
            guard let scratch = unsafe request.pointee.ctx else {
                unsafe complete(handle, request, -EINVAL)
                continue
            }
            let refusal = unsafe refusal(of: request)
            if refusal == 0, unsafe prepare(request, scratch.assumingMemoryBound(to: iocb.self)) {
                unsafe batch[prepared] = unsafe scratch.assumingMemoryBound(to: iocb.self)
                prepared += 1
            } else {
                unsafe others.append(job(in: scratch, request, index: index, status: refusal))
            }
        }
        if prepared > 0, let held = unsafe send(prepared) {
            for index in 0..<accepted where unsafe requests[index] == held {
                accepted = index
                break
            }
        }
        if others.count > 0 { dispatch(others, before: accepted) }
        return accepted
    }

    /// Completes what the kernel has finished, without sleeping.
    ///
    /// - Returns: how many requests left this queue's kernel context.
    package mutating func reap() -> Int {
        guard let context = unsafe context else { return 0 }
        var total = 0
        while true {
            let taken =
                isRingReadable
                ? unsafe Int(caio_ring_take(context, events, UInt32(IOQueue.eventRoom))) : unsafe askKernel(context)
            for index in 0..<taken { unsafe finish(events[index]) }
            total &+= taken
            if taken < IOQueue.eventRoom { break }
        }
        if total > 0 { unsafe QueueCounters.add(counters.pointee.completions, UInt64(total)) }
        return total
    }

    /// Apart, so that the usual way needs no room for it.
    @inline(never)
    private func askKernel(_ context: io_context_t) -> Int {
        var now = timespec(tv_sec: 0, tv_nsec: 0)
        return unsafe max(Int(io_getevents(context, 0, IOQueue.eventRoom, events, &now)), 0)
    }

    /// The eventfd became readable.
    package mutating func completionsAreReady() {
        caio_drain(completionFD)
        _ = reap()
    }

    /// 0, or the error for an operation or flag that is not known, which must not pass in silence, or for a place
    /// that is not there any more.
    private func refusal(of request: UnsafeMutablePointer<xbb_req>) -> Int32 {
        let known: Int
        switch unsafe Int(request.pointee.op) {
        case XBB_OP_READ, XBB_OP_FLUSH: known = 0
        case XBB_OP_WRITE: known = XBB_REQ_FUA
        case XBB_OP_DISCARD: known = XBB_REQ_FUA | XBB_REQ_SECURE
        case XBB_OP_WRITE_ZEROES: known = XBB_REQ_FUA | XBB_REQ_MAY_UNMAP | XBB_REQ_NO_FALLBACK
        default: return -EOPNOTSUPP
        }
        guard unsafe Int(request.pointee.flags) & ~known == 0 else { return -EINVAL }
        let (end, overflow) = unsafe request.pointee.offset.addingReportingOverflow(request.pointee.length)
        return unsafe overflow || end > size.pointee.load(ordering: .relaxed) ? -EIO : 0
    }

    /// Fills in the iocb; false if the request is one for the helper threads.
    private func prepare(_ request: UnsafeMutablePointer<xbb_req>, _ block: UnsafeMutablePointer<iocb>) -> Bool {
        guard unsafe context != nil else { return false }
        switch unsafe Int(request.pointee.op) {
        case XBB_OP_READ:
            unsafe caio_prepare(
                block, false, fd, request.pointee.iov, request.pointee.iovcnt, request.pointee.offset, 0, completionFD,
                request)
        case XBB_OP_WRITE:
            let isForced = unsafe Int(request.pointee.flags) & XBB_REQ_FUA != 0
            unsafe caio_prepare(
                block, true, fd, request.pointee.iov, request.pointee.iovcnt, request.pointee.offset,
                isForced ? clinux_RWF_DSYNC : 0, completionFD, request)
        default:
            return false
        }
        return true
    }

    /// Gives `batch[0 ..< prepared]` to the kernel.
    ///
    /// The kernel takes a prefix; an error belongs to the first iocb that it did not take, and to that one alone,
    /// except for EAGAIN: the request then stays with the host.
    ///
    /// - Returns: the first request that the kernel has no room for, or nil.
    private mutating func send(_ prepared: Int) -> UnsafeMutablePointer<xbb_req>? {
        var sent = 0
        while sent < prepared {
            let result = unsafe Int(io_submit(context, prepared - sent, batch + sent))
            unsafe QueueCounters.add(counters.pointee.submitCalls, 1)
            if result > 0 {
                unsafe QueueCounters.add(counters.pointee.submitted, UInt64(result))
                sent += result
                continue
            }
            guard let block = unsafe batch[sent],
                let request = unsafe block.pointee.data?.assumingMemoryBound(to: xbb_req.self)
            else { return nil }
            if result == 0 || result == -Int(EAGAIN) { return unsafe request }
            sent += 1
            unsafe complete(handle, request, Int32(truncatingIfNeeded: result))
        }
        return nil
    }

    /// Completes or hands to the helper threads those jobs that lie before `limit` in the batch.
    private func dispatch(_ jobs: JobList, before limit: Int) {
        var rest = jobs
        var pooled = JobList()
        while let job = unsafe rest.removeFirst() {
            if unsafe Int(job.pointee.index) >= limit { continue }
            if unsafe job.pointee.status == 0 {
                unsafe pooled.append(job)
            } else {
                unsafe complete(handle, job.pointee.request, job.pointee.status)
            }
        }
        push(pooled)
    }

    private func push(_ jobs: JobList) {
        unsafe QueueCounters.add(counters.pointee.pooled, UInt64(jobs.count))
        unsafe pool._withUnsafeGuaranteedRef { $0.push(jobs) }
    }

    private func job(
        in scratch: UnsafeMutableRawPointer, _ request: UnsafeMutablePointer<xbb_req>, index: Int, status: Int32,
        done: UInt64 = 0
    ) -> UnsafeMutablePointer<Job> {
        let job = unsafe scratch.assumingMemoryBound(to: Job.self)
        unsafe job.initialize(
            to: Job(
                next: nil, request: request, queue: handle, complete: complete, done: done,
                index: UInt32(truncatingIfNeeded: index),
                status: status))
        return unsafe job
    }

    private func finish(_ event: io_event) {
        guard let request = unsafe event.data?.assumingMemoryBound(to: xbb_req.self) else { return }
        let result = unsafe Int(bitPattern: event.res)
        if unsafe result >= 0 && UInt64(result) != request.pointee.length {
            // A read at the end of a file that shrank: there is nothing to read again.
            guard unsafe result > 0 || Int(request.pointee.op) == XBB_OP_WRITE, let scratch = unsafe request.pointee.ctx
            else { return unsafe complete(handle, request, -EIO) }
            // Something stopped the transfer half way; doing the rest alone brings the reason to light.
            var rest = JobList()
            unsafe rest.append(job(in: scratch, request, index: 0, status: 0, done: UInt64(result)))
            unsafe QueueCounters.add(counters.pointee.partial, 1)
            push(rest)
            return
        }
        unsafe complete(handle, request, Int32(truncatingIfNeeded: min(result, 0)))
    }
}
