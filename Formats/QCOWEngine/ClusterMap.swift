// SPDX-License-Identifier: BSD-2-Clause
// Where the bytes of a disk stand in its image: the L1 table, and a cache of pieces of L2 tables that all queues share.
import Glibc
import ImageCore
import QCOW2
import Synchronization

/// The way from an offset of the disk to its place in the file.
///
/// A piece of the cache is looked at and changed under the lock of its place, one of 64, so queues seldom meet. A queue's thread
/// tries the lock and lets a helper do what it does not get.
///
/// A fence for unsafe memory: a place is below `places`, an index within it below 2^pieceBits, and an index of the L1 table
/// below `l1Count`, which never exceeds `l1Room`.
///
/// `@unchecked Sendable`: pieces are used under their locks; the L1 table is atomic.
@safe
public final class ClusterMap: @unchecked Sendable {
    /// The image.
    public let image: QCOWImage
    /// Asked for pieces that are not in the cache.
    private let tables: any ImageReader
    private let decoder: EntryDecoder
    let clusterBits: UInt64
    let clusterSize: UInt64
    let l2Bits: UInt64
    /// Words of an entry, as a power of two.
    let wordBits: UInt64
    /// Entries of a piece, as a power of two: a page of a table, or a whole one that is smaller.
    let pieceBits: UInt64
    /// L2 entries point into a file that has the data alone.
    let hasDataFile: Bool
    /// The piece's number plus one that each place of the cache has.
    private let tags: UnsafeMutablePointer<UInt64>
    private let entries: UnsafeMutablePointer<UInt64>
    private let places: Int
    private let locks = LockTable(count: 64)
    private let l1: UnsafeMutablePointer<Atomic<UInt64>>
    private let l1Room: Int
    private let entryCount: Atomic<Int>
    /// Bytes of the file, which grows with the engine's reserve.
    private let end: Atomic<UInt64>
    /// Bytes of the data file, up to a whole cluster.
    private let endOfData: Atomic<UInt64>
    /// Looks at a piece that was read, and takes ``L2Entry/copied`` away where it is not true. Set before the map is shared.
    nonisolated(unsafe) var judge: ((_ piece: Piece) -> Void)?

    /// QEMU's QCOW_MAX_L1_SIZE, in entries.
    private static let mostL1 = Int(QCOWCheck.largestL1 / 8)

    /// A map of `image` with a cache of `cacheBytes`, which reads L2 tables from `tables`: the file of the image. With
    /// `canGrow` the L1 table may become longer. `dataBytes`: of the external data file, if the image has one.
    public init(
        _ image: QCOWImage, reading tables: any ImageReader, cacheBytes: UInt64, canGrow: Bool = false,
        dataBytes: UInt64 = 0
    ) throws(ImageError) {
        self.image = image
        self.tables = tables
        decoder = EntryDecoder(image.header)
        clusterBits = UInt64(image.header.clusterBits)
        clusterSize = image.header.clusterSize
        l2Bits = UInt64(image.header.l2Bits)
        wordBits = image.header.hasExtendedL2 ? 1 : 0
        end = Atomic(image.fileSize)
        hasDataFile = image.header.hasDataFile
        endOfData = Atomic(Self.wholeClusters(dataBytes, image.header))
        pieceBits = min(l2Bits, 9 - wordBits)
        // No more places than the disk has pieces.
        let needed = canGrow ? .max : image.size >> (clusterBits + pieceBits) + 1
        places = Int(max(1, min(cacheBytes >> (pieceBits + wordBits + 3), needed, 1 << 20)))
        // Memory that is not touched takes no room.
        l1Room = canGrow ? Self.mostL1 : max(image.l1.count, 1)
        guard let tags = unsafe calloc(places, 8), let entries = unsafe calloc(places << Int(pieceBits + wordBits), 8),
            let l1 = unsafe calloc(l1Room, 8)
        else { throw ImageError(.unreadable(ENOMEM), "no memory for the tables of the image") }
        unsafe self.tags = tags.assumingMemoryBound(to: UInt64.self)
        unsafe self.entries = entries.assumingMemoryBound(to: UInt64.self)
        unsafe self.l1 = l1.assumingMemoryBound(to: Atomic<UInt64>.self)
        entryCount = Atomic(image.l1.count)
        for index in image.l1.indices where image.l1[index] != 0 {
            unsafe self.l1[index].store(image.l1[index], ordering: .relaxed)
        }
    }

    deinit {
        unsafe free(tags)
        unsafe free(entries)
        unsafe free(l1)
    }

    // MARK: The L1 table

    /// Entries.
    var l1Count: Int { entryCount.load(ordering: .acquiring) }

    /// An entry; 0 behind the end.
    @inline(__always)
    func l1Entry(_ index: Int) -> UInt64 {
        index < entryCount.load(ordering: .acquiring) ? unsafe l1[index].load(ordering: .acquiring) : 0
    }

    /// The table in the file was changed.
    func setL1(_ index: Int, _ entry: UInt64) {
        guard index < l1Count else { return }
        unsafe l1[index].store(entry, ordering: .releasing)
    }

    /// The table in the file has more entries; false if that are too many.
    func growL1(to count: Int) -> Bool {
        guard count <= l1Room else { return false }
        if count > l1Count { entryCount.store(count, ordering: .releasing) }
        return true
    }

    /// Bytes of the file: no entry may point behind them.
    var fileEnd: UInt64 {
        get { end.load(ordering: .acquiring) }
        set { end.store(newValue, ordering: .releasing) }
    }

    /// The data file has so many bytes now.
    func setDataBytes(_ count: UInt64) {
        endOfData.store(Self.wholeClusters(count, image.header), ordering: .releasing)
    }

    /// A data file ends with the disk, within its last cluster.
    private static func wholeClusters(_ bytes: UInt64, _ header: QCOWHeader) -> UInt64 {
        min(bytes, 1 << 62) & (header.clusterSize - 1) == 0
            ? bytes : (min(bytes, 1 << 62) | (header.clusterSize - 1)) + 1
    }

    // MARK: Pieces

    /// A piece of an L2 table, under its lock.
    @safe
    struct Piece {
        fileprivate let base: UnsafeMutablePointer<UInt64>
        fileprivate let place: Int
        /// Entries.
        let count: Int
        /// Entries have a second word.
        let isExtended: Bool
        /// The L1 entry that it belongs to.
        let table: UInt64
        /// Of its first entry, bytes of the file.
        let offset: UInt64

        @inline(__always)
        subscript(index: Int) -> L2Entry {
            get {
                let index = index & (count - 1)
                guard isExtended else { return L2Entry(unsafe base[index]) }
                return L2Entry(unsafe base[index * 2], bitmap: unsafe base[index * 2 + 1])
            }
            nonmutating set {
                let index = index & (count - 1)
                guard isExtended else { return unsafe base[index] = newValue.raw }
                unsafe base[index * 2] = newValue.raw
                unsafe base[index * 2 + 1] = newValue.bitmap
            }
        }

        /// Of an entry, bytes of the file.
        @inline(__always)
        func offset(of index: Int) -> UInt64 { offset + UInt64(index) << (isExtended ? 4 : 3) }

        /// Takes ``L2Entry/copied`` from an entry.
        func disown(_ index: Int) {
            let entry = self[index]
            self[index] = L2Entry(entry.raw & ~L2Entry.copied, bitmap: entry.bitmap)
        }
    }

    /// The index of a cluster of the disk in its piece.
    @inline(__always)
    func index(_ cluster: UInt64) -> Int { Int(cluster & (1 << pieceBits - 1)) }

    /// The piece of a cluster of the disk if it is in the cache and nobody has it; ``unlock(_:)`` it. Does not sleep.
    @inline(__always)
    func tryPiece(of cluster: UInt64) -> Piece? {
        let table = l1Entry(Int(cluster >> l2Bits))
        guard table & L2Entry.offsetMask != 0 else { return nil }
        let number = cluster >> pieceBits
        let place = Int(number % UInt64(places))
        guard locks.tryLock(place) else { return nil }
        guard unsafe tags[place] == Self.tag(number, table) else {
            locks.unlock(place)
            return nil
        }
        return piece(place, number, table)
    }

    /// The piece of a cluster of the disk, read from the file if need be; ``unlock(_:)`` it. nil: there is no table.
    func lockPiece(of cluster: UInt64) throws(ReadFault) -> Piece? {
        let table = l1Entry(Int(cluster >> l2Bits))
        guard place(ofTable: table) != 0 else { return nil }
        let number = cluster >> pieceBits
        let place = Int(number % UInt64(places))
        locks.lock(place)
        // Under the lock: an entry is changed in the cache and in the file under it too. The table may be another one by now.
        let current = l1Entry(Int(cluster >> l2Bits))
        let found = piece(place, number, current)
        let tag = Self.tag(number, current)
        if unsafe tags[place] == tag { return found }
        unsafe tags[place] = 0
        let words = found.count << Int(wordBits)
        var memory = unsafe UnsafeMutableRawBufferPointer(start: found.base, count: words * 8).mutableBytes
        let code = tables.read(into: &memory, at: found.offset)
        guard code == 0 else {
            locks.unlock(place)
            throw ReadFault(code: -code, cause: "its L2 table cannot be read", place: found.offset, isDamage: false)
        }
        for index in 0..<words { unsafe found.base[index] = unsafe UInt64(bigEndian: found.base[index]) }
        // Entries of a data file have no refcounts.
        if let judge = unsafe judge, !hasDataFile {
            let isOwn = current & L2Entry.copied != 0
            if !isOwn { for index in 0..<found.count { found.disown(index) } }
            if isOwn { judge(found) }
        }
        unsafe tags[place] = tag
        return found
    }

    /// What stands for a piece in the cache, never 0. One of a table that was not the disk's alone lacks flags, so it is none of the
    /// same table once that is.
    @inline(__always)
    private static func tag(_ number: UInt64, _ table: UInt64) -> UInt64 { (number &+ 1) << 1 | table >> 63 }

    /// Gives a piece back.
    @inline(__always)
    func unlock(_ piece: Piece) { locks.unlock(piece.place) }

    /// Forgets a piece, whose entries in the cache may differ from the file. It stays locked.
    func forget(_ piece: Piece) { unsafe tags[piece.place] = 0 }

    /// Forgets all pieces of a table: what is in the cache may have other flags than the table that took its place.
    func forgetTable(_ l1Index: Int) {
        let perTable = 1 << (l2Bits - pieceBits)
        for step in 0..<UInt64(perTable) {
            let number = UInt64(l1Index) << (l2Bits - pieceBits) + step
            let place = Int(number % UInt64(places))
            locks.lock(place)
            if unsafe tags[place] >> 1 == number + 1 { unsafe tags[place] = 0 }
            locks.unlock(place)
        }
    }

    @inline(__always)
    private func place(ofTable entry: UInt64) -> UInt64 {
        image.header.version == 1 ? entry : entry & L2Entry.offsetMask
    }

    @inline(__always)
    private func piece(_ place: Int, _ number: UInt64, _ table: UInt64) -> Piece {
        let within = number & (1 << (l2Bits - pieceBits) - 1)
        return unsafe Piece(
            base: entries + place << Int(pieceBits + wordBits), place: place, count: 1 << Int(pieceBits),
            isExtended: wordBits != 0, table: table,
            offset: self.place(ofTable: table) + within << (pieceBits + wordBits + 3))
    }

    // MARK: Reading

    /// The standard L2 entry of a cluster of the disk has bits that mean nothing in a format of 2 or 3; false where it cannot be read.
    public func hasReservedBits(_ cluster: UInt64) -> Bool {
        guard image.header.version >= 2, let piece = try? lockPiece(of: cluster) else { return false }
        defer { unlock(piece) }
        return piece[index(cluster)].hasReservedBits(isExtended: false)
    }

    /// What a standard entry says to a reader.
    @inline(__always)
    private func extent(_ entry: L2Entry, at cluster: UInt64) throws(ReadFault) -> Extent {
        if hasDataFile {
            return try decoder.describe(
                entry.raw, home: cluster << clusterBits, fileSize: endOfData.load(ordering: .acquiring))
        }
        return try decoder.describe(entry.raw, fileSize: fileEnd)
    }

    /// What stands at `offset`, and for how many of `length` bytes: at least one, and within one piece of a table. May sleep.
    ///
    /// `offset` and `length` lie in the disk, and `length` is not 0.
    public func find(_ offset: UInt64, _ length: UInt64) throws(ReadFault) -> (Extent, UInt64) {
        let cluster = offset >> clusterBits
        guard Int(cluster >> l2Bits) < l1Count else {
            throw ReadFault(code: EIO, cause: "the L1 table has no entry for it", place: 0)
        }
        guard let piece = try lockPiece(of: cluster) else {
            // All that an L2 table would describe is a hole.
            let reach = clusterSize << l2Bits
            return (.hole, min(length, reach - offset & (reach - 1)))
        }
        defer { unlock(piece) }
        return try reach(in: piece, offset, length)
    }

    /// As ``find(_:_:)``, if that needs neither sleep nor the lock of somebody else.
    @inline(__always)
    func findNow(_ offset: UInt64, _ length: UInt64) -> (Extent, UInt64)? {
        let cluster = offset >> clusterBits
        guard let piece = tryPiece(of: cluster) else {
            guard Int(cluster >> l2Bits) < l1Count, l1Entry(Int(cluster >> l2Bits)) == 0 else { return nil }
            let reach = clusterSize << l2Bits
            return (.hole, min(length, reach - offset & (reach - 1)))
        }
        defer { unlock(piece) }
        return try? reach(in: piece, offset, length)
    }

    @inline(__always)
    private func reach(in piece: Piece, _ offset: UInt64, _ length: UInt64) throws(ReadFault) -> (Extent, UInt64) {
        if piece.isExtended { return try reachBySubclusters(in: piece, offset, length) }
        let within = offset & (clusterSize - 1)
        var index = index(offset >> clusterBits)
        var cluster = offset >> clusterBits
        let first = try extent(piece[index], at: cluster)
        var reached = clusterSize - within
        // Neighbours of the same kind make one transfer.
        joining: while reached < length, index + 1 < piece.count {
            index += 1
            cluster += 1
            let next = try? extent(piece[index], at: cluster)
            switch (first, next) {
            case (.hole, .hole?), (.zeroes, .zeroes?): break
            case (.data(let start), .data(let other)?) where other == start + within + reached: break
            default: break joining
            }
            reached += clusterSize
        }
        let count = min(length, reached)
        switch first {
        case .data(let start): return (.data(start + within), count)
        default: return (first, count)
        }
    }

    /// The same by subclusters.
    private func reachBySubclusters(
        in piece: Piece, _ offset: UInt64, _ length: UInt64
    ) throws(ReadFault) -> (Extent, UInt64) {
        let (bits, inCluster) = (clusterBits - 5, offset & (clusterSize - 1))
        let within = offset & (1 << bits - 1)
        var (index, next) = (index(offset >> clusterBits), Int(inCluster >> bits))
        let (first, run) = try decoder.describe(piece[index], from: next, fileSize: fileEnd)
        if case .compressed = first { return (first, min(length, clusterSize - inCluster)) }
        var reached = UInt64(run) << bits - within
        next += run
        joining: while reached < length, next == SubclusterMask.count, index + 1 < piece.count {
            index += 1
            guard let (other, more) = try? decoder.describe(piece[index], from: 0, fileSize: fileEnd) else { break }
            switch (first, other) {
            case (.hole, .hole), (.zeroes, .zeroes): break
            case (.data(let start), .data(let place)) where place == start + within + reached: break
            default: break joining
            }
            reached += UInt64(more) << bits
            next = more
        }
        let count = min(length, reached)
        if case .data(let start) = first { return (.data(start + within), count) }
        return (first, count)
    }
}
