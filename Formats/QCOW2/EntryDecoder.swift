// SPDX-License-Identifier: BSD-2-Clause
// What an entry of an L2 table means for a reader, in each version, checked against the file.
import Glibc

/// Why a part of an image cannot be read.
public struct ReadFault: Error, Equatable {
    /// A positive errno.
    public let code: Int32
    /// Words for the operator.
    public let cause: StaticString
    /// The place in the file that shows it.
    public let place: UInt64
    /// The image is damaged; false: the storage below it fails, or the image has what cannot be read here.
    public let isDamage: Bool

    /// The same fault.
    public static func == (one: ReadFault, other: ReadFault) -> Bool {
        one.code == other.code && one.place == other.place && one.cause.description == other.cause.description
    }

    /// A fault.
    public init(code: Int32, cause: StaticString, place: UInt64, isDamage: Bool = true) {
        self.code = code
        self.cause = cause
        self.place = place
        self.isDamage = isDamage && code == EIO
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

/// Reads entries of one image. Every place that it gives lies within the file.
public struct EntryDecoder: Sendable {
    private let version: UInt32
    private let clusterBits: UInt64
    private let clusterSize: UInt64
    private let isEncrypted: Bool

    /// Of the image with this checked header.
    public init(_ header: QCOWHeader) {
        version = header.version
        clusterBits = UInt64(header.clusterBits)
        clusterSize = header.clusterSize
        isEncrypted = header.encryption == 1
    }

    /// What an extended L2 entry says of the subclusters from `first` on, and of how many: the others are of another kind. Of a
    /// compressed cluster it says the same of all of them.
    public func describe(
        _ entry: L2Entry, from first: Int, fileSize: UInt64
    ) throws(ReadFault) -> (extent: Extent, count: Int) {
        if let fault = entry.bitmapFault { throw ReadFault(code: EIO, cause: fault, place: entry.place) }
        if entry.isCompressed {
            let (offset, length) = entry.compressedRange(clusterBits: clusterBits)
            return (try compressed(offset, length, fileSize), SubclusterMask.count - first)
        }
        let (data, zeroes) = (entry.allocated, entry.zeroed)
        guard data.contains(SubclusterMask(first..<first + 1)) else {
            let isZero = zeroes.contains(SubclusterMask(first..<first + 1))
            return (isZero ? .zeroes : .hole, min(zeroes.run(from: first), data.run(from: first)))
        }
        let (count, bits) = (data.run(from: first), clusterBits - 5)
        guard entry.place & (clusterSize - 1) == 0 else {
            throw ReadFault(code: EIO, cause: "the L2 table points into the middle of a cluster", place: entry.place)
        }
        // A file may end within a cluster, behind its last subcluster with data.
        let end = entry.place + UInt64(first + count) << bits
        guard end <= fileSize else {
            throw ReadFault(code: EIO, cause: "its cluster is not in the file", place: entry.place)
        }
        return (.data(entry.place + UInt64(first) << bits), count)
    }

    /// What an L2 entry says; every place is within the file.
    public func describe(_ entry: UInt64, fileSize: UInt64) throws(ReadFault) -> Extent {
        if entry == 0 { return .hole }
        return version == 1 ? try describeVersion1(entry, fileSize) : try describeVersion2(entry, fileSize)
    }

    /// The same for an image whose data are in a file of `fileSize` bytes, where each cluster stands at its own place, `home`. As in
    /// QEMU, which has no other images.
    public func describe(_ entry: UInt64, home: UInt64, fileSize: UInt64) throws(ReadFault) -> Extent {
        if entry == 0 { return .hole }
        guard entry & L2Entry.compressed == 0 else {
            throw ReadFault(code: EIO, cause: "a cluster is compressed in an image with a data file", place: home)
        }
        if entry & L2Entry.zero != 0 { return .zeroes }
        let offset = entry & L2Entry.offsetMask
        // Offset 0 is a place here, if the entry says that it has one.
        guard offset != 0 || entry & L2Entry.copied != 0 else { return .hole }
        guard offset == home else {
            throw ReadFault(
                code: EIO, cause: "its L2 entry points to another place of the data file than its own", place: offset)
        }
        guard home < fileSize, clusterSize <= fileSize - home else {
            throw ReadFault(code: EIO, cause: "its cluster is not in the data file", place: home)
        }
        return .data(home)
    }

    private func describeVersion2(_ entry: UInt64, _ fileSize: UInt64) throws(ReadFault) -> Extent {
        if entry & L2Entry.compressed != 0 {
            let (offset, length) = L2Entry(entry).compressedRange(clusterBits: clusterBits)
            return try compressed(offset, length, fileSize)
        }
        let offset = entry & L2Entry.offsetMask
        if entry & L2Entry.zero != 0 {
            guard version >= 3 else {
                throw ReadFault(code: EIO, cause: "a version 2 image has a zero cluster", place: offset)
            }
            return .zeroes
        }
        return offset == 0 ? .hole : try plain(offset, entry, fileSize)
    }

    private func describeVersion1(_ entry: UInt64, _ fileSize: UInt64) throws(ReadFault) -> Extent {
        if entry & 1 << 63 != 0 {
            let shift = 63 - clusterBits
            return try compressed(entry & (1 << shift - 1), entry >> shift & (clusterSize - 1), fileSize)
        }
        return try plain(entry, entry, fileSize)
    }

    private func plain(_ offset: UInt64, _ entry: UInt64, _ fileSize: UInt64) throws(ReadFault) -> Extent {
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

    private func compressed(_ offset: UInt64, _ length: UInt64, _ fileSize: UInt64) throws(ReadFault) -> Extent {
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
