// SPDX-License-Identifier: BSD-2-Clause
// The header of a VHD with a block table: the table's place, the block size, and what the image says of its parent.
import ImageCore

/// The header, 1024 bytes, checked.
public struct VHDHeader: Sendable, Equatable {
    /// Bytes.
    public static let byteCount: UInt64 = 1024
    /// A table of more entries is refused: it is held in memory.
    static let mostEntries: UInt64 = 4 << 20

    /// Where the block table begins, bytes of the file, a multiple of 512.
    public let tableOffset: UInt64
    /// Entries of the table.
    public let entryCount: UInt64
    /// Bytes of data in a block: a power of two.
    public let blockSize: UInt64
    /// 16 bytes of the parent's footer.
    public let parentIdentifier: [UInt8]
    /// When the parent was changed last, seconds since 2000-01-01.
    public let parentTimestamp: UInt32
    /// The parent's name, in UTF-16 of the image.
    public let parentName: [UInt8]
    /// Other names of the parent.
    public let locators: [ParentLocator]

    /// Where a name of the parent stands in the file.
    public struct ParentLocator: Sendable, Equatable {
        /// Four letters: in which form the name is.
        public let code: [UInt8]
        /// Bytes of the file.
        public let offset: UInt64
        /// Bytes of the name.
        public let length: UInt64
        /// Bytes that are kept for it.
        public let room: UInt64
    }

    /// Reads a header; throws where it is damaged.
    public init(_ bytes: [UInt8]) throws(ImageError) {
        let reader = ByteReader(bytes)
        guard bytes.count == Int(Self.byteCount), bytes.starts(with: Array("cxsparse".utf8)) else {
            throw .damaged("the header of its block table is not where the footer says")
        }
        guard try reader.u32(36) == vhdChecksum(bytes, at: 36) else {
            throw .damaged("the checksum of its header is wrong")
        }
        tableOffset = try reader.u64(16)
        entryCount = UInt64(try reader.u32(28))
        blockSize = UInt64(try reader.u32(32))
        guard tableOffset & 511 == 0 else { throw .damaged("its block table begins within a sector") }
        guard blockSize >= 4096, blockSize <= 256 << 20, blockSize & (blockSize - 1) == 0 else {
            throw ImageError(
                .unsupported, "blocks of \(blockSize) bytes: only powers of two from 4 KiB to 256 MiB are known")
        }
        guard entryCount <= Self.mostEntries else {
            throw ImageError(.tooLarge, "its block table has \(entryCount) entries, more than \(Self.mostEntries)")
        }
        parentIdentifier = reader.slice(40, 16)
        parentTimestamp = try reader.u32(56)
        parentName = reader.slice(64, 512)
        var locators: [ParentLocator] = []
        for index in 0..<UInt64(8) {
            let start = 576 + index * 24
            let code = reader.slice(start, 4)
            if code == [0, 0, 0, 0] { continue }
            // The room is in sectors by the specification; Hyper-V and others write bytes.
            let room = UInt64(try reader.u32(start + 4))
            locators.append(
                ParentLocator(
                    code: code, offset: try reader.u64(start + 16), length: UInt64(try reader.u32(start + 8)),
                    room: room < 512 ? room * 512 : room))
        }
        self.locators = locators
    }

    /// Bytes of a block's bitmap, whole sectors: a bit for each sector of data, the highest one first.
    public var bitmapSize: UInt64 { (blockSize / 512 / 8 + 511) & ~511 }
    /// Bytes of the block table, whole sectors.
    public var tableSize: UInt64 { (entryCount * 4 + 511) & ~511 }
}
