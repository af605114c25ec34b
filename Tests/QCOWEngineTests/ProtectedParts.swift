// SPDX-License-Identifier: BSD-2-Clause
// What a writer must leave alone in an image that somebody has changed.

/// What must not change in an image whatever a guest writes into it.
struct ProtectedParts {
    private let before: ByteImage
    private let layout: ImageLayout
    /// Bytes that must stay as they are.
    private var fixed: [Range<Int>] = []
    /// Clusters that are tables, before and after.
    private var tables: Set<Int> = []

    /// `original` is the image before somebody changed it, `before` the one that was opened.
    init?(original: ByteImage, before: ByteImage) {
        guard let layout = ImageLayout(original) else { return nil }
        (self.before, self.layout) = (before, layout)
        // The fields that may change: the refcount table, feature bits.
        fixed = [0..<48, 60..<72, 80..<88]
        if layout.snapshotCount > 0, let end = layout.snapshots.last?.end {
            fixed.append(layout.snapshotOffset..<end)
            for snapshot in layout.snapshots {
                fixed.append(snapshot.l1Offset..<snapshot.l1Offset + snapshot.l1Count * 8)
            }
        }
        // A table that nothing refers to any more may be taken.
        let changed = ImageLayout(before).flatMap { $0.isModest ? $0 : nil }
        tables = Self.tables(layout).intersection(changed.map(Self.tables) ?? [])
        let still = changed.map(Self.snapshotData) ?? []
        for offset in Self.snapshotData(layout).intersection(still).sorted() {
            fixed.append(offset..<offset + layout.clusterSize)
        }
    }

    private static func tables(_ layout: ImageLayout) -> Set<Int> {
        var found: Set<Int> = [0]
        func add(_ offset: Int, _ length: Int) {
            for place in stride(from: offset, to: offset + length, by: layout.clusterSize) {
                found.insert(place >> layout.clusterBits)
            }
        }
        add(layout.refcountOffset, layout.refcountClusters * layout.clusterSize)
        for block in layout.refcountBlocks where block != 0 { add(block, 1) }
        for l1 in layout.l1Tables {
            add(l1.offset, l1.count * 8)
            for index in 0..<l1.count where layout.l2Offset(l1.offset, index) != 0 {
                add(layout.l2Offset(l1.offset, index), 1)
            }
        }
        return found
    }

    /// Clusters with data of snapshots.
    private static func snapshotData(_ layout: ImageLayout) -> Set<Int> {
        var found: Set<Int> = []
        for l1 in layout.l1Tables where !l1.isActive {
            for index in 0..<l1.count where layout.l2Offset(l1.offset, index) != 0 {
                for place in 0..<layout.l2Count {
                    let entry = layout.image.u64(layout.l2Offset(l1.offset, index) + place * layout.entryBytes)
                    if case .data(let offset) = layout.describe(entry) { found.insert(offset) }
                }
            }
        }
        return found
    }

    /// What changed that must not, with the effects that did it.
    func faults(_ after: ByteImage, _ log: EffectLog) -> [String] {
        var found: [String] = []
        for range in fixed where found.count < 4 && !isEqual(after, range) {
            found.append("bytes \(range) were changed by \(effects(log, range))")
        }
        // A table that the image has no more was copied, and what it left is free.
        let kept = tables.intersection(ImageLayout(after).map(Self.tables) ?? [])
        for cluster in kept where found.count < 8 {
            let offset = cluster << layout.clusterBits
            for sector in stride(from: offset, to: offset + layout.clusterSize, by: sectorSize) {
                // The mark of the simulated guest's data.
                let mark = after.u32(sector + 8)
                if mark.byteSwapped == SectorPattern.magic, before.u32(sector + 8) != mark {
                    found.append(
                        "data of the guest in a table, at \(sector), by \(effects(log, sector..<sector + sectorSize))")
                    break
                }
            }
        }
        return found
    }

    /// A file need not end with a cluster.
    private func isEqual(_ after: ByteImage, _ range: Range<Int>) -> Bool {
        before.isEqual(to: after, range.lowerBound, min(range.count, max(0, before.count - range.lowerBound)))
    }

    private func effects(_ log: EffectLog, _ range: Range<Int>) -> String {
        log.effects.enumerated().filter { $0.element.range?.overlaps(range) == true }.prefix(4)
            .map { "\($0.offset): \($0.element.description)" }.joined(separator: ", ")
    }
}
