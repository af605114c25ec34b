// SPDX-License-Identifier: BSD-2-Clause
// Which clusters of the file are free, and the order in which one becomes the image's and ceases to be.
import Glibc
import ImageCore
import ImageWriting
import QCOW2

/// The refcounts of an image and what is known of its free clusters, for one thread at a time.
struct Allocator: ~Copyable {
    let storage: any ImageStorage
    let geometry: QCOWGeometry
    var refcounts: RefcountStore
    /// Header, tables and blocks: no data of a guest may stand there.
    var metadata: ClusterSet
    /// All clusters that are referred to, reserved, or on their way to be free; known once the scan has begun.
    var used = ClusterSet()
    /// Clusters to which a snapshot refers, which nothing changes; known when the scan is over.
    var inSnapshots = ClusterSet()
    /// ``used`` has everything, so what it lacks below `end` is free.
    var knowsFree = false
    /// The first cluster behind all that is in use.
    private(set) var end: UInt64
    /// Where the search for free clusters goes on.
    private var cursor: UInt64 = 0

    init(_ storage: any ImageStorage, _ header: QCOWHeader, metadata: ClusterSet) throws(ImageError) {
        self.storage = storage
        geometry = QCOWGeometry(header)
        refcounts = try RefcountStore(storage, header)
        self.metadata = metadata
        end = geometry.clusters(of: storage.size)
    }

    /// All that is in use is known.
    mutating func learned() {
        knowsFree = true
        learnEnd()
    }

    // MARK: Refcounts that are written anew

    /// All that is in use is known, and where it ends.
    mutating func learnEnd() {
        // The end of a device says nothing about what is in use.
        if !storage.isGrowable { end = used.highest.map { $0 + 1 } ?? 1 }
    }

    /// Makes a refcount block that an image lacks, behind all that is in use. Its own refcount is not written yet.
    mutating func addMissingBlock(_ block: Int) throws(ImageError) {
        guard block < refcounts.table.count, end < refcounts.capacity else {
            throw .damaged("it was not closed, and its refcount table is too short for its clusters")
        }
        let place = end
        if storage.isGrowable {
            try check(storage.setSize((place + 1) << geometry.clusterBits), "cannot make the file longer")
        } else if (place + 1) << geometry.clusterBits > storage.size {
            throw ImageError(.unreadable(ENOSPC), "there is no room for a refcount block")
        }
        refcounts.addBlock(block, at: place << geometry.clusterBits)
        // Whether the file refers to it after an error is not known, so nothing else comes to this place.
        end = place + 1
        do throws(ImageError) {
            try refcounts.write()
            try check(storage.sync(), "cannot make the refcounts durable")
            try refcounts.publishBlocks(block..<block + 1)
        } catch {
            refcounts.removeBlock(block)
            throw error
        }
        metadata.insert(place)
        used.insert(place)
    }

    // MARK: R1: own

    /// Makes at most `wanted` clusters the image's, at least one: refcount 1, in the file, and reading as zeroes. They may be
    /// referred to when the storage was synced after this.
    mutating func own(_ wanted: UInt64) throws(ImageError) -> [Range<UInt64>] {
        if knowsFree {
            let found = try reuse(wanted)
            if !found.isEmpty { return found }
        }
        do throws(ImageError) {
            return try append(wanted)
        } catch {
            refcounts.forgetChanges()
            throw error
        }
    }

    private mutating func reuse(_ wanted: UInt64) throws(ImageError) -> [Range<UInt64>] {
        guard used.count < end else { return [] }
        var found = ClusterRuns()
        var start = cursor
        var hasWrapped = false
        while found.count < wanted {
            guard let cluster = used.firstAbsent(in: start..<end) else {
                if hasWrapped { break }
                (start, hasWrapped) = (0, true)
                continue
            }
            if hasWrapped, cluster >= cursor { break }
            start = cluster + 1
            guard refcounts.hasBlock(for: cluster) else { continue }
            found.add(cluster..<cluster + 1)
        }
        cursor = start
        let runs = found.takeAll()
        do throws(ImageError) {
            // A file may end within its last cluster.
            if storage.isGrowable, runs.last?.upperBound == end, storage.size < end << geometry.clusterBits {
                try check(storage.setSize(end << geometry.clusterBits), "cannot make the file longer")
            }
            for run in runs {
                try zero(run)
                for cluster in run { try refcounts.set(cluster, to: 1) }
            }
            try refcounts.write()
        } catch {
            refcounts.forgetChanges()
            throw error
        }
        for run in runs { used.insert(run) }
        return runs
    }

    private mutating func append(_ wanted: UInt64) throws(ImageError) -> [Range<UInt64>] {
        let limit =
            storage.isGrowable ? QCOWCheck.largestFile >> geometry.clusterBits : storage.size >> geometry.clusterBits
        if end >= refcounts.capacity { try growTable(limit) }
        var (cluster, found, fresh) = (end, ClusterRuns(), [Int]())
        do throws(ImageError) {
            while found.count < wanted, cluster < min(limit, refcounts.capacity) {
                let block = Int(cluster >> geometry.blockBits)
                if !refcounts.hasBlock(for: cluster) {
                    // A block stands in the range that it counts, and counts itself.
                    refcounts.addBlock(block, at: cluster << geometry.clusterBits)
                    fresh.append(block)
                } else if try refcounts.count(of: cluster) == 0 {
                    found.add(cluster..<cluster + 1)
                } else {
                    // A leak behind the end of the file.
                    cluster += 1
                    continue
                }
                try refcounts.set(cluster, to: 1)
                cluster += 1
            }
            guard found.count > 0 else { throw ImageError(.unreadable(ENOSPC), "there is no room for a cluster") }
            try settle(end..<cluster, fresh)
        } catch {
            for block in fresh { refcounts.removeBlock(block) }
            undo(found.takeAll())
            throw error
        }
        let runs = found.takeAll()
        for block in fresh { metadata.insert(refcounts.table[block] >> geometry.clusterBits) }
        for block in fresh { used.insert(refcounts.table[block] >> geometry.clusterBits) }
        for run in runs { used.insert(run) }
        end = cluster
        return runs
    }

    /// R7: clusters that did not come to be. Where there was no room for a new block, the counts in another one may be in the file.
    private mutating func undo(_ runs: [Range<UInt64>]) {
        refcounts.forgetChanges()
        for cluster in runs.joined() where refcounts.hasBlock(for: cluster) {
            if (try? refcounts.count(of: cluster)) == 1 { try? refcounts.set(cluster, to: 0) }
        }
        // What cannot be written is a leak, which the scan of the next time finds.
        do throws(ImageError) { try refcounts.write() } catch { refcounts.forgetChanges() }
    }

    /// Puts the refcounts of new clusters into the file. New blocks are durable before the table refers to them (R2).
    private mutating func settle(_ clusters: Range<UInt64>, _ fresh: [Int]) throws(ImageError) {
        if storage.isGrowable {
            try check(storage.setSize(clusters.upperBound << geometry.clusterBits), "cannot make the file longer")
        } else {
            try zero(clusters)
        }
        try refcounts.write()
        guard !fresh.isEmpty else { return }
        try check(storage.sync(), "cannot make the refcounts durable")
        for block in fresh { try refcounts.publishBlocks(block..<block + 1) }
    }

    /// Makes the refcount table longer: the new one with the blocks that count it is durable before the header points to it,
    /// and the header is changed within a sector.
    private mutating func growTable(_ limit: UInt64) throws(ImageError) {
        let perCluster = geometry.tableEntriesPerCluster
        let (before, start) = (refcounts.table.count, end)
        let wanted = max(
            refcounts.tableClusters + refcounts.tableClusters / 2 + 1, end >> geometry.blockBits / perCluster + 1)
        let clusters = min(wanted, QCOWCheck.largestRefcountTable >> geometry.clusterBits)
        guard clusters > refcounts.tableClusters else {
            throw ImageError(.unreadable(EFBIG), "the refcount table of the image is as large as it may be")
        }
        refcounts.extend(to: Int(clusters * perCluster))
        var missing: [Int] = []
        while true {
            let last = start + clusters + UInt64(missing.count) - 1
            let lacking = (Int(start >> geometry.blockBits)...Int(last >> geometry.blockBits)).filter {
                $0 >= refcounts.table.count || refcounts.table[$0] == 0
            }
            if lacking.count <= missing.count { break }
            missing = lacking
        }
        let all = start..<start + clusters + UInt64(missing.count)
        do throws(ImageError) {
            guard all.upperBound <= limit, missing.allSatisfy({ $0 < refcounts.table.count }) else {
                throw ImageError(.unreadable(ENOSPC), "there is no room for a longer refcount table")
            }
            for (index, block) in missing.enumerated() {
                refcounts.addBlock(block, at: (start + clusters + UInt64(index)) << geometry.clusterBits)
            }
            for cluster in all { try refcounts.set(cluster, to: 1) }
            if storage.isGrowable {
                try check(storage.setSize(all.upperBound << geometry.clusterBits), "cannot make the file longer")
            }
            try refcounts.write()
            try refcounts.writeTable(at: start << geometry.clusterBits)
            try check(storage.sync(), "cannot make the refcount table durable")
            // Offset and clusters of the refcount table, as docs/interop/qcow2.txt has them at byte 48.
            let fields = [start << geometry.clusterBits, clusters << 32].bigEndianBytes.prefix(12)
            try check(storage.write(fields, at: 48), "cannot write the header")
        } catch {
            for block in missing where block < refcounts.table.count { refcounts.removeBlock(block) }
            refcounts.shrink(to: before)
            throw error
        }
        let old = refcounts.tableOffset >> geometry.clusterBits
        let gone = old..<old + refcounts.tableClusters
        // From here on memory and file say the same, also if the sync fails: then the disk fails.
        refcounts.moved(to: start << geometry.clusterBits, clusters: clusters)
        metadata.insert(all)
        used.insert(all)
        end = all.upperBound
        try check(storage.sync(), "cannot make the header durable")
        for cluster in gone {
            metadata.remove(cluster)
            try refcounts.set(cluster, to: 0)
            used.remove(cluster)
        }
        try refcounts.write()
    }

    // MARK: R5: free

    /// Takes one reference away from each of these clusters. The removal of their references is durable.
    ///
    /// - Returns: those that have none any more. They may be used again when the storage was synced after this.
    mutating func release(_ freed: [FreedCluster], givesBack: Bool) throws(ImageError) -> [UInt64] {
        var free: [UInt64] = []
        for entry in freed {
            let cluster = entry.cluster
            guard entry.isTable || !metadata.contains(cluster) else {
                throw .damaged("an L2 entry pointed to cluster \(cluster) of the file, where a table stands")
            }
            let count = try refcounts.count(of: cluster)
            guard count > 0 else { throw .damaged("cluster \(cluster) of the file was in use and has the refcount 0") }
            guard count > 1 || !inSnapshots.contains(cluster) else {
                throw .damaged("cluster \(cluster) of the file is a snapshot's too, and has the refcount 1")
            }
            try refcounts.set(cluster, to: count - 1)
            if count == 1 { free.append(cluster) }
        }
        try refcounts.write()
        free.sort()
        var runs = ClusterRuns()
        for cluster in free {
            metadata.remove(cluster)
            runs.add(cluster..<cluster + 1)
        }
        // A cluster is zeroed again before it is used, so what cannot be given back now is no fault.
        if givesBack { for run in runs.takeAll() { _ = try? zero(run) } }
        return free
    }

    /// They may be used again.
    mutating func recycle(_ clusters: [UInt64]) {
        for cluster in clusters { used.remove(cluster) }
    }

    /// Gives clusters back that were never referred to, and makes the file shorter where they stand at its end.
    mutating func giveBack(_ runs: [Range<UInt64>]) throws(ImageError) {
        for run in runs { for cluster in run { try refcounts.set(cluster, to: 0) } }
        try refcounts.write()
        try check(storage.sync(), "cannot make the refcounts durable")
        var shorter = end
        for run in runs.sorted(by: { $0.lowerBound > $1.lowerBound }) where run.upperBound == shorter {
            shorter = run.lowerBound
        }
        if storage.isGrowable, shorter < end, storage.size == end << geometry.clusterBits {
            try check(storage.setSize(shorter << geometry.clusterBits), "cannot make the file shorter")
            end = shorter
        }
        for run in runs { for cluster in run { used.remove(cluster) } }
    }

    /// R4: a range of clusters reads as zeroes.
    private func zero(_ run: Range<UInt64>) throws(ImageError) {
        try check(
            storage.zero(run.lowerBound << geometry.clusterBits, UInt64(run.count) << geometry.clusterBits),
            "cannot zero clusters of the image")
    }
}
