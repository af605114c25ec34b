// SPDX-License-Identifier: BSD-2-Clause
// The scan of an image that is being written: which clusters are referred to, step by step beside the work of the guest.
//
// It finds what an unclean end left (clusters with a refcount to which nothing refers: they are given back), and damage that
// would be made worse by writing. Changes wait until it is over; where a predecessor has looked already, they do not, and clusters are
// only taken behind the end of the file before.
import Glibc
import ImageCore
import ImageWriting
import QCOW2

/// How far a scan is.
struct ImageScan {
    enum Phase {
        /// The L2 tables of the disk, from this entry of the L1 table on.
        case active(Int)
        /// Those of a snapshot; of number -1: those of the L1 table behind the end of the disk, which nothing changes either.
        case snapshot(Int, from: Int)
        /// All I/O that may have removed references meanwhile has to end; `turned`: that is waited for.
        case settling(turned: Bool)
        /// Refcounts beside what refers to their clusters, from this block on: nothing is changed while there may be damage.
        case compare(Int)
        /// Those without a reference, and those that are too high, are put right.
        case reclaim(Int)
        /// Of an image that was not closed: refcounts are written, from this block on.
        case rebuild(Int)
        /// The flags of its L1 entries, and of the entries of their tables, from this one on.
        case flags(Int)
        /// All of that is in the file.
        case rebuilt
    }

    var phase = Phase.active(0)
    /// The snapshots' L1 tables.
    let snapshots: [SnapshotEntry]
    /// L2 tables to which an L1 entry pointed so far.
    var tables = ClusterSet()
    /// The L1 table of the snapshot that is being read.
    var snapshotTable: [UInt64] = []
    /// References to clusters whose refcount is above 1, with `fromDisk`; nil: there were too many to count.
    var references: [UInt64: UInt64]? = [:]
    /// Clusters that have lost a reference since, whose refcount is not changed yet.
    var touched: Set<UInt64> = []
    /// Clusters of the file when it was opened: those behind are the engine's.
    let bound: UInt64
    /// Unknown extensions of the header may refer to clusters.
    let mayReclaim: Bool
    /// The refcounts are not up to date: what refers to clusters is true, and they are written anew.
    let rebuilds: Bool
    /// An entry of the disk does not say that its cluster or table is the disk's alone.
    var sawShared = false
    /// Refcounts that were found to be too high.
    var excess: UInt64 = 0

    init(_ image: QCOWImage, snapshots: [SnapshotEntry]) {
        self.snapshots = snapshots
        bound = QCOWGeometry(image.header).clusters(of: image.fileSize)
        mayReclaim = !image.header.hasUnknownExtensions
        rebuilds = image.isDirty
    }

    /// It waits for I/O to end.
    var isSettling: Bool { if case .settling(turned: true) = phase { true } else { false } }
    var isActive: Bool { if case .active = phase { true } else { false } }

    /// One of the references is the disk's own, not a snapshot's.
    private static let fromDisk: UInt64 = 1 << 63
    /// Room for that many counts: some 40 MiB.
    static let mostReferences = 1 << 20

    /// One more reference to a cluster with this refcount.
    mutating func note(_ cluster: UInt64, count: UInt64) {
        guard count > 1, references != nil else { return }
        references?[cluster, default: 0] += 1
        if isActive { references?[cluster, default: 0] |= Self.fromDisk }
        if references?.count ?? 0 > Self.mostReferences { references = nil }
    }

    /// How many there are; nil: that is not known.
    func referenceCount(_ cluster: UInt64) -> (count: UInt64, isFromDisk: Bool)? {
        guard !touched.contains(cluster), let found = references?[cluster] else { return nil }
        return (found & ~Self.fromDisk, found & Self.fromDisk != 0)
    }
}

extension ImageEngine {
    /// One step of the scan, for the committer.
    func goOnScanning() {
        let isFirstChange =
            switch scan?.phase {
            case .reclaim(0)?, .rebuild(0)?: true
            default: false
            }
        if isFirstChange {
            do throws(ImageError) {
                // What features refer to that nobody keeps up is nobody's, which the file has to say first.
                try prepare()
            } catch {
                if failure == 0 { metadataLock.locked { stopScanning(error.code, error.message) } }
                return failWaiters(-error.code)
            }
        }
        if case .rebuilt? = scan?.phase { believeRefcounts() }
        guard case .settling(let turned)? = scan?.phase else {
            scanError = 0
            metadataLock.locked { step() }
            if isScanned.load(ordering: .acquiring) { resumeWaiters() }
            if scanError != 0 { failWaiters(scanError) }
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
            for freed in listLock.locked({ unmapped }) {
                allocator.used.insert(freed.cluster)
                scan?.touched.insert(freed.cluster)
            }
            let next = isRebuilding ? ImageScan.Phase.rebuild(0) : .compare(0)
            scan?.phase = next
        }
    }

    /// With `metadataLock`.
    func step() {
        do throws(ImageError) {
            switch scan?.phase {
            case .active(let index)?: try scanActive(from: index)
            case .snapshot(let number, let index)?: try scanSnapshot(number, from: index)
            case .compare(let block)?: try compareBlock(block, changes: false)
            case .reclaim(let block)?: try compareBlock(block, changes: true)
            case .rebuild(let block)?: try rebuildBlock(block)
            case .flags(let index)?: try rebuildFlags(index)
            case .rebuilt?: finish(isComplete: true)
            case .settling?, nil: break
            }
        } catch {
            if case .unreadable = error.kind {
                // An error of the storage is not damage.
                stopScanning(error.code, error.message)
            } else {
                damaged(error.damage)
            }
        }
    }

    /// A table could not be read: clusters are taken behind the end as before. Where changes wait for the scan they get the
    /// error, and the next one lets it begin anew.
    private func stopScanning(_ code: Int32, _ words: String) {
        guard waitsForScan else { return finish(isComplete: false) }
        tell(.notLookedThrough(words))
        scan = ImageScan(image, snapshots: scan?.snapshots ?? [])
        allocator.used = ClusterSet()
        allocator.inSnapshots = ClusterSet()
        scanError = -code
    }

    private func scanActive(from index: Int) throws(ImageError) {
        if index == 0 {
            allocator.used.formUnion(allocator.metadata)
            if isRebuilding { try beginRebuilding() } else { try checkTables() }
        }
        var index = index
        while index < map.l1Count {
            let table = map.l1Entry(index) & L2Entry.offsetMask
            index += 1
            guard table != 0 else { continue }
            let cluster = table >> geometry.clusterBits
            if cluster < scan?.bound ?? 0 {
                let count = try allocator.refcounts.count(of: cluster)
                guard count > 0 || isRebuilding else {
                    throw .damaged("the L2 table at offset \(table) has the refcount 0")
                }
                try noteTable(cluster, count: count)
                if count != 1, !isRebuilding, claims(index - 1) {
                    throw .damaged(
                        "entry \(index - 1) of the L1 table claims the table at offset \(table) for itself, which is not its own"
                    )
                }
            }
            if !claims(index - 1) { scan?.sawShared = true }
            try scanTable(table, of: index - 1)
            break
        }
        scan?.phase = index < map.l1Count ? .active(index) : .snapshot(-1, from: 0)
    }

    /// As it was opened, an L1 entry says that its table is the disk's alone.
    private func claims(_ l1Index: Int) -> Bool {
        l1Index < image.l1.count && image.l1[l1Index] & L2Entry.copied != 0
    }

    /// Header, L1 table and refcount table must have refcounts, or they would be given away.
    private func checkTables() throws(ImageError) {
        let first = l1Offset >> geometry.clusterBits
        let refcounts = allocator.refcounts.tableOffset >> geometry.clusterBits
        let places = [
            0..<1, first..<first + geometry.clusters(of: l1Capacity * 8),
            refcounts..<refcounts + allocator.refcounts.tableClusters,
        ]
        for place in places {
            for cluster in place where try allocator.refcounts.count(of: cluster) == 0 {
                throw .damaged("a table at offset \(cluster << geometry.clusterBits) of the file has the refcount 0")
            }
        }
    }

    private func scanSnapshot(_ number: Int, from index: Int) throws(ImageError) {
        guard let snapshots = scan?.snapshots, number < snapshots.count else {
            scan?.phase = .settling(turned: false)
            return
        }
        if index == 0 {
            // Behind the end of the disk: what the map has was scanned.
            let known = UInt64(map.l1Count)
            let (offset, entries) =
                number < 0
                ? (l1Offset + known * 8, l1Capacity - min(known, l1Capacity))
                : (snapshots[number].l1Offset, snapshots[number].l1Count)
            var table: [UInt64] = []
            try storage.forEachNonZeroWord(at: offset, count: Int(entries)) { table.append($1) }
            scan?.snapshotTable = table
        }
        guard let table = scan?.snapshotTable, index < table.count else {
            scan?.phase = .snapshot(number + 1, from: 0)
            return
        }
        if let fault = L2Entry.fault(ofL1Entry: table[index]) { throw .damaged("an entry of an L1 table \(fault)") }
        let place = table[index] & L2Entry.offsetMask
        if place != 0 {
            let cluster = place >> geometry.clusterBits
            // Where not all tables of snapshots were known before, data may have been seen there.
            guard allocator.metadata.contains(cluster) || !allocator.used.contains(cluster) else {
                throw .damaged("data stand in a snapshot's table, at offset \(place) of the file")
            }
            try mark(cluster, isData: false, at: place)
            if cluster < scan?.bound ?? 0 { try noteTable(cluster, count: allocator.refcounts.count(of: cluster)) }
            allocator.metadata.insert(place >> geometry.clusterBits)
            try scanTable(place, of: nil)
        }
        scan?.phase = .snapshot(number, from: index + 1)
    }

    /// `l1Index`: the disk's entry that names the table; nil: a snapshot's.
    private func scanTable(_ place: UInt64, of l1Index: Int?) throws(ImageError) {
        guard place & (geometry.clusterSize - 1) == 0, place < storage.size else {
            throw .damaged("an L1 entry points to offset \(place) of the file")
        }
        for (index, entry) in try storage.entries(ofTable: place, geometry) {
            if geometry.isExtended, let fault = entry.bitmapFault {
                throw .damaged("\(fault) (in the L2 table at offset \(place) of the file)")
            }
            guard !entry.hasReservedBits(isExtended: geometry.isExtended) else {
                throw .damaged("entry \(index) of the L2 table at offset \(place) has bits that mean nothing")
            }
            if geometry.hasDataFile {
                // Nothing in this file: a data file has no refcounts.
                guard let l1Index else { continue }
                guard !isMisplaced(entry, UInt64(l1Index) << geometry.l2Bits + UInt64(index)) else {
                    throw .damaged("an L2 entry points to offset \(entry.place) of the data file, not to its own place")
                }
                continue
            }
            if let l1Index, claims(l1Index) { try judgeClaim(entry) }
            guard let clusters = entry.clusters(clusterBits: geometry.clusterBits) else { continue }
            if entry.isCompressed {
                for cluster in clusters { try mark(cluster, isData: true, at: cluster << geometry.clusterBits) }
            } else {
                if scan?.isActive == true, entry.raw & L2Entry.copied == 0 { scan?.sawShared = true }
                guard entry.place & (geometry.clusterSize - 1) == 0 else {
                    throw .damaged("an L2 entry points to offset \(entry.place), into the middle of a cluster")
                }
                try mark(clusters.lowerBound, isData: true, at: entry.place)
            }
        }
    }

    /// An entry that claims a cluster for itself has one, with the refcount 1.
    private func judgeClaim(_ entry: L2Entry) throws(ImageError) {
        guard entry.raw & L2Entry.copied != 0, !isRebuilding else { return }
        let cluster = entry.place >> geometry.clusterBits
        if !entry.isCompressed, entry.place != 0 {
            if cluster >= scan?.bound ?? 0 { return }
            if try allocator.refcounts.count(of: cluster) == 1 { return }
        }
        throw .damaged("an L2 entry claims offset \(entry.place) of the file for itself, which is not its own")
    }

    /// Something refers to a cluster.
    private func mark(_ cluster: UInt64, isData: Bool, at place: UInt64) throws(ImageError) {
        if cluster >= scan?.bound ?? 0 {
            // The engine's own, all of which are known.
            guard allocator.used.contains(cluster) else {
                throw .damaged("an entry points to offset \(place), behind the file")
            }
            return
        }
        let count = try allocator.refcounts.count(of: cluster)
        guard count > 0 || isRebuilding else {
            throw .damaged("offset \(place) of the file is in use and has the refcount 0")
        }
        let isNew = allocator.used.insert(cluster)
        guard !isData || !allocator.metadata.contains(cluster) else {
            throw .damaged("data stand in a table, at offset \(place) of the file")
        }
        // Tables of snapshots were known before.
        guard isNew || count > 1 || !isData || isRebuilding else {
            throw .damaged("two entries point to offset \(place) of the file, whose refcount is 1")
        }
        // What is counted anew needs only those that are referred to more than once.
        if isData, !isRebuilding { scan?.note(cluster, count: count) }
        if isData, isRebuilding, !isNew { try noteAgain(cluster) }
        if case .snapshot? = scan?.phase { allocator.inSnapshots.insert(cluster) }
    }

    /// An L1 entry refers to an L2 table with this refcount.
    private func noteTable(_ cluster: UInt64, count: UInt64) throws(ImageError) {
        guard !isRebuilding else {
            if scan?.tables.insert(cluster) == false { try noteAgain(cluster) }
            return
        }
        guard scan?.tables.insert(cluster) != false || count > 1 else {
            throw .damaged(
                "two L1 entries point to the L2 table at offset \(cluster << geometry.clusterBits), whose refcount is 1"
            )
        }
        scan?.note(cluster, count: count)
    }

    /// Compares the refcounts of a block with the references; `changes`: puts those right that cost nothing but space.
    private func compareBlock(_ block: Int, changes: Bool) throws(ImageError) {
        guard block < allocator.refcounts.table.count else {
            let isOver = changes || scan?.excess == 0
            if isOver { finish(isComplete: true) } else { scan?.phase = .reclaim(0) }
            return
        }
        var next = block + 1
        if allocator.refcounts.table[block] == 0 {
            while next < allocator.refcounts.table.count, allocator.refcounts.table[next] == 0 { next += 1 }
        } else {
            let own = allocator.refcounts.table[block] >> geometry.clusterBits
            guard try allocator.refcounts.count(of: own) > 0 else {
                throw .damaged("the refcount block at offset \(own << geometry.clusterBits) has the refcount 0")
            }
            let first = UInt64(block) << geometry.blockBits
            // Also behind the end of the file: a loss of power may leave the counts of clusters and not the length that was to have
            // room for them, and the file may grow there.
            for cluster in first..<first + geometry.refcountsPerBlock {
                let count = try allocator.refcounts.count(of: cluster)
                if count > 0, let right = try rightCount(cluster, count) {
                    if changes { try allocator.refcounts.set(cluster, to: right) } else { scan?.excess += 1 }
                }
            }
            try allocator.refcounts.write()
        }
        scan?.phase = changes ? .reclaim(next) : .compare(next)
    }

    /// What the refcount of a cluster should be; nil: what it is. A cluster in use that is counted too often, as after an unclean end
    /// behind a copy, is counted down; one that is counted too seldom is damage.
    private func rightCount(_ cluster: UInt64, _ count: UInt64) throws(ImageError) -> UInt64? {
        guard allocator.used.contains(cluster) else {
            if scan?.mayReclaim == true { return 0 }
            if cluster < scan?.bound ?? 0 { allocator.used.insert(cluster) }
            return nil
        }
        guard count > 1, let (found, isFromDisk) = scan?.referenceCount(cluster) else { return nil }
        guard found <= count else {
            throw .damaged("\(found) entries point to cluster \(cluster) of the file, whose refcount is \(count)")
        }
        // An entry of the disk says by its flag whether the refcount is 1.
        return found < count && (!isFromDisk || found > 1) && scan?.mayReclaim == true ? found : nil
    }

    func finish(isComplete: Bool) {
        let reclaimed = isComplete ? scan?.excess ?? 0 : 0
        scan = nil
        if isComplete { allocator.learned() }
        isScanned.store(true, ordering: .releasing)
        if isComplete { options.whenVouched?() }
        if reclaimed > 0 {
            counters.reclaimed.wrappingAdd(reclaimed, ordering: .relaxed)
            tell(.reclaimed(clusters: reclaimed, bytes: reclaimed << geometry.clusterBits))
        }
    }

    /// The changes that wait for the scan; they do so no more.
    private func takeWaiters() -> [any EngineOperation] {
        listLock.locked {
            defer { scanWaiters = [] }
            return scanWaiters
        }
    }

    private func resumeWaiters() { for operation in takeWaiters() { operation.resume() } }

    /// Ends them.
    func failWaiters(_ status: Int32) { for operation in takeWaiters() { operation.finish(status) } }
}
