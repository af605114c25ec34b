// SPDX-License-Identifier: BSD-2-Clause
// Changes in images with extended L2 entries, where each of the 32 subclusters of a cluster has data, reads as zeroes, or shows what
// lies below.
import ImageCore
import ImageWriting
import QCOW2

extension ImageEngine {
    /// Where all bytes of a write go, as ``placeOfWrite(_:_:)``. A whole reserved cluster reads as zeroes, so all of its
    /// subclusters are published together.
    func placeBySubclusters(
        _ piece: ClusterMap.Piece, _ indexes: ClosedRange<Int>, _ offset: UInt64, _ length: UInt64
    ) -> Place {
        let within = offset & (map.clusterSize - 1)
        let first = piece[indexes.lowerBound]
        if first.isOwn {
            var (expected, start, left) = (first.place, within, length)
            for index in indexes {
                let (entry, end) = (piece[index], min(start + left, map.clusterSize))
                let touched = SubclusterMask(touchedBy: start..<end, bits: geometry.subclusterBits)
                guard entry.isOwn, entry.place == expected, touched.isSubset(of: entry.allocated) else {
                    return .engine
                }
                expected += map.clusterSize
                (start, left) = (0, left - (end - start))
            }
            return .file(first.place + within)
        }
        let hasLower = offset - within < below?.size ?? 0
        for index in indexes {
            let entry = piece[index]
            guard entry.raw == 0, hasLower ? entry.bitmap == L2Entry.allZeroed : entry.allocated.isEmpty else {
                return .engine
            }
        }
        guard let place = takeNow(UInt64(indexes.count)) else { return .engine }
        let start = place << map.clusterBits
        guard publish(piece, indexes, from: start, bitmap: L2Entry.allAllocated) == 0 else { return .engine }
        return .file(start + within)
    }

    /// A discard gives subclusters up.
    func discards(_ part: Range<UInt64>, of cluster: UInt64) -> Bool {
        geometry.isExtended && !covered(part, of: cluster).isEmpty
    }

    /// The subclusters that bytes of a cluster cover. What lies behind the end of the disk is nobody's.
    private func covered(_ part: Range<UInt64>, of cluster: UInt64) -> SubclusterMask {
        let reachesEnd = cluster << geometry.clusterBits + part.upperBound >= size
        let end = reachesEnd ? geometry.clusterSize : part.upperBound
        return SubclusterMask(coveredBy: part.lowerBound..<end, bits: geometry.subclusterBits)
    }

    /// Changes a part of one cluster, whose L2 table may be changed.
    func stepBySubclusters(_ change: inout Change, _ part: Range<UInt64>, at cluster: UInt64) throws(ImageError) {
        var touched = SubclusterMask(touchedBy: part, bits: geometry.subclusterBits)
        switch change.operation.kind {
        case .read: return
        case .write: break
        case .discard:
            _ = try zero(covered(part, of: cluster), of: cluster, mayFree: true)
            return
        case .zeroes(let mayFree):
            // Whole subclusters by their bits; what is left of the others, and of what has no bits, by data.
            let covered = covered(part, of: cluster)
            let entry = try zero(covered, of: cluster, mayFree: mayFree)
            if !entry.isCompressed { touched.subtract(covered) }
            touched.subtract(rules(at: cluster).zeroReading(entry))
            if touched.isEmpty { return }
        }
        while true {
            let (piece, entry) = try lockEntry(cluster)
            let plan = rules(at: cluster).planData(touched, entry)
            if change.isFill, !entry.isOwn {
                // What it holds is not enough for anything else. Nobody but damage takes a cluster away.
                map.unlock(piece)
                throw ImageError(.corrupt, "an L2 entry lost its cluster")
            }
            guard needsCluster(plan) else {
                try follow(plan, entry, piece, cluster, part, touched, &change)
                return
            }
            if let taken = takeIfThere() {
                try follow(plan, entry, piece, cluster, part, touched, taken, &change)
                return
            }
            map.unlock(piece)
            try refill()
        }
    }

    /// A cluster is the disk's alone, whatever its subclusters have.
    func isOwn(_ cluster: UInt64) throws(ImageError) -> Bool {
        guard map.l1Entry(Int(cluster >> geometry.l2Bits)) & L2Entry.copied != 0 else { return false }
        let (piece, entry) = try lockEntry(cluster)
        map.unlock(piece)
        return entry.isOwn
    }

    /// The piece of a cluster, locked, and its entry, which is one that there can be.
    private func lockEntry(_ cluster: UInt64) throws(ImageError) -> (ClusterMap.Piece, L2Entry) {
        let piece = try lockPiece(cluster)
        let entry = piece[map.index(cluster)]
        guard let fault = entry.bitmapFault else { return (piece, entry) }
        let words = "\(fault) (the entry at offset \(piece.offset(of: map.index(cluster))) of the file)"
        map.unlock(piece)
        damaged(words)
        throw .damaged(words)
    }

    /// Lets whole subclusters read as zeroes, where their bits can say it.
    ///
    /// - Returns: the entry then.
    private func zero(_ covered: SubclusterMask, of cluster: UInt64, mayFree: Bool) throws(ImageError) -> L2Entry {
        let (piece, entry) = try lockEntry(cluster)
        guard case .publish(let new, let frees) = rules(at: cluster).planZeroes(covered, entry, mayFree: mayFree) else {
            map.unlock(piece)
            return entry
        }
        let code = put(new, piece, map.index(cluster))
        map.unlock(piece)
        try check(code, "cannot write an L2 entry")
        if frees { unmap(entry) }
        return new
    }

    private func needsCluster(_ plan: SubclusterPlan) -> Bool {
        switch plan {
        case .fresh, .copy: true
        case .nothing, .inPlace, .fill, .publish: false
        }
    }

    /// Does what a plan says that needs no new cluster. The piece is locked, and unlocked here.
    private func follow(
        _ plan: SubclusterPlan, _ entry: L2Entry, _ piece: ClusterMap.Piece, _ cluster: UInt64, _ part: Range<UInt64>,
        _ touched: SubclusterMask, _ change: inout Change
    ) throws(ImageError) {
        map.unlock(piece)
        switch plan {
        case .inPlace(let place):
            try write(&change, part, touched, of: cluster, to: place)
        case .fill(let place, let missing, let new):
            guard place <= map.fileEnd, geometry.clusterSize <= map.fileEnd - place else {
                throw .damaged("an L2 entry points to offset \(place), which is not in the file")
            }
            change.publications.append(Publication(cluster: cluster, old: entry, new: new, filled: missing))
            try writeWhole(&change, part, missing, of: cluster, to: place)
            try write(&change, part, touched.subtracting(missing), of: cluster, to: place)
        case .nothing, .publish, .fresh, .copy: break
        }
    }

    /// Does what a plan says with a reserved cluster. The piece is locked, and unlocked here.
    private func follow(
        _ plan: SubclusterPlan, _ entry: L2Entry, _ piece: ClusterMap.Piece, _ cluster: UInt64, _ part: Range<UInt64>,
        _ touched: SubclusterMask, _ taken: UInt64, _ change: inout Change
    ) throws(ImageError) {
        let start = taken << geometry.clusterBits
        switch plan {
        case .fresh(let allocated):
            let index = map.index(cluster)
            let code = publish(piece, index...index, from: start, bitmap: UInt64(allocated.rawValue))
            map.unlock(piece)
            try check(code, "cannot write an L2 entry")
            try write(&change, part, touched, of: cluster, to: start)
        case .copy(let written, let allocated):
            map.unlock(piece)
            let new = L2Entry(L2Entry(own: start).raw, allocated: allocated)
            change.publications.append(Publication(cluster: cluster, old: entry, new: new))
            try writeWhole(&change, part, written, of: cluster, to: start)
            counters.copied.wrappingAdd(1, ordering: .relaxed)
        case .nothing, .inPlace, .fill, .publish: map.unlock(piece)
        }
    }

    // MARK: Data

    /// The bytes of a cluster that a run of subclusters takes.
    private func bytes(of run: Range<Int>) -> Range<UInt64> {
        UInt64(run.lowerBound) << geometry.subclusterBits..<UInt64(run.upperBound) << geometry.subclusterBits
    }

    /// Writes the operation's data, or zeroes, into subclusters that have data: nothing else of them, because others write there.
    private func write(
        _ change: inout Change, _ part: Range<UInt64>, _ subclusters: SubclusterMask, of cluster: UInt64,
        to place: UInt64
    ) throws(ImageError) {
        let bounce = try bounce(&change)
        for run in subclusters.runs {
            let piece = bytes(of: run).clamped(to: part)
            let range = Int(piece.lowerBound)..<Int(piece.upperBound)
            fill(bounce, range, from: change.operation, cluster)
            try check(
                bounce.reading(range) { storage.writeData($0, at: place + piece.lowerBound) }, "cannot write data")
        }
    }

    /// Writes whole subclusters where nobody reads yet: what the disk shows there now, and the operation's data in it.
    private func writeWhole(
        _ change: inout Change, _ part: Range<UInt64>, _ subclusters: SubclusterMask, of cluster: UInt64,
        to place: UInt64
    ) throws(ImageError) {
        let bounce = try bounce(&change)
        let start = cluster << geometry.clusterBits
        for run in subclusters.runs {
            let whole = bytes(of: run)
            let range = Int(whole.lowerBound)..<Int(whole.upperBound)
            let new = whole.clamped(to: part)
            if new != whole {
                let code = bounce.with(range) { memory in readLayers(&memory, at: start + whole.lowerBound) }
                try check(code, "cannot read what is copied")
            }
            if !new.isEmpty { fill(bounce, Int(new.lowerBound)..<Int(new.upperBound), from: change.operation, cluster) }
            try check(
                bounce.reading(range) { storage.writeData($0, at: place + whole.lowerBound) }, "cannot write a cluster")
        }
    }
}
