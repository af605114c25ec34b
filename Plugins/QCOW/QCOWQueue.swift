// SPDX-License-Identifier: BSD-2-Clause
// A queue: one thread of the host that reads from the image, layer by layer, and sleeps while it does.
import Glibc
import ImageCore
import PluginKit
import QCOW2
import QCOWEngine
import Synchronization

/// Reads of one thread.
///
/// `@unchecked Sendable`: all of it is for the queue's thread.
final class QCOWQueue: StorageQueue, @unchecked Sendable {
    private unowned let device: QCOWDevice
    private let host: HostQueue
    private let number: Int
    private let file: ImageFile
    private let map: ClusterMap
    private let clusters: InflatedClusters
    private let diskSize: UInt64
    private let clusterMask: UInt64
    private let counters: QCOWCounters

    init(_ device: QCOWDevice, _ parameters: QueueParameters, cacheBytes: UInt64) throws(PluginError) {
        self.device = device
        host = parameters.queue
        number = parameters.index
        (file, counters) = (device.file, device.counters)
        let image = device.image
        let tables = CountedTables(file, counters)
        map = try examining { () throws(ImageError) in try ClusterMap(image, reading: tables, cacheBytes: cacheBytes) }
        clusters = InflatedClusters(file, clusterSize: image.header.clusterSize, counters: counters)
        (diskSize, clusterMask) = (image.size, image.header.clusterSize - 1)
    }

    /// Takes all of the requests and completes each in its turn.
    func submit(_ batch: inout RequestBatch) {
        while let request = batch.next() {
            let status = perform(request)
            request.complete(Outcome(status: status))
        }
    }

    /// Performs a read, which is all that the disk declares.
    private func perform(_ request: borrowing Request) -> Int32 {
        let (offset, length) = (request.offset, request.length)
        guard offset <= diskSize, length <= diskSize - offset else { return -EIO }
        var position = offset
        do throws(ReadFault) {
            var destination = BufferCursor(request)
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
            let code = unsafe backing.read(memory, at: position, queue: host)
            guard code == 0 else { throw ReadFault(code: -code, cause: "its backing file fails", place: position) }
        case .data(let place):
            let at = place + position - start
            let code = unsafe file.read(memory, at: at)
            guard code == 0 else { throw ReadFault(code: -code, cause: "its cluster cannot be read", place: at) }
        case .compressed(let place, let length):
            try unsafe clusters.read(memory, from: Int(position & clusterMask), at: place, length: length)
        case .encrypted(let place):
            let code = unsafe device.decryption?.read(memory, at: position, number: number) ?? -EIO
            guard code == 0 else { throw ReadFault(code: -code, cause: "libqcow cannot read it", place: place) }
        }
    }
}
