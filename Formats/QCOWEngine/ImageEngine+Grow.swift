// SPDX-License-Identifier: BSD-2-Clause
// A disk that becomes larger while it is in use: first a table that is long enough, then the size.
import Glibc
import ImageCore
import ImageWriting
import QCOW2
import Synchronization

/// Waits in the place of an operation until the tables were looked through.
private final class ScanWaiter: EngineOperation {
    private let result = Atomic<Int32>(1)
    var kind: EngineOperationKind { .discard }
    var offset: UInt64 { 0 }
    var length: UInt64 { 0 }
    /// 0 or a negative errno, once it is done.
    var status: Int32 { result.load(ordering: .acquiring) }
    var isDone: Bool { status <= 0 }
    func copyData(to target: inout MutableRawSpan, from position: UInt64) {}
    func takeData(_ source: RawSpan, at position: UInt64) {}
    func finish(_ status: Int32) { result.store(status, ordering: .releasing) }
    func resume() { finish(0) }
}

/// Makes a part of the disk read as zeroes.
private final class TailZeroes: EngineOperation {
    private let engine: ImageEngine
    private let range: Range<UInt64>
    private let result = Atomic<Int32>(1)
    var kind: EngineOperationKind { .zeroes(mayFree: false) }
    var offset: UInt64 { range.lowerBound }
    var length: UInt64 { range.upperBound - range.lowerBound }
    /// 0 or a negative errno, once it is done.
    var status: Int32 { result.load(ordering: .acquiring) }
    var isDone: Bool { status <= 0 }
    init(_ engine: ImageEngine, _ range: Range<UInt64>) { (self.engine, self.range) = (engine, range) }
    func copyData(to target: inout MutableRawSpan, from position: UInt64) {}
    func takeData(_ source: RawSpan, at position: UInt64) {}
    func finish(_ status: Int32) { result.store(status, ordering: .releasing) }
    func resume() { _ = engine.perform(self) }
}

extension ImageEngine {
    /// Makes the disk `newSize` bytes long, a multiple of 512; what is new reads as zeroes. Control thread; may sleep.
    public func grow(to newSize: UInt64) throws(ImageError) {
        guard newSize % 512 == 0, newSize >= size else {
            throw ImageError(.unsupported, "a disk in an image can only grow, by whole sectors")
        }
        if newSize == size { return }
        guard failure == 0 else { throw ImageError(.unreadable(EIO), "nothing is written to this image any more") }
        guard image.header.snapshotCount == 0 || geometry.version >= 3 else {
            throw ImageError(
                .unsupported, "the image has snapshots of version 2, which do not say how large their disk was")
        }
        // Otherwise what lies below would come into sight behind the old end.
        guard (below?.size ?? 0) <= size else {
            throw ImageError(
                .unsupported, "the backing file is longer than the disk, and its end would come into sight")
        }
        let reach = geometry.clusterBits + geometry.l2Bits
        let entries = newSize >> reach + (newSize & (1 << reach - 1) == 0 ? 0 : 1)
        guard newSize <= UInt64(Int64.max), entries <= QCOWCheck.largestL1 / 8 else {
            throw ImageError(.tooLarge, "the L1 table of such a disk is too large; larger clusters need a smaller one")
        }
        try lookThrough()
        try prepare()
        try checkBehindEnd(entries)
        try zeroTail(upTo: newSize)
        if geometry.hasDataFile, data.size < newSize {
            try check(data.setSize(newSize), "cannot make the data file longer")
            map.setDataBytes(newSize)
        }
        try metadataLock.locked { () throws(ImageError) in
            if entries > l1Capacity { try moveL1(to: entries) }
            guard map.growL1(to: Int(entries)) else { throw ImageError(.tooLarge, "the L1 table is too large") }
            try check(storage.write(number: newSize, at: 24), "cannot write the header")
            try check(sync(), "cannot make the header durable")
        }
        byteCount.store(newSize, ordering: .releasing)
    }

    /// Refuses an image with tables behind the end of its disk, whose data would come into sight.
    private func checkBehindEnd(_ entries: UInt64) throws(ImageError) {
        let isClean = try metadataLock.locked { () throws(ImageError) -> Bool in
            let known = UInt64(map.l1Count)
            guard entries > known, l1Capacity > known else { return true }
            let rest = try storage.bytes(at: l1Offset + known * 8, count: Int(l1Capacity - known) * 8)
            return rest.allSatisfy { $0 == 0 }
        }
        let hasMore = try lastTableHasMore()
        guard isClean, !hasMore else {
            throw ImageError(
                .unsupported,
                "the image has data behind the end of the disk, which would come into sight; convert it: qemu-img convert "
                    + "-O qcow2 OLD NEW")
        }
    }

    /// The table of the disk's last cluster has entries behind that one.
    private func lastTableHasMore() throws(ImageError) -> Bool {
        var cluster = (size + geometry.clusterSize - 1) >> geometry.clusterBits
        // Where the next cluster has another table, the L1 entry tells.
        while cluster & (1 << geometry.l2Bits - 1) != 0 {
            let piece: ClusterMap.Piece?
            do throws(ReadFault) { piece = try map.lockPiece(of: cluster) } catch {
                throw ImageError(.unreadable(error.code), "\(error.cause)")
            }
            guard let piece else { return false }
            defer { map.unlock(piece) }
            let first = map.index(cluster)
            for index in first..<piece.count where piece[index].raw & ~L2Entry.copied != 0 || piece[index].bitmap != 0 {
                return true
            }
            cluster += UInt64(piece.count - first)
        }
        return false
    }

    /// The rest of the last cluster may have what was there before the disk was made smaller. Nobody knows the new size yet.
    private func zeroTail(upTo newSize: UInt64) throws(ImageError) {
        let old = size
        let end = min(newSize, (old + geometry.clusterSize - 1) & ~(geometry.clusterSize - 1))
        guard old < end, !geometry.hasDataFile else { return }
        byteCount.store(end, ordering: .releasing)
        let zeroes = TailZeroes(self, old..<end)
        _ = perform(zeroes)
        while !zeroes.isDone { if hasCommitter { usleep(1000) } else { commit() } }
        guard zeroes.status == 0 else {
            byteCount.store(old, ordering: .releasing)
            throw ImageError(.unreadable(-zeroes.status), "cannot zero the rest of the last cluster")
        }
    }

    /// A larger disk is a change too: it waits for the scan, and does it where nobody else does.
    private func lookThrough() throws(ImageError) {
        while waitsForScan, !isScanned.load(ordering: .acquiring) {
            guard failure == 0 else { throw ImageError(.unreadable(EIO), "nothing is written to this image any more") }
            let waiter = ScanWaiter()
            guard waitForScan(waiter) else { return }
            // Without a thread that commits this one does, and nothing may be in flight.
            while !waiter.isDone { if hasCommitter { usleep(1000) } else { commit() } }
            guard waiter.status == 0 else {
                throw ImageError(.unreadable(-waiter.status), "the tables of the image cannot be looked through")
            }
        }
    }

    /// R2: the longer table is durable before the header points to it; place and length are in one sector. With `metadataLock`.
    private func moveL1(to entries: UInt64) throws(ImageError) {
        // Room for a disk that grows again, up to a whole cluster.
        let clusters = geometry.clusters(of: entries * 8)
        let count = min(clusters << (geometry.clusterBits - 3), QCOWCheck.largestL1 / 8)
        let place = try ownRun(of: clusters) << geometry.clusterBits
        var table = [UInt8](repeating: 0, count: Int(count) * 8)
        // From the file: the map has not compared all flags with the refcounts.
        let words = try storage.bytes(at: l1Offset, count: min(map.l1Count, Int(count)) * 8)
        guard words.count == map.l1Count * 8 else { throw .damaged("the L1 table is not in the file") }
        table.replaceSubrange(0..<words.count, with: words)
        try check(storage.write(table[...], at: place), "cannot write the L1 table")
        try check(sync(), "cannot make the L1 table durable")
        // l1_size, 4 bytes at 36, and l1_table_offset, 8 bytes at 40.
        let fields = [count, place].bigEndianBytes.dropFirst(4)
        try check(storage.write(fields, at: 36), "cannot write the header")
        let old = l1Offset >> geometry.clusterBits
        let gone = old..<old + geometry.clusters(of: l1Capacity * 8)
        (l1Offset, l1Capacity) = (place, count)
        let first = place >> geometry.clusterBits
        allocator.metadata.insert(first..<first + clusters)
        try check(sync(), "cannot make the header durable")
        listLock.locked { unmapped += gone.map { FreedCluster(cluster: $0, isTable: true) } }
        wake()
    }

    /// Clusters that follow each other and are the image's, durably. With `metadataLock`.
    private func ownRun(of clusters: UInt64) throws(ImageError) -> UInt64 {
        for _ in 0..<4 {
            let runs = try allocator.own(clusters)
            if storage.isGrowable { map.fileEnd = max(map.fileEnd, storage.size) }
            try check(sync(), "cannot make refcounts durable")
            if runs.count == 1, let run = runs.first, UInt64(run.count) == clusters { return run.lowerBound }
            addToPool(runs)
        }
        throw ImageError(.unreadable(ENOSPC), "there is no room for a longer L1 table")
    }
}
