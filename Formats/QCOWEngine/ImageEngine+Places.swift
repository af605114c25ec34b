// SPDX-License-Identifier: BSD-2-Clause
// The short way: a queue learns where data stand, without sleeping for a disk and without an allocation.
import ImageCore
import ImageWriting
import QCOW2

extension ClusterMap {
    /// Where all bytes of a read stand, above a layer of `lowerSize` bytes, if that is known without sleeping.
    @inline(__always)
    public func placeOfRead(_ offset: UInt64, _ length: UInt64, lowerSize: UInt64) -> Place {
        guard let (extent, count) = findNow(offset, length), count == length else { return .engine }
        switch extent {
        case .data(let place): return .file(place)
        case .zeroes: return .zeroes
        case .hole: return offset >= lowerSize ? .zeroes : .engine
        case .compressed, .encrypted: return .engine
        }
    }
}

extension ImageEngine {
    /// Where all bytes of a read stand. Between ``begin()`` and ``end(_:)``.
    public func placeOfRead(_ offset: UInt64, _ length: UInt64) -> Place {
        map.placeOfRead(offset, length, lowerSize: below?.size ?? 0)
    }

    /// Where all bytes of a write go. Clusters that have nothing and show zeroes are allocated here: a reserved cluster reads as
    /// zeroes too, so publishing it changes nothing that can be read, and the write follows like any other.
    ///
    /// Between ``begin()`` and ``end(_:)``.
    public func placeOfWrite(_ offset: UInt64, _ length: UInt64) -> Place {
        guard failure == 0, isPrepared.load(ordering: .acquiring) else { return .engine }
        if waitsForScan, !isScanned.load(ordering: .acquiring) { return .engine }
        let cluster = offset >> map.clusterBits
        guard let piece = map.tryPiece(of: cluster) else { return .engine }
        defer { map.unlock(piece) }
        guard piece.table & L2Entry.copied != 0 else { return .engine }
        let (first, last) = (
            map.index(cluster), map.index(cluster) + Int((offset + length - 1) >> map.clusterBits - cluster)
        )
        guard last < piece.count else { return .engine }
        if piece.isExtended { return placeBySubclusters(piece, first...last, offset, length) }
        let within = offset & (map.clusterSize - 1)
        if map.hasDataFile {
            // Each cluster has one place, which is that of the disk.
            for index in first...last {
                let home = (cluster + UInt64(index - first)) << map.clusterBits
                guard piece[index].raw == home | L2Entry.copied else { return .engine }
            }
            return .file(offset)
        }
        let entry = piece[first]
        if entry.isOwn {
            guard first == last || isRun(piece, first...last) else { return .engine }
            return .file(entry.place + within)
        }
        guard offset >= below?.size ?? 0 || entry.raw == L2Entry.zero else { return .engine }
        for index in first...last where !piece[index].isEmpty { return .engine }
        // A hole that begins in front of the end of what lies below shows data.
        if let below, cluster << map.clusterBits < below.size {
            for index in first...last where piece[index].raw == 0 { return .engine }
        }
        guard let place = takeNow(UInt64(last - first + 1)) else { return .engine }
        let start = place << map.clusterBits
        guard publish(piece, first...last, from: start) == 0 else { return .engine }
        return .file(start + within)
    }

    /// The entries are the image's own clusters, one behind the other.
    private func isRun(_ piece: ClusterMap.Piece, _ indexes: ClosedRange<Int>) -> Bool {
        var expected = piece[indexes.lowerBound].place
        for index in indexes {
            let entry = piece[index]
            guard entry.isOwn, entry.place == expected else { return false }
            expected += map.clusterSize
        }
        return true
    }

    /// Reserved clusters that follow each other, if there are any and nobody else takes one at this moment.
    func takeNow(_ count: UInt64) -> UInt64? {
        guard poolLock.tryLock() else { return nil }
        let taken = pool.take(count)
        let left = Int(clamping: pool.count)
        poolLock.unlock()
        poolCount.store(left, ordering: .relaxed)
        if left < reserveSize.load(ordering: .relaxed) / 2, !reserveFailed.load(ordering: .relaxed) { wake() }
        return taken
    }

    /// Lets entries of a piece point to reserved clusters, in cache and file; `bitmap` is the second word of extended ones.
    ///
    /// - Returns: 0 or a negative errno; the entries are as they were then.
    func publish(
        _ piece: ClusterMap.Piece, _ indexes: ClosedRange<Int>, from start: UInt64, bitmap: UInt64 = 0
    ) -> Int32 {
        func entry(_ index: Int) -> L2Entry {
            L2Entry(own: start + UInt64(index - indexes.lowerBound) << map.clusterBits, bitmap: bitmap)
        }
        let place = piece.offset(of: indexes.lowerBound)
        let code: Int32
        if indexes.count == 1, !piece.isExtended {
            code = storage.write(number: L2Entry(own: start).raw, at: place)
        } else {
            // Both words of an extended entry in one write: they stand in one sector.
            let words = indexes.flatMap { piece.isExtended ? [entry($0).raw, bitmap] : [entry($0).raw] }
            code = storage.write(words.bigEndianBytes, at: place)
        }
        guard code == 0 else {
            // What the file has now is read again before it is used.
            map.forget(piece)
            scrap(start >> map.clusterBits..<start >> map.clusterBits + UInt64(indexes.count), after: piece, indexes)
            return code
        }
        for index in indexes { piece[index] = entry(index) }
        counters.allocated.wrappingAdd(UInt64(indexes.count), ordering: .relaxed)
        return 0
    }

    /// Clusters that were to be published and could not be: they go back, unless the file refers to them nevertheless.
    private func scrap(_ clusters: Range<UInt64>, after piece: ClusterMap.Piece, _ indexes: ClosedRange<Int>) {
        guard
            let words = try? storage.nonZeroWords(
                at: piece.offset(of: indexes.lowerBound), count: indexes.count << Int(geometry.wordBits))
        else { return }
        let referred = words.filter { !piece.isExtended || $0.index & 1 == 0 }
            .map { L2Entry($0.word).place >> map.clusterBits }
        discardUnused(clusters.filter { !referred.contains($0) })
    }

    /// Clusters that were reserved and to which nothing in the file refers. They may have been written.
    func discardUnused(_ clusters: [UInt64]) {
        guard !clusters.isEmpty else { return }
        listLock.locked { unmapped += clusters.map { FreedCluster(cluster: $0, isTable: false) } }
        wake()
    }
}
