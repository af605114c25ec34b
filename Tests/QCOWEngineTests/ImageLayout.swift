// SPDX-License-Identifier: BSD-2-Clause
// A reader of qcow2 tables that shares nothing with the product: where everything stands in a file.
import Foundation

/// What a cluster of the disk has.
enum GuestCluster: Equatable {
    case hole
    case zeroes
    case data(Int)
    /// The offset and the bytes in the file.
    case compressed(Int, Int)
}

/// The header's numbers, and the tables by offset.
struct ImageLayout {
    let image: ByteImage
    let version: Int
    let clusterBits: Int
    let size: Int
    let l1Offset: Int
    let l1Count: Int
    let refcountOffset: Int
    let refcountClusters: Int
    let refcountOrder: Int
    let snapshotCount: Int
    let snapshotOffset: Int
    let incompatible: UInt64
    let hasBacking: Bool

    static let offsetMask = 0x00ff_ffff_ffff_fe00

    /// nil: no header of version 2 or 3 with sane numbers.
    init?(_ image: ByteImage) {
        guard image.u32(0) == 0x5146_49fb, [2, 3].contains(image.u32(4)) else { return nil }
        self.image = image
        version = Int(image.u32(4))
        clusterBits = Int(image.u32(20))
        size = Int(truncatingIfNeeded: image.u64(24))
        l1Count = Int(image.u32(36))
        l1Offset = Int(truncatingIfNeeded: image.u64(40))
        refcountOffset = Int(truncatingIfNeeded: image.u64(48))
        refcountClusters = Int(image.u32(56))
        snapshotCount = Int(image.u32(60))
        snapshotOffset = Int(truncatingIfNeeded: image.u64(64))
        incompatible = version >= 3 ? image.u64(72) : 0
        refcountOrder = version >= 3 ? Int(image.u32(96)) : 4
        hasBacking = image.u64(8) != 0
        guard (9...21).contains(clusterBits), refcountOrder <= 6, size >= 0, size < 1 << 40, l1Count < 1 << 22 else {
            return nil
        }
    }

    /// A few tables, as images of tests have: a header that was changed before may promise a billion.
    var isModest: Bool { guestClusters <= 1 << 20 && refcountClusters <= fileClusters && l1Count <= 1 << 16 }
    var clusterSize: Int { 1 << clusterBits }
    /// L2 entries have a bitmap of subclusters.
    var isExtended: Bool { incompatible & 16 != 0 }
    var entryBytes: Int { isExtended ? 16 : 8 }
    var l2Count: Int { clusterSize / entryBytes }
    /// Clusters of the file; a part of one counts.
    var fileClusters: Int { (image.count + clusterSize - 1) >> clusterBits }
    var guestClusters: Int { (size + clusterSize - 1) >> clusterBits }
    var isDirty: Bool { incompatible & 1 != 0 }
    var isCorrupt: Bool { incompatible & 2 != 0 }
    /// Entries of a refcount block.
    var blockCount: Int { (clusterSize * 8) >> refcountOrder }

    /// Offsets of refcount blocks, 0 where there is none.
    var refcountBlocks: [Int] {
        (0..<refcountClusters * clusterSize / 8).map {
            Int(truncatingIfNeeded: image.u64(refcountOffset + $0 * 8)) & ~511
        }
    }

    /// Tables of active data and of each snapshot: offset and entries.
    var l1Tables: [(offset: Int, count: Int, isActive: Bool)] {
        var tables = [(offset: l1Offset, count: l1Count, isActive: true)]
        for entry in snapshots { tables.append((entry.l1Offset, entry.l1Count, false)) }
        return tables
    }

    /// Snapshots: their L1 tables, and the bytes that the snapshot table takes to their ends.
    var snapshots: [(l1Offset: Int, l1Count: Int, end: Int)] {
        var found: [(l1Offset: Int, l1Count: Int, end: Int)] = []
        var position = snapshotOffset
        for _ in 0..<min(snapshotCount, 64) {
            let (offset, count) = (Int(truncatingIfNeeded: image.u64(position)), Int(image.u32(position + 8)))
            let length =
                40 + Int(image.u32(position + 36)) + Int(image.u16(position + 12)) + Int(image.u16(position + 14))
            position += (length + 7) & ~7
            found.append((offset, min(count, 1 << 20), position))
        }
        return found
    }

    /// An L1 entry: where its L2 table is, or 0.
    func l2Offset(_ l1: Int, _ index: Int) -> Int {
        Int(truncatingIfNeeded: image.u64(l1 + index * 8)) & Self.offsetMask
    }

    /// What an L2 entry says; the first word of an extended one.
    func describe(_ entry: UInt64) -> GuestCluster {
        if entry & 1 << 62 != 0 {
            let shift = UInt64(62 - (clusterBits - 8))
            let offset = Int(entry & (1 << shift - 1))
            let sectors = Int((entry & (1 << 62 - 1)) >> shift) + 1
            return .compressed(offset, sectors * 512 - offset & 511)
        }
        if version >= 3 && !isExtended && entry & 1 != 0 { return .zeroes }
        let offset = Int(truncatingIfNeeded: entry) & Self.offsetMask
        return offset == 0 ? .hole : .data(offset)
    }

    /// Where the L2 entry of a cluster of the disk stands; nil: there is no table.
    func entryOffset(_ cluster: Int) -> Int? {
        let table = l2Offset(l1Offset, cluster / l2Count)
        return table == 0 ? nil : table + cluster % l2Count * entryBytes
    }

    /// The L2 entry of a cluster of the disk as it is now; the first word of an extended one.
    func entry(_ cluster: Int) -> UInt64 { entryOffset(cluster).map { image.u64($0) } ?? 0 }

    /// What the parts of a cluster of the disk have: 32 subclusters, or all of it.
    func parts(_ cluster: Int) -> [(start: Int, length: Int, what: GuestCluster)] {
        let what = describe(entry(cluster))
        guard isExtended, let offset = entryOffset(cluster) else { return [(0, clusterSize, what)] }
        if case .compressed = what { return [(0, clusterSize, what)] }
        let (bitmap, length) = (image.u64(offset + 8), clusterSize / 32)
        return (0..<32).map { number in
            let start = number * length
            if bitmap >> UInt64(number) & 1 != 0, case .data(let place) = what {
                return (start, length, .data(place + start))
            }
            return (start, length, bitmap >> UInt64(number + 32) & 1 != 0 ? .zeroes : .hole)
        }
    }

    /// What is wrong with the second word of an extended entry.
    func bitmapFault(_ offset: Int) -> String? {
        guard isExtended else { return nil }
        let (entry, bitmap) = (image.u64(offset), image.u64(offset + 8))
        if entry & 1 << 62 != 0 { return bitmap == 0 ? nil : "a deflated cluster has subclusters" }
        if entry & 1 != 0 { return "an extended entry has the zero flag" }
        if bitmap & bitmap >> 32 != 0 { return "a subcluster has data and is zero" }
        return describe(entry) == .hole && bitmap & 0xffff_ffff != 0 ? "subclusters have data and no cluster" : nil
    }

    /// The reference count of a cluster of the file.
    func refcount(_ cluster: Int, blocks: [Int]) -> UInt64 {
        let block = cluster / blockCount
        guard block < blocks.count, blocks[block] != 0 else { return 0 }
        let index = cluster % blockCount
        let base = blocks[block]
        switch refcountOrder {
        case 0, 1, 2:
            let bits = 1 << refcountOrder
            let perByte = 8 / bits
            return UInt64(image.u8(base + index / perByte)) >> UInt64(index % perByte * bits) & (1 << UInt64(bits) - 1)
        case 3: return UInt64(image.u8(base + index))
        case 4: return UInt64(image.u16(base + index * 2))
        case 5: return UInt64(image.u32(base + index * 4))
        default: return image.u64(base + index * 8)
        }
    }
}
