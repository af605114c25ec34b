// SPDX-License-Identifier: BSD-2-Clause
// A request on its way through the engine, and the mark that a queue leaves in a request's memory.
import FileKit
import Glibc
import PluginAPI
import PluginKit
import QCOWEngine

/// What a queue keeps in a request's memory behind the iocb or the job: the token of an I/O that goes straight to the file,
/// and where the request began on the disk.
enum RequestTag {
    /// Bytes of memory for each request.
    static let scratch = requestScratch + 16
    private static let none: UInt64 = .max

    /// The request is for the engine.
    static func clear(_ request: UnsafeMutablePointer<xbb_req>) {
        unsafe request.pointee.ctx?.storeBytes(of: none, toByteOffset: requestScratch, as: UInt64.self)
    }

    /// The request goes to `place` of the file.
    @inline(__always)
    static func set(_ request: UnsafeMutablePointer<xbb_req>, _ token: EngineToken, place: UInt64) {
        guard let memory = unsafe request.pointee.ctx else { return }
        unsafe memory.storeBytes(of: UInt64(token.number), toByteOffset: requestScratch, as: UInt64.self)
        unsafe memory.storeBytes(of: request.pointee.offset, toByteOffset: requestScratch + 8, as: UInt64.self)
        unsafe request.pointee.offset = place
    }

    /// Takes the mark away, and lets the request begin where it did; nil: it had none.
    @inline(__always)
    static func take(_ request: UnsafeMutablePointer<xbb_req>) -> EngineToken? {
        guard let memory = unsafe request.pointee.ctx else { return nil }
        let kept = unsafe memory.load(fromByteOffset: requestScratch, as: UInt64.self)
        guard kept != none else { return nil }
        unsafe request.pointee.offset = memory.load(fromByteOffset: requestScratch + 8, as: UInt64.self)
        unsafe memory.storeBytes(of: none, toByteOffset: requestScratch, as: UInt64.self)
        return EngineToken(number: UInt8(truncatingIfNeeded: kept))
    }

    /// The request goes straight to the file.
    static func isSet(on request: borrowing Request) -> Bool {
        guard let memory = unsafe request.scratch else { return false }
        return unsafe memory.load(fromByteOffset: requestScratch, as: UInt64.self) != none
    }
}

/// A request as the engine sees it.
///
/// `@unchecked Sendable`: one thread at a time has the operation; the request's memory is the host's until it is completed.
@safe
final class SlowOperation: EngineOperation, @unchecked Sendable {
    let kind: EngineOperationKind
    let offset: UInt64
    let length: UInt64
    private let request: UnsafeMutablePointer<xbb_req>
    private let queue: OpaquePointer?
    private let completion: HostComplete
    private unowned let device: QCOWDevice

    /// Takes a request that is not a flush.
    init(_ accepted: consuming Request, device: QCOWDevice) {
        (offset, length) = (accepted.offset, accepted.length)
        switch accepted.operation {
        case .read, .flush: kind = .read
        case .write: kind = .write
        case .writeZeroes: kind = .zeroes(mayFree: accepted.mayDeallocate)
        case .discard: kind = .discard
        }
        self.device = device
        unsafe (queue, completion) = unsafe (accepted.owner.queue, accepted.owner.complete)
        unsafe request = accepted.release()
    }

    func copyData(to target: inout MutableRawSpan, from position: UInt64) {
        let borrowed = unsafe Request(request, queue: queue, complete: completion)
        borrowed.copy(to: &target, from: position)
        unsafe _ = borrowed.release()
    }

    func takeData(_ source: RawSpan, at position: UInt64) {
        let borrowed = unsafe Request(request, queue: queue, complete: completion)
        borrowed.fill(from: source, at: position)
        unsafe _ = borrowed.release()
    }

    func finish(_ status: Int32) { unsafe completion(queue, request, status) }

    func resume() {
        guard let memory = unsafe request.pointee.ctx, let queue = unsafe queue else { return finish(-EIO) }
        let job = unsafe memory.assumingMemoryBound(to: Job.self)
        unsafe job.initialize(to: Job(request, queue: queue, complete: completion))
        var jobs = JobList()
        unsafe jobs.append(job)
        device.pool.push(jobs)
    }

    /// Does a read of a disk without an engine: 0 or a negative errno.
    func read(from device: QCOWDevice) -> Int32 {
        let borrowed = unsafe Request(request, queue: queue, complete: completion)
        var cursor = BufferCursor(borrowed)
        unsafe _ = borrowed.release()
        var done: UInt64 = 0
        while done < length {
            let memory = unsafe cursor.take(length - done)
            guard memory.count > 0 else { return -EINVAL }
            var span = unsafe memory.mutableBytes
            let code = device.read(into: &span, at: offset + done)
            if code != 0 { return code }
            done += UInt64(memory.count)
        }
        return 0
    }
}
