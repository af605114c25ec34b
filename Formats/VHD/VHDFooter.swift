// SPDX-License-Identifier: BSD-2-Clause
// The footer of a VHD: what the disk is. It ends the file; images with a block table begin with a copy.
import ImageCore

/// The footer, 512 bytes, checked.
public struct VHDFooter: Sendable, Equatable {
    /// Bytes.
    public static let byteCount: UInt64 = 512
    /// What it begins with.
    public static let magic = Array("conectix".utf8)
    /// What XenServer puts there while it changes the size of a disk.
    static let poison = Array("v_poison".utf8)

    /// How the data stand in the file.
    public enum Kind: UInt32, Sendable {
        /// As they are.
        case fixed = 2
        /// In blocks, by a table.
        case dynamic = 3
        /// In blocks, above a parent.
        case differencing = 4
    }

    /// As it stands in the file.
    public let bytes: [UInt8]
    /// How the data stand in the file.
    public let kind: Kind
    /// Where the header of the block table is, bytes of the file.
    public let dataOffset: UInt64
    /// Seconds since 2000-01-01.
    public let timestamp: UInt32
    /// Four letters of the program that made the image.
    public let creator: [UInt8]
    /// Bytes of the disk when it was made.
    public let originalSize: UInt64
    /// Bytes of the disk.
    public let currentSize: UInt64
    /// Sectors of 512 bytes by cylinders, heads and sectors of a track.
    public let geometrySectors: UInt64
    /// 16 bytes.
    public let identifier: [UInt8]
    /// A virtual machine was suspended on this disk.
    public let hasSavedState: Bool

    /// The largest number of sectors that a geometry can say: of a larger disk it says nothing.
    static let largestGeometry: UInt64 = 65535 * 16 * 255
    /// No disk is larger: places in the file are numbers of sectors with 32 bits.
    public static let largestDisk: UInt64 = 2040 << 30

    /// Reads a footer; throws where it is damaged, or of a kind that nobody knows.
    public init(_ bytes: [UInt8]) throws(ImageError) {
        guard bytes.count == Int(Self.byteCount), bytes.starts(with: Self.magic) else {
            throw ImageError(.invalid, "the file is no VHD: it has no footer")
        }
        let reader = ByteReader(bytes)
        guard try reader.u32(64) == vhdChecksum(bytes, at: 64) else {
            throw .damaged("the checksum of its footer is wrong")
        }
        let version = try reader.u32(12)
        guard version >> 16 == 1 else { throw ImageError(.unsupported, "the VHD has version \(version >> 16)") }
        guard let kind = Kind(rawValue: try reader.u32(60)) else {
            throw ImageError(.unsupported, "the VHD is of type \(try reader.u32(60)), which is none of 2, 3 and 4")
        }
        self.bytes = bytes
        self.kind = kind
        dataOffset = try reader.u64(16)
        timestamp = try reader.u32(24)
        creator = reader.slice(28, 4)
        originalSize = try reader.u64(40)
        currentSize = try reader.u64(48)
        geometrySectors = UInt64(try reader.u16(56)) * UInt64(try reader.u8(58)) * UInt64(try reader.u8(59))
        identifier = reader.slice(68, 16)
        hasSavedState = try reader.u8(84) != 0
    }

    /// Bytes of the disk as the program sees it that made the image. Virtual PC, Virtual Server and old versions of QEMU go by the geometry, which
    /// is a little less than the size that was asked for; all others by the size.
    public var diskSize: UInt64 {
        let goesByGeometry = [Array("vpc ".utf8), Array("vs  ".utf8), Array("qemu".utf8)].contains(creator)
        let isKnown = geometrySectors > 0 && geometrySectors < Self.largestGeometry
        return goesByGeometry && isKnown ? geometrySectors * 512 : currentSize & ~511
    }
}

/// The one's complement of the sum of all bytes but the four of the checksum itself, at `place`.
func vhdChecksum(_ bytes: [UInt8], at place: Int) -> UInt32 {
    var sum: UInt32 = 0
    for (index, byte) in bytes.enumerated() where index < place || index >= place + 4 { sum &+= UInt32(byte) }
    return ~sum
}
