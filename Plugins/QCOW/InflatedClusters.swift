// SPDX-License-Identifier: BSD-2-Clause
// The inflated clusters that a disk used last: small reads one after the other inflate their cluster once, whoever does them.
import Glibc
import ImageCore
import ImageKit
import ImageWriting
import PluginKit
import QCOW2
import Synchronization

/// A few clusters in memory, shared by all threads of a disk. The memory comes with the first compressed cluster.
///
/// A thread inflates under the lock of a place, so who wants the same cluster waits for it, and others go to other places.
final class InflatedClusters: Sendable {
    private let file: ImageFile
    private let clusterSize: Int
    private let compression: Compression
    private let counters: QCOWCounters
    private let places: [Place]
    private let directory: Mutex<Directory>

    /// Which cluster each place has, or gets.
    private struct Directory {
        /// The place in the file, or 0; and when it was used last.
        var held: [(key: UInt64, used: UInt64)]
        var clock: UInt64 = 0
    }

    init(_ file: ImageFile, _ header: QCOWHeader, counters: QCOWCounters) {
        let clusterSize = header.clusterSize
        // Others were refused when the header was judged.
        compression = Compression(rawValue: header.compression) ?? .deflate
        self.counters = counters
        self.file = file
        self.clusterSize = Int(clusterSize)
        let count = Int(InflatedRoom.places(clusterSize))
        places = (0..<count).map { _ in Place() }
        directory = Mutex(Directory(held: Array(repeating: (0, 0), count: count)))
    }

    /// Fills `buffer` from `start` of the cluster that is deflated at `place` of the file: 0 or a negative errno.
    func read(_ buffer: inout MutableRawSpan, from start: Int, at place: UInt64, length: Int) -> Int32 {
        guard start >= 0, start <= clusterSize, buffer.byteCount <= clusterSize - start else { return -EIO }
        let index = directory.withLock { directory in
            directory.clock &+= 1
            let found = directory.held.firstIndex { $0.key == place }
            let index = found ?? directory.held.indices.min { directory.held[$0].used < directory.held[$1].used } ?? 0
            directory.held[index] = (place, directory.clock)
            return index
        }
        let holder = places[index]
        return holder.locked {
            if holder.key != place {
                let code = inflate(place, length, into: holder)
                guard code == 0 else { return code }
            }
            guard let base = unsafe holder.memory else { return -ENOMEM }
            unsafe buffer.withUnsafeMutableBytes { target in
                unsafe target.copyMemory(from: UnsafeRawBufferPointer(start: base + start, count: target.count))
            }
            return 0
        }
    }

    /// A cluster at this place of the file is another one now.
    private func inflate(_ place: UInt64, _ length: Int, into holder: Place) -> Int32 {
        holder.key = 0
        // A cluster that grew by it is stored as it is, so it is no longer.
        guard length <= clusterSize + 1024 else { return -EIO }
        if unsafe holder.memory == nil {
            do throws(PluginError) { holder.inflater = try Inflater(compression) } catch { return -ENOMEM }
            unsafe holder.memory = .allocate(byteCount: Int(InflatedRoom.bytes(UInt64(clusterSize))), alignment: 4096)
        }
        guard let base = unsafe holder.memory else { return -ENOMEM }
        let input = unsafe UnsafeMutableRawBufferPointer(start: base + clusterSize, count: length)
        let code = unsafe file.read(input, at: place)
        guard code == 0 else { return code }
        let output = unsafe UnsafeMutableRawBufferPointer(start: base, count: clusterSize)
        guard unsafe holder.inflater?.inflate(UnsafeRawBufferPointer(input), into: output) == true else { return -EIO }
        counters.inflated.wrappingAdd(1, ordering: .relaxed)
        holder.key = place
        return 0
    }

    /// One cluster.
    ///
    /// `@unchecked Sendable`: all of it is under the lock.
    @safe
    private final class Place: @unchecked Sendable {
        private let lock = Mutex(())
        /// The place in the file of what `memory` has; 0: nothing.
        var key: UInt64 = 0
        var memory: UnsafeMutableRawPointer?
        var inflater: Inflater?

        deinit { unsafe memory?.deallocate() }

        func locked(_ body: () -> Int32) -> Int32 { lock.withLock { _ in body() } }
    }
}
