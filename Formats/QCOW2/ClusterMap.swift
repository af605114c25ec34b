// SPDX-License-Identifier: BSD-2-Clause
// Where the bytes of a disk stand in its image: the way through L1 and L2 tables.  One per queue, so nothing is locked.
import Glibc
import ImageCore

/// Why a part of an image cannot be read.
public struct ReadFault: Error {
    /// A positive errno.
    public let code: Int32
    /// Words for the operator.
    public let cause: StaticString
    /// The place in the file that shows it.
    public let place: UInt64

    /// A fault.
    public init(code: Int32, cause: StaticString, place: UInt64) {
        self.code = code
        self.cause = cause
        self.place = place
    }
}

/// What stands behind a range of a disk.
public enum Extent: Equatable {
    /// Nothing in this layer: the backing file's, or zeroes.
    case hole
    /// Zeroes, whatever the backing file has.
    case zeroes
    /// The bytes at this offset of the file.
    case data(UInt64)
    /// One whole cluster that is encrypted; its offset in the file.
    case encrypted(UInt64)
    /// One whole cluster, deflated: the offset in the file and the bytes that it can take there.
    case compressed(UInt64, Int)
}

/// The way from an offset of the disk to its place in the file, with a cache of pieces of L2 tables; for one thread.
///
/// The cache is memory behind pointers, not arrays: a lookup is done for each request, without checks of bounds that hold by
/// construction. A place is below `places`, and an index within it below 2^pieceBits.
@safe
public final class ClusterMap {
    private let image: QCOWImage
    /// Asked for pieces that are not in the cache.
    private let tables: any ImageReader
    private let version: UInt32
    private let clusterBits: UInt64
    private let clusterSize: UInt64
    private let l2Bits: UInt64
    /// Entries of a piece: a page of a table, or a whole one that is smaller.
    private let pieceBits: UInt64
    /// The piece's number plus one that each place of the cache has.
    private let tags: UnsafeMutablePointer<UInt64>
    private let entries: UnsafeMutablePointer<UInt64>
    private let places: Int
    private let fileSize: UInt64
    private let isEncrypted: Bool

    /// A map of `image` with a cache of `cacheBytes`, which reads L2 tables from `tables`: the file of the image.
    public init(_ image: QCOWImage, reading tables: any ImageReader, cacheBytes: UInt64) {
        self.image = image
        self.tables = tables
        version = image.header.version
        clusterBits = UInt64(image.header.clusterBits)
        clusterSize = image.header.clusterSize
        l2Bits = UInt64(image.header.l2Bits)
        (fileSize, isEncrypted) = (image.fileSize, image.isEncrypted)
        pieceBits = min(l2Bits, 9)
        // No more places than the disk has pieces.
        let needed = image.size >> (clusterBits + pieceBits) + 1
        places = Int(max(1, min(cacheBytes >> (pieceBits + 3), needed, 1 << 20)))
        unsafe tags = .allocate(capacity: places)
        unsafe tags.initialize(repeating: 0, count: places)
        unsafe entries = .allocate(capacity: places << Int(pieceBits))
        unsafe entries.initialize(repeating: 0, count: places << Int(pieceBits))
    }

    deinit {
        unsafe tags.deallocate()
        unsafe entries.deallocate()
    }

    /// What stands at `offset`, and for how many of `length` bytes: at least one, and within one piece of a table.
    ///
    /// `offset` and `length` lie in the disk, and `length` is not 0.
    public func find(_ offset: UInt64, _ length: UInt64) throws(ReadFault) -> (Extent, UInt64) {
        let cluster = offset >> clusterBits
        let within = offset & (clusterSize - 1)
        let l1Index = Int(cluster >> l2Bits)
        guard l1Index < image.l1.count else {
            throw ReadFault(code: EIO, cause: "the L1 table has no entry for it", place: 0)
        }
        let table = image.l1[l1Index]
        if table == 0 {
            // All that an L2 table would describe is a hole.
            let reach = clusterSize << l2Bits
            return (.hole, min(length, reach - offset & (reach - 1)))
        }
        let piece = cluster >> pieceBits
        let place = try load(piece, of: table)
        let last = (1 << pieceBits) - 1
        var index = Int(cluster & UInt64(last))
        let base = place << Int(pieceBits)
        let first = try describe(unsafe entries[base + index])
        var reached = clusterSize - within
        // Neighbours of the same kind make one transfer.
        joining: while reached < length, index < last {
            index += 1
            let next = try? describe(unsafe entries[base + index])
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

    /// Brings a piece into the cache.
    private func load(_ piece: UInt64, of table: UInt64) throws(ReadFault) -> Int {
        let place = Int(piece % UInt64(places))
        if unsafe tags[place] == piece + 1 { return place }
        let within = piece & ((1 << (l2Bits - pieceBits)) - 1)
        let at = table + within << (pieceBits + 3)
        let first = unsafe entries + place << Int(pieceBits)
        let count = 1 << Int(pieceBits)
        unsafe tags[place] = 0
        var memory = unsafe UnsafeMutableRawBufferPointer(start: first, count: count * 8).mutableBytes
        let code = tables.read(into: &memory, at: at)
        guard code == 0 else { throw ReadFault(code: -code, cause: "its L2 table cannot be read", place: at) }
        for index in 0..<count { unsafe first[index] = unsafe UInt64(bigEndian: first[index]) }
        unsafe tags[place] = piece + 1
        return place
    }

    /// What an L2 entry says; every place is within the file.
    private func describe(_ entry: UInt64) throws(ReadFault) -> Extent {
        if entry == 0 { return .hole }
        return version == 1 ? try describeVersion1(entry) : try describeVersion2(entry)
    }

    private func describeVersion2(_ entry: UInt64) throws(ReadFault) -> Extent {
        if entry & 1 << 62 != 0 {
            let shift = 62 - (clusterBits - 8)
            let offset = entry & (1 << shift - 1)
            let sectors = (entry & (1 << 62 - 1)) >> shift + 1
            return try compressed(offset, sectors * 512 - offset & 511)
        }
        let offset = entry & 0x00ff_ffff_ffff_fe00
        if entry & 1 != 0 {
            guard version >= 3 else {
                throw ReadFault(code: EIO, cause: "a version 2 image has a zero cluster", place: offset)
            }
            return .zeroes
        }
        return offset == 0 ? .hole : try plain(offset, entry)
    }

    private func describeVersion1(_ entry: UInt64) throws(ReadFault) -> Extent {
        if entry & 1 << 63 != 0 {
            let shift = 63 - clusterBits
            return try compressed(entry & (1 << shift - 1), entry >> shift & (clusterSize - 1))
        }
        return try plain(entry, entry)
    }

    private func plain(_ offset: UInt64, _ entry: UInt64) throws(ReadFault) -> Extent {
        let unit = version == 1 && !isEncrypted ? 512 : clusterSize
        guard offset & (unit - 1) == 0 else {
            throw ReadFault(code: EIO, cause: "the L2 table points into the middle of a cluster", place: offset)
        }
        guard offset < fileSize, clusterSize <= fileSize - offset else {
            throw ReadFault(code: EIO, cause: "its cluster is not in the file", place: offset)
        }
        guard isEncrypted else { return .data(offset) }
        // libqcow takes reserved bits for a part of the place, and reads beyond its buffer then.
        guard entry & ~(1 << 63) == offset else {
            throw ReadFault(code: EIO, cause: "its L2 entry has reserved bits", place: offset)
        }
        return .encrypted(offset)
    }

    private func compressed(_ offset: UInt64, _ length: UInt64) throws(ReadFault) -> Extent {
        guard !isEncrypted else {
            throw ReadFault(code: EOPNOTSUPP, cause: "a cluster is compressed in an encrypted image", place: offset)
        }
        guard offset > 0, length > 0, offset < fileSize else {
            throw ReadFault(code: EIO, cause: "its compressed cluster is not in the file", place: offset)
        }
        // The length counts whole sectors, of which the file need not have the last.
        return .compressed(offset, Int(min(length, fileSize - offset)))
    }
}
