// SPDX-License-Identifier: BSD-2-Clause
// What an image consists of, for an administrator: counted from its tables, which nobody changes meanwhile.
import ImageCore

/// Clusters of an image by what they are. Bounded in time and memory: a survey of a very large image is a part.
public struct ImageSurvey: Sendable, Equatable {
    /// Clusters of the disk with data in this layer.
    public private(set) var data: UInt64 = 0
    /// Those that are shared with a snapshot or claimed by nobody: they are copied when they are written.
    public private(set) var shared: UInt64 = 0
    /// Those that are compressed.
    public private(set) var compressed: UInt64 = 0
    /// Clusters with the zero flag.
    public private(set) var zeroes: UInt64 = 0
    /// Clusters of the file with a refcount to which nothing refers; nil: not all of the image was read, or its refcounts are
    /// not up to date.
    public private(set) var leaked: UInt64?
    /// Clusters of the file to which something refers and whose refcount is 0.
    public private(set) var uncounted: UInt64 = 0
    /// All of the image was read.
    public private(set) var isComplete = true
    /// Names of internal snapshots.
    public private(set) var snapshots: [[UInt8]] = []

    /// Tables of L2 entries and refcounts that are read at most, in bytes: some tenths of a second.
    private static let mostBytes: UInt64 = 128 << 20

    /// Surveys the image whose header was judged; `image` is its file.
    public init(_ image: some ImageReader, _ opened: QCOWImage) throws(ImageError) {
        let header = opened.header
        guard header.version >= 2, !opened.isEncrypted else { return }
        let geometry = QCOWGeometry(header)
        let table = try SnapshotTable(image, header)
        snapshots = table.entries.map(\.name)
        var used = ClusterSet()
        var budget = Self.mostBytes / geometry.clusterSize
        func add(_ offset: UInt64, _ bytes: UInt64) {
            let first = offset >> geometry.clusterBits
            for cluster in first..<first + geometry.clusters(of: bytes) { used.insert(cluster) }
        }
        add(0, geometry.clusterSize)
        add(header.l1Offset, header.l1Count * 8)
        add(header.refcountOffset, UInt64(header.refcountClusters) << geometry.clusterBits)
        if header.snapshotCount > 0 { add(header.snapshotOffset, table.byteCount) }
        for entry in opened.l1 where entry != 0 {
            guard try read(image, entry & L2Entry.offsetMask, geometry, &used, &budget, counts: true) else { return }
        }
        for snapshot in table.entries {
            add(snapshot.l1Offset, snapshot.l1Count * 8)
            try image.forEachNonZeroWord(at: snapshot.l1Offset, count: Int(snapshot.l1Count)) {
                (_, word) throws(ImageError) in
                // After the budget nothing more is read.
                guard isComplete else { return }
                _ = try read(image, word & L2Entry.offsetMask, geometry, &used, &budget, counts: false)
            }
            guard isComplete else { return }
        }
        try addBitmaps(image, header, geometry, &used)
        if header.incompatible & QCOWHeader.Incompatible.dirty == 0 {
            try countLeaks(image, header, geometry, &used, &budget)
        }
    }

    /// The clusters of dirty bitmaps that are up to date: docs/interop/qcow2.txt, "Bitmaps". One that makes no sense has none.
    private func addBitmaps(
        _ image: some ImageReader, _ header: QCOWHeader, _ geometry: QCOWGeometry, _ used: inout ClusterSet
    ) throws(ImageError) {
        let (offset, length) = header.bitmapDirectory
        guard header.autoclear & 1 != 0, length > 0, length <= 1 << 20, offset < image.size else { return }
        func add(_ place: UInt64, _ bytes: UInt64) {
            guard place < image.size, bytes <= image.size - place else { return }
            let first = place >> geometry.clusterBits
            for cluster in first..<first + geometry.clusters(of: bytes) { used.insert(cluster) }
        }
        add(offset, length)
        let directory = ByteReader(try image.bytes(at: offset, count: Int(length)))
        var (position, budget): (UInt64, Int) = (0, 1 << 20)
        while position + 24 <= UInt64(directory.count) {
            let (table, entries) = (try directory.u64(position), Int(try directory.u32(position + 8)))
            let (name, extra) = (UInt64(try directory.u16(position + 18)), UInt64(try directory.u32(position + 20)))
            guard entries <= budget, table < image.size, UInt64(entries) * 8 <= image.size - table else { return }
            budget -= entries
            add(table, UInt64(entries) * 8)
            try image.forEachNonZeroWord(at: table, count: entries) { _, word in
                if word & L2Entry.offsetMask != 0 { add(word & L2Entry.offsetMask, geometry.clusterSize) }
            }
            position += (24 + extra + name + 7) & ~7
        }
    }

    /// Reads an L2 table; false: the budget is spent.
    private mutating func read(
        _ image: some ImageReader, _ place: UInt64, _ geometry: QCOWGeometry, _ used: inout ClusterSet,
        _ budget: inout UInt64, counts: Bool
    ) throws(ImageError) -> Bool {
        guard place != 0, place < image.size else { return true }
        guard budget > 0 else {
            isComplete = false
            return false
        }
        budget -= 1
        used.insert(place >> geometry.clusterBits)
        for (_, entry) in try image.entries(ofTable: place, geometry) {
            if !geometry.hasDataFile, let clusters = entry.clusters(clusterBits: geometry.clusterBits),
                clusters.upperBound <= image.size >> geometry.clusterBits
            {
                for cluster in clusters { used.insert(cluster) }
            }
            guard counts else { continue }
            if entry.isCompressed {
                (compressed, data) = (compressed + 1, data + 1)
            } else if geometry.isExtended ? entry.raw == 0 : entry.isZero {
                zeroes += 1
            } else if entry.place != 0 || geometry.hasDataFile {
                data += 1
                if entry.raw & L2Entry.copied == 0 { shared += 1 }
            }
        }
        return true
    }

    private mutating func countLeaks(
        _ image: some ImageReader, _ header: QCOWHeader, _ geometry: QCOWGeometry, _ used: inout ClusterSet,
        _ budget: inout UInt64
    ) throws(ImageError) {
        let entries = Int(UInt64(header.refcountClusters) << (geometry.clusterBits - 3))
        var blocks: [(index: Int, place: UInt64)] = []
        try image.forEachNonZeroWord(at: header.refcountOffset, count: entries) { index, word in
            guard word & (geometry.clusterSize - 1) == 0, word < image.size else { return }
            blocks.append((index, word))
            used.insert(word >> geometry.clusterBits)
        }
        var (leaked, counted) = (UInt64(0), UInt64(0))
        for (index, place) in blocks {
            guard budget > 0 else {
                isComplete = false
                return
            }
            budget -= 1
            let block = RefcountBlock(
                try image.bytes(at: place, count: Int(geometry.clusterSize)), order: geometry.refcountOrder)
            // Most blocks of a sparse image are zeroes.
            guard block.isUsed else { continue }
            for within in 0..<block.count where block[within] != 0 {
                if used.contains(UInt64(index) << geometry.blockBits + UInt64(within)) {
                    counted += 1
                } else {
                    leaked += 1
                }
            }
        }
        self.leaked = leaked
        uncounted = used.count - counted
    }
}
