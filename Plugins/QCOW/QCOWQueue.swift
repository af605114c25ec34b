// SPDX-License-Identifier: BSD-2-Clause
// A queue: one thread of the host that reads from the image, layer by layer, and sleeps while it does.
import Glibc
import PluginAPI
import PluginKit
import Synchronization

/// Reads of one thread.
@safe
final class QCOWQueue {
    private unowned let device: QCOWDevice
    private let handle: OpaquePointer
    private let complete: HostComplete
    private let number: Int
    private let map: ClusterMap
    private let clusters: InflatedClusters
    private let layer: QCOWLayer
    private let clusterMask: UInt64
    private let counters: QCOWCounters

    init(_ device: QCOWDevice, handle: OpaquePointer, number: Int, cacheBytes: UInt64) {
        self.device = device
        unsafe self.handle = unsafe handle
        unsafe complete = unsafe device.host.complete
        self.number = number
        (layer, counters) = (device.layer, device.counters)
        map = ClusterMap(layer, cacheBytes: cacheBytes, counters: counters)
        clusters = InflatedClusters(layer, counters: counters)
        clusterMask = device.layer.header.clusterSize - 1
    }

    /// Takes all of the requests and completes each in its turn.
    func submit(_ requests: UnsafeBufferPointer<UnsafeMutablePointer<xbb_req>?>) {
        for index in requests.indices {
            guard let request = unsafe requests[index] else { continue }
            let status = unsafe perform(request)
            unsafe complete(handle, request, status)
        }
    }

    private func perform(_ request: UnsafeMutablePointer<xbb_req>) -> Int32 {
        guard unsafe Int(request.pointee.op) == XBB_OP_READ else {
            return unsafe Int(request.pointee.op) == XBB_OP_WRITE ? -EROFS : -EOPNOTSUPP
        }
        guard unsafe request.pointee.flags == 0 else { return -EINVAL }
        let (offset, length) = unsafe (request.pointee.offset, request.pointee.length)
        guard offset <= layer.size, length <= layer.size - offset else { return -EIO }
        var position = offset
        do throws(ReadFault) {
            var destination = unsafe Destination(request)
            while position < offset + length {
                let (extent, count) = try map.find(position, offset + length - position)
                let end = position + count
                while position < end {
                    let memory = unsafe destination.take(end - position)
                    guard memory.count > 0 else { return -EINVAL }
                    try unsafe fill(memory, from: extent, at: position, of: end - count)
                    position += UInt64(memory.count)
                }
            }
            return 0
        } catch {
            device.report(error, at: position)
            return -error.code
        }
    }

    /// Fills memory from an extent that begins at `start` of the disk.
    private func fill(
        _ memory: UnsafeMutableRawBufferPointer, from extent: Extent, at position: UInt64, of start: UInt64
    ) throws(ReadFault) {
        switch extent {
        case .zeroes:
            unsafe zero(memory)
        case .hole:
            guard let backing = device.backing else {
                unsafe zero(memory)
                return
            }
            counters.backingReads.wrappingAdd(1, ordering: .relaxed)
            let code = unsafe backing.read(memory, at: position, queue: handle)
            guard code == 0 else { throw ReadFault(code: -code, cause: "its backing file fails", place: position) }
        case .data(let place):
            let at = place + position - start
            let code = unsafe layer.file.read(memory, at: at)
            guard code == 0 else { throw ReadFault(code: -code, cause: "its cluster cannot be read", place: at) }
        case .compressed(let place, let length):
            try unsafe clusters.read(memory, from: Int(position & clusterMask), at: place, length: length)
        case .encrypted(let place):
            let code = unsafe device.decryption?.read(memory, at: position, number: number) ?? -EIO
            guard code == 0 else { throw ReadFault(code: -code, cause: "libqcow cannot read it", place: place) }
        }
    }
}
