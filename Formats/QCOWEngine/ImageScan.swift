// SPDX-License-Identifier: BSD-2-Clause
// The scan of an image that is being written: which clusters are referred to, step by step beside the work of the guest.
//
// It finds what an unclean end left (clusters with a refcount to which nothing refers: they are given back), and damage that
// would be made worse by writing. Before it is over, clusters are only taken behind the end of the file.
import Glibc
import ImageCore
import QCOW2

/// How far a scan is.
struct ImageScan {
    enum Phase {
        /// The L2 tables of the disk, from this entry of the L1 table on.
        case active(Int)
        /// Those of a snapshot.
        case snapshot(Int, from: Int)
        /// All I/O that may have removed references meanwhile has to end; `turned`: that is waited for.
        case settling(turned: Bool)
        /// Refcounts without a reference, from this block on.
        case reclaim(Int)
    }

    var phase = Phase.active(0)
    /// The snapshots' L1 tables.
    let snapshots: [SnapshotEntry]
    /// The L1 table of the snapshot that is being read.
    var snapshotTable: [UInt64] = []
    /// Clusters with deflated data, which share them.
    var compressed = ClusterSet()
    /// Clusters of the file when it was opened: those behind are the engine's.
    let bound: UInt64
    /// Unknown extensions of the header may refer to clusters.
    let mayReclaim: Bool
    var reclaimed: UInt64 = 0

    init(_ image: QCOWImage, snapshots: SnapshotTable) {
        self.snapshots = snapshots.entries
        bound = QCOWGeometry(image.header).clusters(of: image.fileSize)
        mayReclaim = !image.header.hasUnknownExtensions
    }

    var isSettling: Bool { if case .settling = phase { true } else { false } }
}

extension ImageEngine {
    /// One step of the scan, for the committer.
    func goOnScanning() {
        guard case .settling(let turned)? = scan?.phase else {
            metadataLock.locked { step() }
            if isScanned.load(ordering: .acquiring) { resumeWaiters() }
            return
        }
        guard turned else {
            if waiting.isEmpty {
                grace.turn()
                scan?.phase = .settling(turned: true)
            }
            return
        }
        // A reference may be gone from the page cache only: its cluster is free when that is durable.
        guard grace.isQuiet, sync() == 0 else { return }
        metadataLock.locked {
            let onTheirWay = listLock.locked { unmapped } + released
            for cluster in onTheirWay { allocator.used.insert(cluster) }
            scan?.phase = .reclaim(0)
        }
    }

    /// With `metadataLock`.
    private func step() {
        do throws(ImageError) {
            switch scan?.phase {
            case .active(let index)?: try scanActive(from: index)
            case .snapshot(let number, let index)?: try scanSnapshot(number, from: index)
            case .reclaim(let block)?: try reclaim(block)
            case .settling?, nil: break
            }
        } catch {
            if case .unreadable = error.kind {
                // An error of the storage is not damage: the scan ends, and clusters are taken behind the end as before.
                finish(isComplete: false)
            } else {
                damaged(error.message)
            }
        }
    }

    private func scanActive(from index: Int) throws(ImageError) {
        if index == 0 { allocator.used.formUnion(allocator.metadata) }
        var index = index
        while index < map.l1Count {
            let table = map.l1Entry(index) & L2Entry.offsetMask
            index += 1
            guard table != 0 else { continue }
            try scanTable(table, isActive: true)
            break
        }
        scan?.phase = index < map.l1Count ? .active(index) : .snapshot(0, from: 0)
    }

    private func scanSnapshot(_ number: Int, from index: Int) throws(ImageError) {
        guard let snapshots = scan?.snapshots, number < snapshots.count else {
            scan?.phase = .settling(turned: false)
            return
        }
        let snapshot = snapshots[number]
        if index == 0 {
            var table: [UInt64] = []
            var done = 0
            while done < Int(snapshot.l1Count) {
                let part = min(Int(snapshot.l1Count) - done, 8192)
                for (_, word) in try storage.nonZeroWords(at: snapshot.l1Offset + UInt64(done) * 8, count: part) {
                    table.append(word)
                }
                done += part
            }
            scan?.snapshotTable = table
        }
        guard let table = scan?.snapshotTable, index < table.count else {
            scan?.phase = .snapshot(number + 1, from: 0)
            return
        }
        let place = table[index] & L2Entry.offsetMask
        if place != 0 {
            try mark(place >> geometry.clusterBits, isExclusive: false, at: place)
            try scanTable(place, isActive: false)
        }
        scan?.phase = .snapshot(number, from: index + 1)
    }

    private func scanTable(_ place: UInt64, isActive: Bool) throws(ImageError) {
        guard place & (geometry.clusterSize - 1) == 0, place < storage.size else {
            throw .damaged("an L1 entry points to offset \(place) of the file")
        }
        let count = 1 << Int(geometry.l2Bits)
        for (_, word) in try storage.nonZeroWords(at: place, count: count) {
            let entry = L2Entry(word)
            guard let clusters = entry.clusters(clusterBits: geometry.clusterBits) else { continue }
            if entry.isCompressed {
                for cluster in clusters {
                    try mark(cluster, isExclusive: false, at: cluster << geometry.clusterBits)
                    scan?.compressed.insert(cluster)
                }
            } else {
                guard entry.place & (geometry.clusterSize - 1) == 0 else {
                    throw .damaged("an L2 entry points to offset \(entry.place), into the middle of a cluster")
                }
                try mark(clusters.lowerBound, isExclusive: isActive, at: entry.place)
            }
        }
    }

    /// Something refers to a cluster.
    private func mark(_ cluster: UInt64, isExclusive: Bool, at place: UInt64) throws(ImageError) {
        if cluster >= scan?.bound ?? 0 {
            // The engine's own, all of which are known.
            guard allocator.used.contains(cluster) else { throw .damaged("an entry points to offset \(place), behind the file") }
            return
        }
        let count = try allocator.refcounts.count(of: cluster)
        guard count > 0 else { throw .damaged("offset \(place) of the file is in use and has the refcount 0") }
        let isNew = allocator.used.insert(cluster)
        if isExclusive {
            guard !allocator.metadata.contains(cluster) else { throw .damaged("data stand in a table, at offset \(place)") }
            guard isNew || count > 1 || scan?.compressed.contains(cluster) == true else {
                throw .damaged("two entries point to offset \(place) of the file, whose refcount is 1")
            }
        }
    }

    private func reclaim(_ block: Int) throws(ImageError) {
        guard block < allocator.refcounts.table.count else {
            finish(isComplete: true)
            return
        }
        guard allocator.refcounts.table[block] != 0 else {
            var next = block + 1
            while next < allocator.refcounts.table.count, allocator.refcounts.table[next] == 0 { next += 1 }
            scan?.phase = .reclaim(next)
            return
        }
        let first = UInt64(block) << geometry.blockBits
        let bound = scan?.bound ?? 0
        for cluster in first..<min(first + geometry.refcountsPerBlock, max(bound, first)) {
            guard !allocator.used.contains(cluster), try allocator.refcounts.count(of: cluster) > 0 else { continue }
            if scan?.mayReclaim == true {
                try allocator.refcounts.set(cluster, to: 0)
                scan?.reclaimed += 1
            } else {
                allocator.used.insert(cluster)
            }
        }
        try allocator.refcounts.write()
        scan?.phase = .reclaim(block + 1)
    }

    private func finish(isComplete: Bool) {
        let reclaimed = scan?.reclaimed ?? 0
        scan = nil
        if isComplete { allocator.learned() }
        isScanned.store(true, ordering: .releasing)
        if reclaimed > 0 {
            counters.reclaimed.wrappingAdd(reclaimed, ordering: .relaxed)
            tell(.reclaimed(clusters: reclaimed, bytes: reclaimed << geometry.clusterBits))
        }
    }

    /// The changes of a device that waited for the scan.
    private func resumeWaiters() {
        let waiters = listLock.locked { () -> [any EngineOperation] in
            defer { scanWaiters = [] }
            return scanWaiters
        }
        for operation in waiters { operation.resume() }
    }
}
