// SPDX-License-Identifier: BSD-2-Clause
// The header of an image as it stands in the file: QEMU's docs/interop/qcow2.txt for versions 2 and 3, block/qcow.c for 1.
//
// Everything in here was written by somebody who may be hostile. Numbers are taken as they are; `QCOWCheck` judges them.
import ImageCore

/// A header with its extensions and the names in it.
public struct QCOWHeader: Sendable {
    /// Incompatible feature bits: who does not know one must not read the image.
    public enum Incompatible {
        /// The last writer did not close the image.
        public static let dirty: UInt64 = 1 << 0
        /// The image says that it is damaged.
        public static let corrupt: UInt64 = 1 << 1
        /// The data are in another file.
        public static let dataFile: UInt64 = 1 << 2
        /// The field `compression` counts.
        public static let compressionType: UInt64 = 1 << 3
        /// L2 entries of 16 bytes, with subclusters.
        public static let extendedL2: UInt64 = 1 << 4
        /// All of them, with their words.
        public static let names: [(bit: UInt64, name: String)] = [
            (dirty, "dirty"), (corrupt, "corrupt"), (dataFile, "external data file"),
            (compressionType, "compression type"), (extendedL2, "extended L2 entries"),
        ]
    }

    /// 1, 2 or 3.
    public private(set) var version: UInt32 = 0
    /// Of the disk, in bytes.
    public private(set) var size: UInt64 = 0
    /// Bytes of a cluster, as a power of two.
    public private(set) var clusterBits: UInt32 = 0
    /// Entries of an L2 table, as a power of two.
    public private(set) var l2Bits: UInt32 = 0
    /// 0 none, 1 AES, 2 LUKS.
    public private(set) var encryption: UInt32 = 0
    /// In the file, in bytes.
    public private(set) var l1Offset: UInt64 = 0
    /// Entries of the L1 table.
    public private(set) var l1Count: UInt64 = 0
    /// The reference count table, in bytes of the file.
    public private(set) var refcountOffset: UInt64 = 0
    /// Clusters that it takes.
    public private(set) var refcountClusters: UInt32 = 0
    /// Bits of a reference count, as a power of two.
    public private(set) var refcountOrder: UInt32 = 4
    /// Internal snapshots.
    public private(set) var snapshotCount: UInt32 = 0
    /// Their table, in bytes of the file.
    public private(set) var snapshotOffset: UInt64 = 0
    /// Bits of ``Incompatible``; 0 before version 3.
    public private(set) var incompatible: UInt64 = 0
    /// Features that a reader need not know; 0 before version 3.
    public private(set) var compatible: UInt64 = 0
    /// Features that a writer who does not know them switches off; 0 before version 3.
    public private(set) var autoclear: UInt64 = 0
    /// Persistent dirty bitmaps that the image has; nil: no extension says so.
    public private(set) var bitmaps: UInt32?
    /// Their directory, in bytes of the file, and its length in bytes. It counts only with the bit 0 of ``autoclear``.
    public private(set) var bitmapDirectory: (offset: UInt64, length: UInt64) = (0, 0)
    /// The header has extensions that are not known here.
    public private(set) var hasUnknownExtensions = false
    /// Bytes; the extensions begin behind them.
    public private(set) var headerLength: UInt64 = 0
    /// 0 deflate, 1 zstd; what compressed clusters are.
    public private(set) var compression: UInt8 = 0
    /// The backing file's name, in bytes of the file; 0: no backing file.
    public private(set) var backingOffset: UInt64 = 0
    /// Bytes of the name.
    public private(set) var backingLength: UInt32 = 0
    /// The name as it stands in the image; nil: no backing file.
    public private(set) var backingName: [UInt8]?
    /// What the image says of its backing file's format; nil: nothing.
    public private(set) var backingFormat: [UInt8]?
    /// The name of an external data file.
    public private(set) var dataFileName: [UInt8]?

    /// The image says that it is damaged.
    public var isCorrupt: Bool { incompatible & Incompatible.corrupt != 0 }
    /// The guest's data are in a file of their own.
    public var hasDataFile: Bool { incompatible & Incompatible.dataFile != 0 }
    /// The bit of ``autoclear`` that says that the data file alone shows what the disk shows.
    public static let rawDataFile: UInt64 = 1 << 1

    /// The longest name of a file in an image, as in QEMU.
    public static let longestName = 1023
    /// As much of the file as a header, its extensions and a name can take: all of it stands in the first cluster.
    public static let headBytes = 64 << 10

    /// Bytes of a cluster.
    public var clusterSize: UInt64 { 1 << UInt64(min(clusterBits, 62)) }
    /// L2 entries have a second word, for 32 subclusters.
    public var hasExtendedL2: Bool { incompatible & Incompatible.extendedL2 != 0 }
    /// Bytes of an L2 table.
    public var l2Bytes: UInt64 { (hasExtendedL2 ? 16 : 8) << UInt64(min(l2Bits, 32)) }

    /// QEMU's name of the format: version 1 is another one than 2 and 3.
    public var format: String { version == 1 ? "qcow" : "qcow2" }

    /// The files that the image names.
    public var references: [ImageReference] {
        var found: [ImageReference] = []
        if let backingName { found.append(ImageReference(.backing, name: backingName, format: backingFormat)) }
        if hasDataFile, let dataFileName {
            found.append(ImageReference(.data, name: dataFileName, format: Array("raw".utf8)))
        }
        return found
    }

    /// The version in the first bytes of a file, or nil where it is no image of this family.
    public static func version(of head: some Collection<UInt8>) -> UInt32? {
        let bytes = head.prefix(8)
        guard bytes.count == 8, bytes.prefix(4).elementsEqual([0x51, 0x46, 0x49, 0xfb]) else { return nil }
        return bytes.dropFirst(4).reduce(0) { $0 << 8 | UInt32($1) }
    }

    /// Reads a header from the first bytes of a file.
    public init(_ head: [UInt8]) throws(ImageError) {
        guard let version = Self.version(of: head) else {
            throw ImageError(.invalid, "this is no QCOW image: it does not begin with 'QFI' 0xfb")
        }
        self.version = version
        let reader = ByteReader(head)
        switch version {
        case 1: try readVersion1(reader)
        case 2, 3: try readVersion2(reader)
        default:
            throw ImageError(.invalid, "the image is of QCOW version \(version); 1, 2 and 3 are known")
        }
        backingName = try name(reader)
    }

    private mutating func readVersion1(_ reader: ByteReader) throws(ImageError) {
        (backingOffset, backingLength) = (try reader.u64(8), try reader.u32(16))
        size = try reader.u64(24)
        (clusterBits, l2Bits) = (UInt32(try reader.u8(32)), UInt32(try reader.u8(33)))
        encryption = try reader.u32(36)
        l1Offset = try reader.u64(40)
        headerLength = 48
        // The table's length follows from the size; `QCOWCheck` looks at the bits before it is used.
        let reach = UInt64(min(clusterBits, 32)) + UInt64(min(l2Bits, 32))
        if reach < 63 {
            l1Count = size >> reach + (size & ((1 << reach) - 1) == 0 ? 0 : 1)
        }
    }

    private mutating func readVersion2(_ reader: ByteReader) throws(ImageError) {
        (backingOffset, backingLength) = (try reader.u64(8), try reader.u32(16))
        clusterBits = try reader.u32(20)
        l2Bits = clusterBits >= 3 ? clusterBits - 3 : 0
        size = try reader.u64(24)
        encryption = try reader.u32(32)
        (l1Count, l1Offset) = (UInt64(try reader.u32(36)), try reader.u64(40))
        (refcountOffset, refcountClusters) = (try reader.u64(48), try reader.u32(56))
        (snapshotCount, snapshotOffset) = (try reader.u32(60), try reader.u64(64))
        headerLength = 72
        if version >= 3 {
            incompatible = try reader.u64(72)
            if hasExtendedL2, l2Bits > 0 { l2Bits -= 1 }
            (compatible, autoclear) = (try reader.u64(80), try reader.u64(88))
            refcountOrder = try reader.u32(96)
            headerLength = UInt64(try reader.u32(100))
            guard headerLength >= 104, headerLength % 8 == 0, headerLength <= clusterSize else {
                throw .damaged("its header says that it has \(headerLength) bytes")
            }
            if headerLength >= 112 { compression = try reader.u8(104) }
        }
        try readExtensions(reader)
    }

    private mutating func readExtensions(_ reader: ByteReader) throws(ImageError) {
        var position = headerLength
        // They end where the name of the backing file begins, and with the first cluster.
        let end = min(
            UInt64(reader.count), clusterSize, backingOffset > 0 && backingLength > 0 ? backingOffset : .max)
        while position + 8 <= end {
            let (kind, length) = (try reader.u32(position), UInt64(try reader.u32(position + 4)))
            if kind == 0 { return }
            guard length <= end - position - 8 else {
                throw .damaged(
                    "the header extension at offset \(position) has \(length) bytes, more than "
                        + "there is room")
            }
            let content = reader.slice(position + 8, length)
            switch kind {
            case 0xe279_2aca: backingFormat = content
            case 0x4441_5441: dataFileName = content
            case 0x2385_2875 where length >= 24:
                bitmaps = try reader.u32(position + 8)
                bitmapDirectory = (try reader.u64(position + 24), try reader.u64(position + 16))
            case 0x2385_2875: break
            case 0x6803_f857: break
            default: hasUnknownExtensions = true
            }
            position += 8 + (length + 7) & ~7
        }
    }

    private func name(_ reader: ByteReader) throws(ImageError) -> [UInt8]? {
        // QEMU: no offset, no backing file.
        guard backingOffset > 0 else { return nil }
        guard backingLength > 0 else { return nil }
        guard backingLength <= Self.longestName else {
            throw ImageError(
                .invalid, "the name of the backing file has \(backingLength) bytes; \(Self.longestName) are the most")
        }
        guard backingOffset <= UInt64(reader.count), UInt64(backingLength) <= UInt64(reader.count) - backingOffset
        else {
            throw .damaged(
                "the name of its backing file, \(backingLength) bytes at offset "
                    + "\(backingOffset), is not in its first \(reader.count) bytes")
        }
        return reader.slice(backingOffset, UInt64(backingLength))
    }
}
