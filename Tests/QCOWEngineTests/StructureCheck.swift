// SPDX-License-Identifier: BSD-2-Clause
// Whether the tables of an image agree: the same questions as qemu-img check, asked of an image in memory.

/// What a check of an image found.
struct StructureReport {
    /// Words for what must never be.
    var corruptions: [String] = []
    /// Clusters that are counted and that nothing refers to.
    var lost = 0
    /// Clusters that are counted more often than something refers to them.
    var overcounted = 0
    /// Counted ones behind the end of the file, which QEMU does not look at.
    var behindEnd = 0
    /// What qemu-img calls leaks.
    var leaks: Int { lost + overcounted }

    mutating func bad(_ words: @autoclosure () -> String) {
        if corruptions.count < 8 { corruptions.append(words()) }
    }
}

/// Counts the references of each cluster and compares them with the reference counts.
struct StructureCheck {
    private let layout: ImageLayout
    private var expected: [UInt32]
    private var report = StructureReport()

    /// The report about an image.
    static func report(_ image: ByteImage) -> StructureReport {
        guard let layout = ImageLayout(image) else {
            return StructureReport(corruptions: ["there is no header"])
        }
        var check = StructureCheck(layout)
        return check.run()
    }

    private init(_ layout: ImageLayout) {
        self.layout = layout
        expected = [UInt32](repeating: 0, count: layout.fileClusters)
    }

    private mutating func refer(_ offset: Int, _ length: Int, _ what: @autoclosure () -> String) {
        guard length > 0 else { return }
        guard offset >= 0, offset < layout.image.count else {
            return report.bad("\(what()) at \(offset) is not in the file of \(layout.image.count) bytes")
        }
        let last = min((offset + length - 1) >> layout.clusterBits, expected.count - 1)
        for cluster in (offset >> layout.clusterBits)...max(last, offset >> layout.clusterBits) {
            expected[cluster] += 1
        }
    }

    private func isAligned(_ offset: Int) -> Bool { offset & (layout.clusterSize - 1) == 0 }

    private mutating func run() -> StructureReport {
        let size = layout.clusterSize
        refer(0, size, "the header")
        refer(layout.refcountOffset, layout.refcountClusters * size, "the refcount table")
        let blocks = layout.refcountBlocks
        for (index, block) in blocks.enumerated() where block != 0 {
            if !isAligned(block) { report.bad("refcount block \(index) at \(block) is not at a cluster") }
            refer(block, size, "refcount block \(index)")
        }
        if layout.snapshotCount > 0, let end = layout.snapshots.last?.end {
            refer(layout.snapshotOffset, end - layout.snapshotOffset, "the snapshot table")
        }
        for table in layout.l1Tables { walk(table.offset, table.count) }
        if layout.isDirty || layout.isCorrupt { report.bad("the header says dirty or corrupt") }
        for cluster in 0..<expected.count {
            let counted = layout.refcount(cluster, blocks: blocks)
            if counted < expected[cluster] {
                report.bad("cluster \(cluster) is counted \(counted) times and referred to \(expected[cluster]) times")
            } else if counted > expected[cluster] {
                if expected[cluster] == 0 { report.lost += 1 } else { report.overcounted += 1 }
            }
        }
        countBehindEnd(blocks)
        checkCopied(blocks)
        return report
    }

    private mutating func countBehindEnd(_ blocks: [Int]) {
        for (index, block) in blocks.enumerated() where block != 0 {
            let first = index * layout.blockCount
            guard first + layout.blockCount > expected.count, !layout.image.isZero(block, layout.clusterSize) else {
                continue
            }
            for cluster in max(first, expected.count)..<first + layout.blockCount
            where layout.refcount(cluster, blocks: blocks) > 0 { report.behindEnd += 1 }
        }
    }

    private mutating func walk(_ l1: Int, _ count: Int) {
        refer(l1, count * 8, "an L1 table")
        for index in 0..<count {
            let table = layout.l2Offset(l1, index)
            guard table != 0 else { continue }
            if !isAligned(table) { report.bad("L2 table \(index) at \(table) is not at a cluster") }
            refer(table, layout.clusterSize, "L2 table \(index)")
            if layout.image.isZero(table, layout.clusterSize) { continue }
            for place in 0..<layout.l2Count {
                let offset = table + place * layout.entryBytes
                if let fault = layout.bitmapFault(offset) { report.bad("\(fault), at \(offset)") }
                let entry = layout.image.u64(offset)
                if entry != 0 { refer(entry: entry, index * layout.l2Count + place) }
            }
        }
    }

    private mutating func refer(entry: UInt64, _ cluster: Int) {
        if case .compressed(let offset, let length) = layout.describe(entry) {
            // The last sector need not be in the file.
            return refer(offset, min(length, max(layout.image.count - offset, 1)), "deflated cluster \(cluster)")
        }
        let offset = Int(truncatingIfNeeded: entry) & ImageLayout.offsetMask
        guard offset != 0 else { return }
        if !isAligned(offset) { report.bad("cluster \(cluster) at \(offset) is not at a cluster") }
        refer(offset, layout.clusterSize, "cluster \(cluster)")
    }

    /// The flag "refcount is exactly one" must be right in the active tables.
    private mutating func checkCopied(_ blocks: [Int]) {
        let flag: UInt64 = 1 << 63
        for index in 0..<layout.l1Count {
            let entry = layout.image.u64(layout.l1Offset + index * 8)
            let table = Int(truncatingIfNeeded: entry) & ImageLayout.offsetMask
            guard table != 0, table < layout.image.count else { continue }
            if (layout.refcount(table >> layout.clusterBits, blocks: blocks) == 1) != (entry & flag != 0) {
                report.bad("the COPIED flag of L1 entry \(index) is wrong: \(String(entry, radix: 16))")
            }
            if layout.image.isZero(table, layout.clusterSize) { continue }
            for place in 0..<layout.l2Count {
                let entry = layout.image.u64(table + place * layout.entryBytes)
                if entry == 0 { continue }
                let offset = Int(truncatingIfNeeded: entry) & ImageLayout.offsetMask
                if entry & 1 << 62 != 0 {
                    if entry & flag != 0 { report.bad("a deflated cluster has the COPIED flag") }
                } else if offset != 0,
                    (layout.refcount(offset >> layout.clusterBits, blocks: blocks) == 1) != (entry & flag != 0)
                {
                    report.bad("the COPIED flag of cluster \(index * layout.l2Count + place) is wrong")
                }
            }
        }
    }
}
