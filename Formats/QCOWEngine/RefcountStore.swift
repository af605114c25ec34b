// SPDX-License-Identifier: BSD-2-Clause
// The refcounts of an image: the table in memory, the blocks as they are needed, and what of them was changed.
import Glibc
import ImageCore
import ImageWriting
import QCOW2

/// Refcounts of an image, for one thread at a time: the owner's lock is around it.
struct RefcountStore: ~Copyable {
    private let storage: any ImageStorage
    let geometry: QCOWGeometry
    /// Places of the blocks, bytes of the file; 0: none.
    private(set) var table: [UInt64]
    /// The table itself.
    private(set) var tableOffset: UInt64
    private(set) var tableClusters: UInt64
    private var blocks: [Int: Cached] = [:]
    private var clock: UInt64 = 0

    private struct Cached {
        var block: RefcountBlock
        /// Bytes that the file does not have yet.
        var changed: Range<Int>?
        var used: UInt64
    }

    /// Bytes of blocks that are kept; those that were changed are written before they go.
    private static let cacheBytes = QCOWProbe.refcountCache

    /// Reads the table of an image whose header was judged, and judges the places of its blocks.
    init(_ storage: any ImageStorage, _ header: QCOWHeader) throws(ImageError) {
        self.storage = storage
        geometry = QCOWGeometry(header)
        (tableOffset, tableClusters) = (header.refcountOffset, UInt64(header.refcountClusters))
        let count = Int(tableClusters << (geometry.clusterBits - 3))
        var table = [UInt64](repeating: 0, count: count)
        let (clusterSize, size) = (geometry.clusterSize, storage.size)
        try storage.forEachNonZeroWord(at: header.refcountOffset, count: count) { (index, word) throws(ImageError) in
            guard word & (clusterSize - 1) == 0, word >= clusterSize, word < size else {
                throw .damaged("entry \(index) of its refcount table points to offset \(word)")
            }
            table[index] = word
        }
        self.table = table
    }

    /// Refcounts that the table has room for.
    var capacity: UInt64 { UInt64(table.count) << geometry.blockBits }

    /// True if a block stands for the cluster.
    func hasBlock(for cluster: UInt64) -> Bool { place(of: cluster) != 0 }

    private func place(of cluster: UInt64) -> UInt64 {
        let index = cluster >> geometry.blockBits
        return index < UInt64(table.count) ? table[Int(index)] : 0
    }

    /// The refcount of a cluster; 0 where there is no block.
    mutating func count(of cluster: UInt64) throws(ImageError) -> UInt64 {
        guard place(of: cluster) != 0 else { return 0 }
        let index = Int(cluster >> geometry.blockBits)
        try load(index)
        return blocks[index]?.block[Int(cluster & (geometry.refcountsPerBlock - 1))] ?? 0
    }

    /// Changes a refcount in memory. A block must stand for it.
    mutating func set(_ cluster: UInt64, to value: UInt64) throws(ImageError) {
        let index = Int(cluster >> geometry.blockBits)
        guard place(of: cluster) != 0 else { throw .damaged("there is no refcount block for cluster \(cluster)") }
        try load(index)
        let within = Int(cluster & (geometry.refcountsPerBlock - 1))
        blocks[index]?.block[within] = value
        guard let place = blocks[index]?.block.place(of: within) else { return }
        let old = blocks[index]?.changed ?? place
        blocks[index]?.changed = min(old.lowerBound, place.lowerBound)..<max(old.upperBound, place.upperBound)
    }

    /// Puts all changes into the file, in whole sectors.
    mutating func write() throws(ImageError) {
        for index in blocks.keys.sorted() { try write(index) }
    }

    /// Forgets changes that could not be written: the file is right.
    mutating func forgetChanges() {
        for (index, cached) in blocks where cached.changed != nil { blocks[index] = nil }
    }

    private mutating func write(_ index: Int) throws(ImageError) {
        guard let cached = blocks[index], let changed = cached.changed else { return }
        let sectors = changed.lowerBound & ~511..<min((changed.upperBound + 511) & ~511, cached.block.bytes.count)
        try check(
            storage.write(cached.block.bytes[sectors], at: table[index] + UInt64(sectors.lowerBound)),
            "cannot write the refcounts")
        blocks[index]?.changed = nil
    }

    private mutating func load(_ index: Int) throws(ImageError) {
        clock &+= 1
        if blocks[index] != nil {
            blocks[index]?.used = clock
            return
        }
        if UInt64(blocks.count + 1) * geometry.clusterSize > Self.cacheBytes, blocks.count > 1 {
            // The one that was used longest ago makes room.
            if let oldest = blocks.min(by: { $0.value.used < $1.value.used })?.key {
                try write(oldest)
                blocks[oldest] = nil
            }
        }
        let bytes = try storage.bytes(at: table[index], count: Int(geometry.clusterSize))
        guard bytes.count == Int(geometry.clusterSize) else {
            throw .damaged("a refcount block is not in the file")
        }
        blocks[index] = Cached(
            block: RefcountBlock(bytes, order: geometry.refcountOrder), changed: nil, used: clock)
    }

    // MARK: Growth

    /// Takes a new block into memory and file: all refcounts 0, at `place`. It is referred to with ``publishBlocks(_:)``.
    mutating func addBlock(_ index: Int, at place: UInt64) {
        table[index] = place
        clock &+= 1
        let size = Int(geometry.clusterSize)
        blocks[index] = Cached(
            block: RefcountBlock(Array(repeating: 0, count: size), order: geometry.refcountOrder), changed: 0..<size,
            used: clock)
    }

    /// A new block did not come to be.
    mutating func removeBlock(_ index: Int) {
        table[index] = 0
        blocks[index] = nil
    }

    /// Puts the table's entries for new blocks into the file. The blocks are durable.
    func publishBlocks(_ indexes: Range<Int>) throws(ImageError) {
        guard !indexes.isEmpty else { return }
        try check(
            storage.write(table[indexes].bigEndianBytes, at: tableOffset + UInt64(indexes.lowerBound) * 8),
            "cannot write the refcount table")
    }

    /// The table in memory has room for `entries`; the file's is as it was.
    mutating func extend(to entries: Int) {
        if entries > table.count { table += Array(repeating: 0, count: entries - table.count) }
    }

    /// The table in memory is as long as the file's again.
    mutating func shrink(to entries: Int) {
        if entries < table.count { table.removeLast(table.count - entries) }
    }

    /// Puts the whole table at another place; the header still points to the old one.
    func writeTable(at offset: UInt64) throws(ImageError) {
        try check(storage.write(table.bigEndianBytes[...], at: offset), "cannot write the refcount table")
    }

    /// The header points to the table at another place.
    mutating func moved(to offset: UInt64, clusters: UInt64) { (tableOffset, tableClusters) = (offset, clusters) }
}
