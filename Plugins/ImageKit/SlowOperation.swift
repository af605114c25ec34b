// SPDX-License-Identifier: BSD-2-Clause
// A request on its way through an engine.
import FileKit
import Glibc
import ImageCore
import ImageWriting
import PluginAPI
import PluginKit

/// A request as the engine sees it.
///
/// `@unchecked Sendable`: one thread at a time has the operation; the request's memory is the host's until it is completed.
@safe
package final class SlowOperation: EngineOperation, @unchecked Sendable {
    package let kind: EngineOperationKind
    package let offset: UInt64
    package let length: UInt64
    private let request: UnsafeMutablePointer<xbb_req>
    private let queue: OpaquePointer?
    private let completion: HostComplete
    private unowned let pool: HelperPool

    /// Takes a request that is not a flush; `pool` does it again when it has waited.
    package init(_ accepted: consuming Request, pool: HelperPool) {
        (offset, length) = (accepted.offset, accepted.length)
        switch accepted.operation {
        case .read, .flush: kind = .read
        case .write: kind = .write
        case .writeZeroes: kind = .zeroes(mayFree: accepted.mayDeallocate)
        case .discard: kind = .discard
        }
        self.pool = pool
        unsafe (queue, completion) = unsafe (accepted.owner.queue, accepted.owner.complete)
        unsafe request = accepted.release()
    }

    package func copyData(to target: inout MutableRawSpan, from position: UInt64) {
        let borrowed = unsafe Request(request, queue: queue, complete: completion)
        borrowed.copy(to: &target, from: position)
        unsafe _ = borrowed.release()
    }

    package func takeData(_ source: RawSpan, at position: UInt64) {
        let borrowed = unsafe Request(request, queue: queue, complete: completion)
        borrowed.fill(from: source, at: position)
        unsafe _ = borrowed.release()
    }

    package func finish(_ status: Int32) { unsafe completion(queue, request, status) }

    package func resume() {
        guard let memory = unsafe request.pointee.ctx, let queue = unsafe queue else { return finish(-EIO) }
        let job = unsafe memory.assumingMemoryBound(to: Job.self)
        unsafe job.initialize(to: Job(request, queue: queue, complete: completion))
        var jobs = JobList()
        unsafe jobs.append(job)
        pool.push(jobs)
    }

    /// Does a read with what fills a buffer from an offset of the disk: 0 or a negative errno.
    package func read(by fill: (_ buffer: inout MutableRawSpan, _ offset: UInt64) -> Int32) -> Int32 {
        let borrowed = unsafe Request(request, queue: queue, complete: completion)
        var cursor = BufferCursor(borrowed)
        unsafe _ = borrowed.release()
        var done: UInt64 = 0
        while done < length {
            let memory = unsafe cursor.take(length - done)
            guard memory.count > 0 else { return -EINVAL }
            var span = unsafe memory.mutableBytes
            let code = fill(&span, offset + done)
            if code != 0 { return code }
            done += UInt64(memory.count)
        }
        return 0
    }
}
