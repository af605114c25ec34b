// SPDX-License-Identifier: BSD-2-Clause
// The long way of an operation: tables that are not in memory, copies, zeroes, discards. For helper threads, which may sleep.
import Glibc
import ImageCore
import ImageWriting
import QCOW2

/// Entries that are published when what they point to is durable.
struct CommitRecord {
    let operation: any EngineOperation
    /// Of the range of the disk that it holds.
    let key: UInt64
    var publications: [Publication]
}

/// A cluster that has lost a reference.
struct FreedCluster {
    let cluster: UInt64
    /// It held a table of the image, and not data.
    let isTable: Bool
}

/// One entry.
struct Publication {
    /// The cluster of the disk.
    let cluster: UInt64
    /// What the entry must be still.
    let old: L2Entry
    let new: L2Entry
    /// Subclusters that get their bits; others of the same cluster may have got theirs since `old`.
    var filled: SubclusterMask = []
}

extension ImageEngine {
    /// Does an operation, or a first part of it. Between ``begin()`` and ``end(_:)``; may sleep.
    public func perform(_ operation: any EngineOperation) -> Progress {
        let (offset, length) = (operation.offset, operation.length)
        guard length > 0, offset <= size, length <= size - offset else {
            operation.finish(length == 0 ? 0 : -EIO)
            return .finished
        }
        if operation.kind == .read {
            operation.finish(read(operation))
            return .finished
        }
        if operation.kind == .discard, !options.discards {
            operation.finish(0)
            return .finished
        }
        guard failure == 0 else {
            operation.finish(failure)
            return .finished
        }
        if waitsForScan, !isScanned.load(ordering: .acquiring), waitForScan(operation) { return .waiting }
        let clusters = offset >> geometry.clusterBits...(offset + length - 1) >> geometry.clusterBits
        var (key, isFill): (UInt64?, Bool) = (nil, false)
        var status: Int32 = 0
        do throws(ImageError) {
            (key, isFill) = try acquire(operation, clusters)
        } catch {
            operation.finish(-error.code)
            return .finished
        }
        guard let key else {
            counters.waits.wrappingAdd(1, ordering: .relaxed)
            return .waiting
        }
        var change = Change(operation, clusters, isFill: isFill)
        do throws(ImageError) {
            try prepare()
            try perform(&change)
        } catch {
            status = -error.code
        }
        if status == 0, !change.publications.isEmpty {
            let record = CommitRecord(operation: operation, key: key, publications: change.publications)
            listLock.locked { commits.append(record) }
            wake()
            return .committing
        }
        // R7: what was to be published is nobody's.
        discardUnused(change.publications.flatMap { unpublished($0) })
        operation.finish(status)
        release(key)
        return .finished
    }

    /// Takes the range that an operation changes; nil: it waits. Of an extended image the range counts subclusters, and a write into
    /// one cluster that is the image's own takes only what it touches (`isFill`): others may write beside it, and nobody
    /// changes the cluster itself meanwhile.
    private func acquire(
        _ operation: any EngineOperation, _ clusters: ClosedRange<UInt64>
    ) throws(ImageError) -> (key: UInt64?, isFill: Bool) {
        guard geometry.isExtended else {
            return (rangeLock.locked { ranges.acquire(clusters, orWait: operation) }, false)
        }
        let cluster = clusters.lowerBound
        if operation.kind == .write, clusters.count == 1, try isOwn(cluster) {
            let last = operation.offset + operation.length - 1
            let touched = operation.offset >> geometry.subclusterBits...last >> geometry.subclusterBits
            guard let key = rangeLock.locked({ ranges.acquire(touched, orWait: operation) }) else { return (nil, true) }
            // It was perhaps given up before the range was taken; now nobody can.
            do throws(ImageError) {
                if try isOwn(cluster) { return (key, true) }
            } catch {
                release(key)
                throw error
            }
            release(key)
        }
        let all = clusters.lowerBound << 5...(clusters.upperBound << 5 | 31)
        return (rangeLock.locked { ranges.acquire(all, orWait: operation) }, false)
    }

    /// Lets an operation wait for the scan. False: it is over.
    func waitForScan(_ operation: any EngineOperation) -> Bool {
        let waits = listLock.locked { () -> Bool in
            if isScanned.load(ordering: .acquiring) { return false }
            scanWaiters.append(operation)
            return true
        }
        if waits { wake() }
        return waits
    }

    /// Lets the next ones have a range.
    func release(_ key: UInt64) {
        let next = rangeLock.locked { ranges.release(key) }
        for operation in next { operation.resume() }
    }

    /// The cluster that a publication was to bring, unless the image has it already.
    func unpublished(_ publication: Publication) -> [UInt64] {
        geometry.hasDataFile || publication.new.place == publication.old.place || publication.new.place == 0
            ? [] : [publication.new.place >> geometry.clusterBits]
    }

    /// An operation on its way through its clusters.
    struct Change {
        let operation: any EngineOperation
        let clusters: ClosedRange<UInt64>
        /// Of its only cluster it has the subclusters that it touches, and not the cluster.
        let isFill: Bool
        var publications: [Publication] = []
        var bounce: Bounce?

        init(_ operation: any EngineOperation, _ clusters: ClosedRange<UInt64>, isFill: Bool) {
            self.operation = operation
            self.clusters = clusters
            self.isFill = isFill
        }
    }

    private func perform(_ change: inout Change) throws(ImageError) {
        var cluster = change.clusters.lowerBound
        while cluster <= change.clusters.upperBound {
            cluster = try step(&change, at: cluster)
        }
    }

    /// Changes one cluster, or passes over all that an absent L2 table describes.
    ///
    /// - Returns: the next cluster.
    private func step(_ change: inout Change, at cluster: UInt64) throws(ImageError) -> UInt64 {
        let part = part(of: change.operation, in: cluster)
        let isWhole = UInt64(part.count) == min(geometry.clusterSize, size - cluster << geometry.clusterBits)
        guard let wanted = wanted(change.operation.kind, isWhole: isWhole || discards(part, of: cluster)) else {
            return cluster + 1
        }
        let rules = rules(at: cluster)
        let l1Index = Int(cluster >> geometry.l2Bits)
        let table = map.l1Entry(l1Index)
        if table == 0, rules.plan(wanted, .hole) == .nothing {
            return (cluster >> geometry.l2Bits + 1) << geometry.l2Bits
        }
        if table & L2Entry.copied == 0 { try ensureTable(l1Index) }
        if geometry.isExtended {
            try stepBySubclusters(&change, part, at: cluster)
            return cluster + 1
        }
        while true {
            let piece = try lockPiece(cluster)
            // What was read may be damage, and then nothing more is written.
            guard failure == 0 else {
                map.unlock(piece)
                throw ImageError(.unreadable(EIO), "nothing is written to this image any more")
            }
            let index = map.index(cluster)
            let entry = piece[index]
            if geometry.hasDataFile, isMisplaced(entry, cluster) {
                map.unlock(piece)
                let words = "the L2 entry of cluster \(cluster) points to another place of the data file than its own"
                damaged(words)
                throw .damaged(words)
            }
            let plan = rules.plan(wanted, entry)
            guard needsCluster(plan) else {
                try follow(plan, entry, piece, cluster, part, &change)
                return cluster + 1
            }
            if let taken = takeIfThere() {
                try follow(plan, entry, piece, cluster, part, taken, &change)
                return cluster + 1
            }
            map.unlock(piece)
            try refill()
        }
    }

    /// An entry of an image with a data file that QEMU would not have made.
    func isMisplaced(_ entry: L2Entry, _ cluster: UInt64) -> Bool {
        entry.isCompressed || entry.place != 0 && entry.place != cluster << geometry.clusterBits
    }

    func lockPiece(_ cluster: UInt64) throws(ImageError) -> ClusterMap.Piece {
        do throws(ReadFault) {
            if let piece = try map.lockPiece(of: cluster) { return piece }
        } catch {
            throw ImageError(.unreadable(error.code), "\(error.cause)")
        }
        throw ImageError(.corrupt, "an L2 table is missing")
    }

    /// The bytes of a cluster that an operation is about.
    private func part(of operation: any EngineOperation, in cluster: UInt64) -> Range<UInt64> {
        let start = cluster << geometry.clusterBits
        let from = max(operation.offset, start)
        let to = min(operation.offset + operation.length, start + geometry.clusterSize)
        return from - start..<to - start
    }

    /// What the operation wants of a cluster; nil: nothing.
    private func wanted(_ kind: EngineOperationKind, isWhole: Bool) -> ClusterChange? {
        switch kind {
        case .read: return nil
        case .write: return .data(isWhole: isWhole)
        case .zeroes(let mayFree): return isWhole ? .zeroes(mayFree: mayFree) : .partZeroes
        case .discard: return isWhole ? .discard : nil
        }
    }

    private func needsCluster(_ plan: ClusterPlan) -> Bool {
        switch plan {
        case .fresh, .freshZeroes, .copy: true
        case .nothing, .inPlace, .refill, .publish, .punch: false
        }
    }

    /// Does what a plan says that needs no new cluster. The piece is locked, and unlocked here.
    private func follow(
        _ plan: ClusterPlan, _ entry: L2Entry, _ piece: ClusterMap.Piece, _ cluster: UInt64, _ part: Range<UInt64>,
        _ change: inout Change
    ) throws(ImageError) {
        switch plan {
        case .inPlace(let place):
            map.unlock(piece)
            try write(&change, part, of: cluster, to: place)
        case .refill(let place):
            map.unlock(piece)
            change.publications.append(Publication(cluster: cluster, old: entry, new: L2Entry(own: place)))
            try copy(&change, part, of: cluster, to: place, keepsOld: true)
        case .publish(let new, let frees):
            let code = put(new, piece, map.index(cluster))
            map.unlock(piece)
            try check(code, "cannot write an L2 entry")
            if frees { unmap(entry) }
        case .punch(let place):
            map.unlock(piece)
            try check(data.zero(place, bytes(of: cluster)), "cannot zero a cluster of the data file")
        case .nothing, .fresh, .freshZeroes, .copy:
            map.unlock(piece)
        }
    }

    /// Does what a plan says with a reserved cluster. The piece is locked, and unlocked here.
    private func follow(
        _ plan: ClusterPlan, _ entry: L2Entry, _ piece: ClusterMap.Piece, _ cluster: UInt64, _ part: Range<UInt64>,
        _ taken: UInt64, _ change: inout Change
    ) throws(ImageError) {
        let start = taken << geometry.clusterBits
        if case .copy(let keepsOld) = plan {
            map.unlock(piece)
            change.publications.append(Publication(cluster: cluster, old: entry, new: L2Entry(own: start)))
            try copy(&change, part, of: cluster, to: start, keepsOld: keepsOld)
            counters.copied.wrappingAdd(1, ordering: .relaxed)
            return
        }
        let index = map.index(cluster)
        let code = publish(piece, index...index, from: start)
        map.unlock(piece)
        try check(code, "cannot write an L2 entry")
        if plan == .freshZeroes {
            unmap(entry)
        } else {
            try write(&change, part, of: cluster, to: start)
        }
    }

    /// Changes an entry in file and cache: 0 or a negative errno.
    func put(_ entry: L2Entry, _ piece: ClusterMap.Piece, _ index: Int) -> Int32 {
        let place = piece.offset(of: index)
        // Both words in one write, also if one stays: they stand in one sector, and a later write has all of an earlier one.
        let code =
            piece.isExtended
            ? storage.write([entry.raw, entry.bitmap].bigEndianBytes, at: place)
            : storage.write(number: entry.raw, at: place)
        if code == 0 { piece[index] = entry } else { map.forget(piece) }
        return code
    }

    /// The clusters of an entry that is in the file no more.
    func unmap(_ entry: L2Entry) {
        guard !geometry.hasDataFile, let clusters = entry.clusters(clusterBits: geometry.clusterBits) else { return }
        listLock.locked { unmapped += clusters.map { FreedCluster(cluster: $0, isTable: false) } }
        wake()
    }

    // MARK: Data

    /// Writes the operation's data, or zeroes, to a part of a cluster that is the image's own.
    private func write(
        _ change: inout Change, _ part: Range<UInt64>, of cluster: UInt64, to place: UInt64
    ) throws(ImageError) {
        let bounce = try bounce(&change)
        let range = Int(part.lowerBound)..<Int(part.upperBound)
        fill(bounce, range, from: change.operation, cluster)
        let code = bounce.reading(range) { data.writeData($0, at: place + part.lowerBound) }
        try check(code, "cannot write data")
    }

    /// Writes a whole cluster: what is there now, and the operation's data in it.
    private func copy(
        _ change: inout Change, _ part: Range<UInt64>, of cluster: UInt64, to place: UInt64, keepsOld: Bool
    ) throws(ImageError) {
        let bounce = try bounce(&change)
        let all = 0..<Int(bytes(of: cluster))
        let range = Int(part.lowerBound)..<Int(part.upperBound)
        if keepsOld {
            let code = bounce.with(all) { memory in readLayers(&memory, at: cluster << geometry.clusterBits) }
            try check(code, "cannot read what is copied")
        } else if range != all {
            bounce.zero(all)
        }
        fill(bounce, range, from: change.operation, cluster)
        try check(bounce.reading(all) { data.writeData($0, at: place) }, "cannot write a cluster")
    }

    /// Bytes of a cluster in its file: a data file ends with the disk.
    private func bytes(of cluster: UInt64) -> UInt64 {
        geometry.hasDataFile
            ? min(geometry.clusterSize, size - cluster << geometry.clusterBits) : geometry.clusterSize
    }

    func fill(_ bounce: Bounce, _ range: Range<Int>, from operation: any EngineOperation, _ cluster: UInt64) {
        guard operation.kind == .write else { return bounce.zero(range) }
        let position = cluster << geometry.clusterBits + UInt64(range.lowerBound) - operation.offset
        bounce.with(range) { operation.copyData(to: &$0, from: position) }
    }

    func bounce(_ change: inout Change) throws(ImageError) -> Bounce {
        if let bounce = change.bounce { return bounce }
        guard let bounce = Bounce(Int(geometry.clusterSize)) else {
            throw ImageError(.unreadable(ENOMEM), "no memory for a cluster")
        }
        change.bounce = bounce
        return bounce
    }

    // MARK: Tables

    /// Makes the L2 table of an L1 entry one that may be changed: one that is the disk's alone, a new one, or a copy of one that
    /// a snapshot has too.
    private func ensureTable(_ l1Index: Int) throws(ImageError) {
        if try claimTable(l1Index) { return }
        while true {
            if map.l1Entry(l1Index) & L2Entry.copied != 0 { return }
            if poolIsEmpty { try refill() }
            let isDone = try metadataLock.locked { () throws(ImageError) -> Bool in
                let old = map.l1Entry(l1Index)
                if old & L2Entry.copied != 0 { return true }
                guard let cluster = takeIfThere() else { return false }
                // If that fails, whether the file has the new entry is not known: the cluster is left alone, and the scan finds it.
                try makeTable(l1Index, at: cluster << geometry.clusterBits, from: old & L2Entry.offsetMask)
                return true
            }
            if isDone { return }
        }
    }

    /// Believes an L1 entry that its table is the disk's alone, if the refcount says so too.
    private func claimTable(_ l1Index: Int) throws(ImageError) -> Bool {
        // Flags that were written anew are true, whatever they were.
        guard l1Index < image.l1.count, image.isDirty || image.l1[l1Index] & L2Entry.copied != 0 else { return false }
        let place = image.l1[l1Index] & L2Entry.offsetMask
        var damage: String?
        let isClaimed = try metadataLock.locked { () throws(ImageError) -> Bool in
            let entry = map.l1Entry(l1Index)
            if entry & L2Entry.copied != 0 { return true }
            guard place != 0, entry & L2Entry.offsetMask == place, !disowned.contains(UInt64(l1Index)) else {
                return false
            }
            guard try allocator.refcounts.count(of: place >> geometry.clusterBits) == 1 else {
                damage =
                    "entry \(l1Index) of the L1 table claims the table at offset \(place) for itself, which is not its own"
                return false
            }
            map.setL1(l1Index, entry | L2Entry.copied)
            return true
        }
        if let damage {
            damaged(damage)
            throw .damaged(damage)
        }
        return isClaimed
    }

    /// With `metadataLock`.
    private func makeTable(_ l1Index: Int, at place: UInt64, from old: UInt64) throws(ImageError) {
        if old != 0 {
            var entries = try storage.bytes(at: old, count: Int(geometry.clusterSize))
            guard entries.count == Int(geometry.clusterSize) else { throw .damaged("an L2 table is not in the file") }
            // None of them is this table's alone.
            let mask: UInt8 = geometry.hasDataFile ? 0xff : 0x7f
            for index in stride(from: 0, to: entries.count, by: Int(geometry.entryBytes)) { entries[index] &= mask }
            try check(storage.write(entries[...], at: place), "cannot write an L2 table")
            try check(sync(), "cannot make an L2 table durable")
        }
        let entry = L2Entry(own: place).raw
        try check(storage.write(number: entry, at: l1Offset + UInt64(l1Index) * 8), "cannot write the L1 table")
        allocator.metadata.insert(place >> geometry.clusterBits)
        map.setL1(l1Index, entry)
        if old != 0 {
            listLock.locked { unmapped.append(FreedCluster(cluster: old >> geometry.clusterBits, isTable: true)) }
        }
    }

    // MARK: Clusters

    private var poolIsEmpty: Bool { poolLock.locked { pool.count == 0 } }

    func takeIfThere() -> UInt64? {
        poolLock.locked {
            let taken = pool.take(1)
            poolCount.store(Int(clamping: pool.count), ordering: .relaxed)
            return taken
        }
    }

    /// Reserves clusters now, because somebody waits for one.
    func refill() throws(ImageError) {
        try metadataLock.locked { () throws(ImageError) in
            guard poolIsEmpty else { return }
            counters.refills.wrappingAdd(1, ordering: .relaxed)
            let runs = try own()
            try check(sync(), "cannot make refcounts durable")
            addToPool(runs)
        }
    }

    /// With `metadataLock`; a sync comes before ``addToPool(_:)``.
    func own() throws(ImageError) -> [Range<UInt64>] {
        let wanted = reserveSize.load(ordering: .relaxed)
        let runs = try allocator.own(UInt64(wanted))
        if storage.isGrowable { map.fileEnd = max(map.fileEnd, storage.size) }
        reserveSize.store(min(wanted * 2, options.reserve.upperBound), ordering: .relaxed)
        reserveFailed.store(false, ordering: .relaxed)
        return runs
    }

    func addToPool(_ runs: [Range<UInt64>]) {
        poolLock.locked {
            for run in runs { pool.add(run) }
            poolCount.store(Int(clamping: pool.count), ordering: .relaxed)
        }
    }
}
