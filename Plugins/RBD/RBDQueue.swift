// SPDX-License-Identifier: BSD-2-Clause
// The way of requests to librbd and back, without an allocation of ours.
import CRBD
import Glibc
import PluginAPI
import PluginKit

/// A request in librbd; it lies in the request's scratch memory.
@safe
private struct Flight {
    let request: UnsafeMutablePointer<xbb_req>
    let queue: OpaquePointer?
    let complete: HostComplete
    /// What librbd returns when all of it was done: of a read its bytes.
    let expected: Int
    let device: Unmanaged<RBDDevice>
}

/// A queue: librbd's threads do the work, and complete requests there.
final class RBDQueue: StorageQueue {
    static var scratchBytes: Int { MemoryLayout<Flight>.size }
    private let device: RBDDevice

    init(_ device: RBDDevice) { self.device = device }

    func submit(_ batch: inout RequestBatch) {
        while let request = batch.next() { send(request) }
    }

    private func send(_ request: consuming Request) {
        guard let image = unsafe device.openImage, let scratch = unsafe request.scratch else {
            return request.complete(.ioError)
        }
        let (offset, length, operation) = (request.offset, request.length, request.operation)
        if operation == .writeZeroes, request.mustBeFast, !request.mayDeallocate {
            return request.complete(.unsupported)
        }
        let zeroes = request.mayDeallocate ? 0 : Int32(RBD_WRITE_ZEROES_FLAG_THICK_PROVISION)
        let count = Int(clamping: length)
        let vectors = unsafe request.vectors
        let (queue, complete) = unsafe request.owner
        let pointer = unsafe request.release()
        let flight = unsafe scratch.bindMemory(to: Flight.self, capacity: 1)
        unsafe flight.initialize(
            to: Flight(
                request: pointer, queue: queue, complete: complete, expected: operation == .read ? count : 0,
                device: Unmanaged.passUnretained(device)))
        var completion: rbd_completion_t?
        var code = unsafe rbd_aio_create_completion(scratch, finish, &completion)
        guard code == 0, let completion = unsafe completion else { return unsafe complete(queue, pointer, -ENOMEM) }
        switch operation {
        case .read:
            unsafe code = rbd_aio_readv(image, vectors.baseAddress, Int32(vectors.count), offset, completion)
        case .write:
            unsafe code = rbd_aio_writev(image, vectors.baseAddress, Int32(vectors.count), offset, completion)
        case .flush: unsafe code = rbd_aio_flush(image, completion)
        case .discard: unsafe code = rbd_aio_discard(image, offset, length, completion)
        case .writeZeroes: unsafe code = rbd_aio_write_zeroes(image, offset, count, completion, zeroes, 0)
        }
        if code < 0 {
            unsafe rbd_aio_release(completion)
            unsafe complete(queue, pointer, code)
        }
    }
}

/// librbd has done a request, on a thread of its own. A size that shrank meanwhile makes a read shorter.
private func finish(_ completion: rbd_completion_t?, _ argument: UnsafeMutableRawPointer?) {
    guard let argument = unsafe argument else { return }
    let flight = unsafe argument.assumingMemoryBound(to: Flight.self).pointee
    let result = unsafe Int(rbd_aio_get_return_value(completion))
    unsafe rbd_aio_release(completion)
    let status = result == flight.expected ? 0 : result < 0 ? Int32(clamping: result) : -EIO
    if status == -ESHUTDOWN { unsafe flight.device._withUnsafeGuaranteedRef { $0.clientWasBlocked() } }
    unsafe flight.complete(flight.queue, flight.request, status)
}
