// SPDX-License-Identifier: BSD-2-Clause
// The header of an image as it stands in the file: QEMU's docs/interop/qcow2.txt for versions 2 and 3, block/qcow.c for 1.
//
// Everything in here was written by somebody who may be hostile. Numbers are taken as they are; `QCOWCheck` judges them.
import Glibc
import PluginKit

/// A header with its extensions and the names in it.
struct QCOWHeader {
    /// Incompatible feature bits: who does not know one must not read the image.
    struct Incompatible {
        static let dirty: UInt64 = 1 << 0
        static let corrupt: UInt64 = 1 << 1
        static let dataFile: UInt64 = 1 << 2
        static let compressionType: UInt64 = 1 << 3
        static let extendedL2: UInt64 = 1 << 4
        static let names: [(bit: UInt64, name: String)] = [
            (dirty, "dirty"), (corrupt, "corrupt"), (dataFile, "external data file"),
            (compressionType, "compression type"), (extendedL2, "extended L2 entries"),
        ]
    }

    /// 1, 2 or 3.
    var version: UInt32 = 0
    /// Of the disk, in bytes.
    var size: UInt64 = 0
    var clusterBits: UInt32 = 0
    /// Entries of an L2 table, as a power of two.
    var l2Bits: UInt32 = 0
    /// 0 none, 1 AES, 2 LUKS.
    var encryption: UInt32 = 0
    var l1Offset: UInt64 = 0
    /// Entries of the L1 table.
    var l1Count: UInt64 = 0
    var refcountOffset: UInt64 = 0
    var refcountClusters: UInt32 = 0
    var refcountOrder: UInt32 = 4
    var snapshotCount: UInt32 = 0
    var snapshotOffset: UInt64 = 0
    var incompatible: UInt64 = 0
    var headerLength: UInt64 = 0
    /// 0 deflate, 1 zstd.
    var compression: UInt8 = 0
    var backingOffset: UInt64 = 0
    var backingLength: UInt32 = 0
    /// The name as it stands in the image; nil: no backing file.
    var backingName: [UInt8]?
    /// What the image says of its backing file's format; nil: nothing.
    var backingFormat: [UInt8]?
    /// The name of an external data file.
    var dataFileName: [UInt8]?

    /// The longest name of a file in an image, as in QEMU.
    static let longestName = 1023
    /// As much of the file as a header, its extensions and a name can take: all of it stands in the first cluster.
    static let headBytes = 64 << 10

    var clusterSize: UInt64 { 1 << UInt64(min(clusterBits, 62)) }

    /// The version in the first bytes of a file, or nil where it is no image of this family.
    static func version(of head: some Collection<UInt8>) -> UInt32? {
        let bytes = head.prefix(8)
        guard bytes.count == 8, bytes.prefix(4).elementsEqual([0x51, 0x46, 0x49, 0xfb]) else { return nil }
        return bytes.dropFirst(4).reduce(0) { $0 << 8 | UInt32($1) }
    }

    /// Reads a header from the first bytes of a file.
    init(_ head: [UInt8]) throws(PluginError) {
        guard let version = Self.version(of: head) else {
            throw PluginError(EINVAL, "this is no QCOW image: it does not begin with 'QFI' 0xfb")
        }
        self.version = version
        let reader = ByteReader(head)
        switch version {
        case 1: try readVersion1(reader)
        case 2, 3: try readVersion2(reader)
        default:
            throw PluginError(EINVAL, "the image is of QCOW version \(version); 1, 2 and 3 are known")
        }
        backingName = try name(reader)
    }

    private mutating func readVersion1(_ reader: ByteReader) throws(PluginError) {
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

    private mutating func readVersion2(_ reader: ByteReader) throws(PluginError) {
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
            refcountOrder = try reader.u32(96)
            headerLength = UInt64(try reader.u32(100))
            guard headerLength >= 104, headerLength % 8 == 0, headerLength <= clusterSize else {
                throw PluginError(EINVAL, "the image is damaged: its header says that it has \(headerLength) bytes")
            }
            if headerLength >= 112 { compression = try reader.u8(104) }
        }
        try readExtensions(reader)
    }

    private mutating func readExtensions(_ reader: ByteReader) throws(PluginError) {
        var position = headerLength
        // They end where the name of the backing file begins, and with the first cluster.
        let end = min(
            UInt64(reader.count), clusterSize, backingOffset > 0 && backingLength > 0 ? backingOffset : .max)
        while position + 8 <= end {
            let (kind, length) = (try reader.u32(position), UInt64(try reader.u32(position + 4)))
            if kind == 0 { return }
            guard length <= end - position - 8 else {
                throw PluginError(
                    EINVAL,
                    "the image is damaged: the header extension at offset \(position) has \(length) bytes, more than "
                        + "there is room")
            }
            let content = reader.slice(position + 8, length)
            switch kind {
            case 0xe279_2aca: backingFormat = content
            case 0x4441_5441: dataFileName = content
            default: break
            }
            position += 8 + (length + 7) & ~7
        }
    }

    private func name(_ reader: ByteReader) throws(PluginError) -> [UInt8]? {
        // QEMU: no offset, no backing file.
        guard backingOffset > 0 else { return nil }
        guard backingLength > 0 else { return nil }
        guard backingLength <= Self.longestName else {
            throw PluginError(
                EINVAL, "the name of the backing file has \(backingLength) bytes; \(Self.longestName) are the most")
        }
        guard backingOffset <= UInt64(reader.count), UInt64(backingLength) <= UInt64(reader.count) - backingOffset
        else {
            throw PluginError(
                EINVAL,
                "the image is damaged: the name of its backing file, \(backingLength) bytes at offset "
                    + "\(backingOffset), is not in its first \(reader.count) bytes")
        }
        return reader.slice(backingOffset, UInt64(backingLength))
    }
}

/// Big-endian numbers at places that may be wrong.
struct ByteReader {
    private let bytes: [UInt8]
    var count: Int { bytes.count }

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// What is there of a range.
    func slice(_ offset: UInt64, _ length: UInt64) -> [UInt8] {
        guard offset <= UInt64(bytes.count), length <= UInt64(bytes.count) - offset else { return [] }
        return Array(bytes[Int(offset)..<Int(offset + length)])
    }

    func u8(_ offset: UInt64) throws(PluginError) -> UInt8 { UInt8(truncatingIfNeeded: try number(offset, 1)) }
    func u32(_ offset: UInt64) throws(PluginError) -> UInt32 { UInt32(truncatingIfNeeded: try number(offset, 4)) }
    func u64(_ offset: UInt64) throws(PluginError) -> UInt64 { try number(offset, 8) }

    private func number(_ offset: UInt64, _ length: UInt64) throws(PluginError) -> UInt64 {
        let part = slice(offset, length)
        guard !part.isEmpty else {
            throw PluginError(
                EINVAL, "the image is damaged: it ends after \(bytes.count) bytes, in the middle of its header")
        }
        return part.reduce(0) { $0 << 8 | UInt64($1) }
    }
}
