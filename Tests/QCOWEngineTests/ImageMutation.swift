// SPDX-License-Identifier: BSD-2-Clause
// Images that somebody changed on purpose: tables that point to where nobody's data may be written.
import TestSupport

/// What is done to an image's tables.
enum ImageMutation: String, CaseIterable, Sendable {
    case entryToHeader, entryToL1, entryToRefcountTable, entryToRefcountBlock, entryToOtherTable, entryToOwnTable
    case entryToSnapshotTable, entryToSnapshotL1, entryTwice, entryBehindEnd, entryUnaligned, entryOfSnapshotCopied
    case tableToHeader, tableToRefcountBlock, tableToData, tableTwice, tableBehindEnd, tableOfSnapshotCopied
    case countOfDataZero, countOfTableZero, countOfHeaderZero, countOfBlockZero, countOfL1Zero, countOfSnapshotOne
    case blockToHeader, blockToL1, blockToTable, blockTwice, blockBehindEnd
    case deflatedToHeader, deflatedToTable, zeroWithTable
    case bitmapBoth, bitmapWithoutCluster, bitmapOfDeflated, bitmapWithZeroFlag
    case randomBits

    /// Changes the image.
    ///
    /// - Returns: clusters of the disk whose data the change concerns; nil where the image has nothing to change.
    func apply(_ image: ByteImage, _ random: inout SplitMix64) -> Set<Int>? {
        guard let layout = ImageLayout(image), layout.isModest else { return nil }
        var mutator = Mutator(image: image, layout: layout, random: random)
        defer { random = mutator.random }
        return mutator.apply(self)
    }
}

/// Finds places to change.
private struct Mutator {
    let image: ByteImage
    let layout: ImageLayout
    var random: SplitMix64
    private let copied: UInt64 = 1 << 63

    init(image: ByteImage, layout: ImageLayout, random: SplitMix64) {
        (self.image, self.layout, self.random) = (image, layout, random)
    }

    private var tables: [Int] { (0..<layout.l1Count).filter { layout.l2Offset(layout.l1Offset, $0) != 0 } }

    /// Clusters of the disk with data of their own.
    private var dataClusters: [Int] {
        (0..<layout.guestClusters).filter {
            if case .data = layout.describe(layout.entry($0)) { return true }
            return false
        }
    }

    private func entryOffset(_ cluster: Int) -> Int { layout.entryOffset(cluster) ?? 0 }

    /// What changes before may have moved a table out of the file.
    private func isInFile(_ offset: Int) -> Bool { offset >= 0 && offset <= image.count - 8 }

    /// Clusters of the disk that have an entry, of such a kind.
    private func clusters(where isSuch: (GuestCluster) -> Bool) -> [Int] {
        (0..<layout.guestClusters).filter { layout.entryOffset($0) != nil && isSuch(layout.describe(layout.entry($0))) }
    }

    /// The second word of an entry says something that cannot be.
    private mutating func setBitmap(_ cluster: Int?, _ set: UInt64) -> Set<Int>? {
        guard let cluster, layout.isExtended else { return nil }
        let place = entryOffset(cluster) + 8
        guard isInFile(place) else { return nil }
        image.put64(image.u64(place) | set, at: place)
        return [cluster]
    }

    private mutating func flag() -> UInt64 { random.onceIn(4) ? 0 : copied }

    /// An L2 entry gets another place.
    private mutating func point(_ place: Int?) -> Set<Int>? {
        guard let place, let cluster = pick(dataClusters) else { return nil }
        image.put64(UInt64(place) | flag(), at: entryOffset(cluster))
        return [cluster]
    }

    private mutating func pick(_ list: [Int]) -> Int? { list.isEmpty ? nil : random.pick(list) }

    private mutating func pointL1(_ place: Int?) -> Set<Int>? {
        guard let place, let index = pick(tables) else { return nil }
        image.put64(UInt64(place) | flag(), at: layout.l1Offset + index * 8)
        return concerned(index)
    }

    private func concerned(_ l1: Int) -> Set<Int> {
        Set((l1 * layout.l2Count..<(l1 + 1) * layout.l2Count).filter { $0 < layout.guestClusters })
    }

    private mutating func setCount(_ offset: Int?, _ value: UInt64, _ concerned: Set<Int>) -> Set<Int>? {
        guard let offset, layout.refcountOrder == 4 else { return nil }
        let cluster = offset >> layout.clusterBits
        let block = cluster / layout.blockCount
        let blocks = layout.refcountBlocks
        guard block < blocks.count, blocks[block] != 0 else { return nil }
        let place = blocks[block] + cluster % layout.blockCount * 2
        guard isInFile(place) else { return nil }
        image.write([UInt8(value >> 8), UInt8(value & 255)], at: place)
        return concerned
    }

    private var usedBlocks: [Int] {
        layout.refcountBlocks.enumerated().filter { $0.element != 0 }.map(\.offset)
    }

    private mutating func pointBlock(_ place: Int?) -> Set<Int>? {
        guard let place, let index = pick(usedBlocks)
        else {
            return nil
        }
        image.put64(UInt64(place), at: layout.refcountOffset + index * 8)
        return []
    }

    mutating func apply(_ mutation: ImageMutation) -> Set<Int>? {
        let size = layout.clusterSize
        let table = pick(tables).map { layout.l2Offset(layout.l1Offset, $0) }
        let snapshot = layout.snapshots.first
        let behind = (layout.fileClusters + random.below(5)) * size
        let block = layout.refcountBlocks.first { $0 != 0 }
        switch mutation {
        case .entryToHeader: return point(0x200 & ~(size - 1)) ?? nil
        case .entryToL1: return point(layout.l1Offset)
        case .entryToRefcountTable: return point(layout.refcountOffset)
        case .entryToRefcountBlock: return point(block)
        case .entryToOtherTable: return point(table)
        case .entryToOwnTable:
            guard let cluster = pick(dataClusters) else { return nil }
            image.put64(UInt64(entryOffset(cluster) & ~(size - 1)) | copied, at: entryOffset(cluster))
            return [cluster]
        case .entryToSnapshotTable: return point(layout.snapshotCount > 0 ? layout.snapshotOffset : nil)
        case .entryToSnapshotL1: return point(snapshot?.l1Offset)
        case .entryTwice:
            guard let first = pick(dataClusters), let second = pick(dataClusters.filter { $0 != first }) else {
                return nil
            }
            image.put64(layout.entry(first), at: entryOffset(second))
            return [first, second]
        case .entryBehindEnd: return point(behind)
        case .entryUnaligned: return size > 512 ? point(layout.l1Offset + 512) : nil
        case .entryOfSnapshotCopied:
            let shared = dataClusters.filter { layout.entry($0) & copied == 0 }
            guard let cluster = pick(shared) else { return nil }
            image.put64(layout.entry(cluster) | copied, at: entryOffset(cluster))
            return [cluster]
        case .tableToHeader: return pointL1(size == 512 ? 512 : layout.l1Offset)
        case .tableToRefcountBlock: return pointL1(block)
        case .tableToData:
            guard let cluster = pick(dataClusters), case .data(let place) = layout.describe(layout.entry(cluster))
            else {
                return nil
            }
            return pointL1(place)?.union([cluster])
        case .tableTwice:
            guard let first = pick(tables), let second = pick(tables.filter { $0 != first }) else { return nil }
            image.put64(image.u64(layout.l1Offset + first * 8), at: layout.l1Offset + second * 8)
            return concerned(first).union(concerned(second))
        case .tableBehindEnd: return pointL1(behind)
        case .tableOfSnapshotCopied:
            guard let index = tables.first(where: { image.u64(layout.l1Offset + $0 * 8) & copied == 0 }) else {
                return nil
            }
            image.put64(image.u64(layout.l1Offset + index * 8) | copied, at: layout.l1Offset + index * 8)
            return concerned(index)
        case .countOfDataZero:
            guard let cluster = pick(dataClusters), case .data(let place) = layout.describe(layout.entry(cluster))
            else {
                return nil
            }
            return setCount(place, 0, [cluster])
        case .countOfTableZero: return setCount(table, 0, [])
        case .countOfHeaderZero: return setCount(0, 0, [])
        case .countOfBlockZero: return setCount(block, 0, [])
        case .countOfL1Zero: return setCount(layout.l1Offset, 0, [])
        case .countOfSnapshotOne:
            let shared = dataClusters.filter { layout.entry($0) & copied == 0 }
            guard let cluster = pick(shared), case .data(let place) = layout.describe(layout.entry(cluster)) else {
                return nil
            }
            return setCount(place, 1, [cluster])
        case .blockToHeader: return pointBlock(0)
        case .blockToL1: return pointBlock(layout.l1Offset)
        case .blockToTable: return pointBlock(table)
        case .blockTwice:
            guard let block, isInFile(layout.refcountOffset + 8) else { return nil }
            image.put64(UInt64(block), at: layout.refcountOffset + 8)
            return []
        case .blockBehindEnd: return pointBlock(behind)
        case .deflatedToHeader: return point(flags: 1 << 62, 100)
        case .deflatedToTable: return table.flatMap { point(flags: 1 << 62, UInt64($0)) }
        case .zeroWithTable: return table.flatMap { layout.version >= 3 ? point(flags: copied | 1, UInt64($0)) : nil }
        case .bitmapBoth:
            let bit = UInt64(random.below(32))
            return setBitmap(pick(dataClusters), 1 << bit | 1 << (bit + 32))
        case .bitmapWithoutCluster:
            return setBitmap(pick(clusters { $0 == .hole }), 1 << UInt64(random.below(32)))
        case .bitmapOfDeflated:
            let deflated = clusters { if case .compressed = $0 { true } else { false } }
            return setBitmap(pick(deflated), 1 << UInt64(random.below(64)))
        case .bitmapWithZeroFlag:
            guard let cluster = pick(dataClusters), layout.isExtended else { return nil }
            image.put64(layout.entry(cluster) | 1, at: entryOffset(cluster))
            return [cluster]
        case .randomBits: return flipBits()
        }
    }

    private mutating func point(flags: UInt64, _ place: UInt64) -> Set<Int>? {
        guard let cluster = pick(dataClusters) else { return nil }
        image.put64(place | flags, at: entryOffset(cluster))
        return [cluster]
    }

    /// Some bits of the tables, not of the header.
    private mutating func flipBits() -> Set<Int>? {
        var places = [layout.l1Offset..<layout.l1Offset + layout.l1Count * 8]
        for table in tables {
            places.append(
                layout.l2Offset(layout.l1Offset, table)..<layout.l2Offset(layout.l1Offset, table) + layout.clusterSize)
        }
        for block in layout.refcountBlocks where block != 0 { places.append(block..<block + layout.clusterSize) }
        for _ in 0..<1 + random.below(4) {
            let place = random.pick(places)
            let offset = place.lowerBound + random.below(min(place.count, 256))
            guard isInFile(offset) else { continue }
            image.write([image.u8(offset) ^ UInt8(1 << random.below(8))], at: offset)
        }
        return Set(0..<layout.guestClusters)
    }
}
