// SPDX-License-Identifier: BSD-2-Clause
// The inflated clusters that a queue used last: small reads one after the other inflate their cluster once.
import Glibc
import PluginKit
import QCOW2
import Synchronization

/// A few clusters in memory; for one thread.  The memory comes with the first compressed cluster.
@safe
final class InflatedClusters {
    private let file: ImageFile
    private let clusterSize: Int
    private let places: Int
    private var inflater: Inflater?
    private var memory: UnsafeMutableRawPointer?
    /// The place in the file of what each place has, or 0; and when it was used last.
    private var held: [(key: UInt64, used: UInt64)]
    private var clock: UInt64 = 0
    private let counters: QCOWCounters

    init(_ file: ImageFile, clusterSize: UInt64, counters: QCOWCounters) {
        self.counters = counters
        self.file = file
        self.clusterSize = Int(clusterSize)
        places = max(1, min(8, (512 << 10) / Int(clusterSize)))
        held = Array(repeating: (0, 0), count: places)
    }

    deinit { unsafe memory?.deallocate() }

    /// Copies `buffer.count` bytes from `start` of the cluster that is deflated at `place` of the file.
    func read(
        _ buffer: UnsafeMutableRawBufferPointer, from start: Int, at place: UInt64, length: Int
    ) throws(ReadFault) {
        let cluster = try unsafe inflated(place, length)
        guard start >= 0, start <= clusterSize, buffer.count <= clusterSize - start else {
            throw ReadFault(code: EIO, cause: "a read beyond its cluster", place: place)
        }
        unsafe buffer.copyMemory(from: UnsafeRawBufferPointer(start: cluster + start, count: buffer.count))
    }

    private func inflated(_ place: UInt64, _ length: Int) throws(ReadFault) -> UnsafeMutableRawPointer {
        clock &+= 1
        let base = try unsafe allocated(place)
        var oldest = 0
        for index in 0..<places {
            if held[index].key == place {
                held[index].used = clock
                return unsafe base + index * clusterSize
            }
            if held[index].used < held[oldest].used { oldest = index }
        }
        held[oldest] = (0, 0)
        let target = unsafe base + oldest * clusterSize
        // The deflated bytes are behind the places; a cluster that grew by it is stored as it is, so it is no longer.
        guard length <= clusterSize + 1024 else {
            throw ReadFault(code: EIO, cause: "its compressed cluster is longer than a cluster", place: place)
        }
        let input = unsafe UnsafeMutableRawBufferPointer(start: base + places * clusterSize, count: length)
        let code = unsafe file.read(input, at: place)
        guard code == 0 else {
            throw ReadFault(code: -code, cause: "its compressed cluster cannot be read", place: place)
        }
        let output = unsafe UnsafeMutableRawBufferPointer(start: target, count: clusterSize)
        guard unsafe inflater?.inflate(UnsafeRawBufferPointer(input), into: output) == true else {
            throw ReadFault(code: EIO, cause: "its compressed cluster is damaged", place: place)
        }
        counters.inflated.wrappingAdd(1, ordering: .relaxed)
        held[oldest] = (place, clock)
        return unsafe target
    }

    private func allocated(_ place: UInt64) throws(ReadFault) -> UnsafeMutableRawPointer {
        if let memory = unsafe memory { return unsafe memory }
        do throws(PluginError) {
            inflater = try Inflater()
        } catch {
            throw ReadFault(code: ENOMEM, cause: "no memory to inflate it", place: place)
        }
        let fresh = UnsafeMutableRawPointer.allocate(
            byteCount: (places + 1) * clusterSize + 1024, alignment: 4096)
        unsafe memory = unsafe fresh
        return unsafe fresh
    }
}
