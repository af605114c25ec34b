// SPDX-License-Identifier: BSD-2-Clause
// An entry of an L2 table: what it says, and what the engine writes there. docs/interop/qcow2.txt, "Standard Cluster Descriptor"
// and "Extended L2 Entries".

/// An L2 entry of versions 2 and 3, in the machine's byte order.
public struct L2Entry: Sendable, Equatable {
    /// As it stands in the table.
    public let raw: UInt64
    /// The second word of an extended entry; 0 of a standard one.
    public let bitmap: UInt64

    /// The cluster's refcount is exactly 1: it may be written in place.
    public static let copied: UInt64 = 1 << 63
    /// The entry describes deflated bytes.
    public static let compressed: UInt64 = 1 << 62
    /// Reads as zeroes, whatever stands in the cluster; version 3.
    public static let zero: UInt64 = 1
    /// The place in the file, bytes.
    public static let offsetMask: UInt64 = 0x00ff_ffff_ffff_fe00
    /// Nothing in this layer.
    public static let hole = L2Entry(0)
    /// Zeroes without a cluster.
    public static let zeroes = L2Entry(zero)

    /// From a table.
    @inline(__always)
    public init(_ raw: UInt64, bitmap: UInt64 = 0) {
        self.raw = raw
        self.bitmap = bitmap
    }

    /// A cluster of this layer alone.
    @inline(__always)
    public init(own place: UInt64, bitmap: UInt64 = 0) {
        raw = place | Self.copied
        self.bitmap = bitmap
    }

    /// The cluster that a standard entry points to, in bytes of the file; 0: none.
    @inline(__always)
    public var place: UInt64 { raw & Self.offsetMask }
    /// Deflated.
    @inline(__always)
    public var isCompressed: Bool { raw & Self.compressed != 0 }
    /// Data of this layer alone, with no other flag: writes go there.
    @inline(__always)
    public var isOwn: Bool { raw & ~Self.offsetMask == Self.copied && place != 0 }
    /// Reads as zeroes and has no cluster, for an image that shows zeroes in holes.
    @inline(__always)
    public var isEmpty: Bool { raw & ~Self.zero == 0 }
    /// The zero flag of a standard entry.
    @inline(__always)
    public var isZero: Bool { !isCompressed && raw & Self.zero != 0 }

    /// Bits that mean nothing in an entry, as QEMU has them in L2_STD_RESERVED_MASK; the zero flag is none of an extended one.
    public func hasReservedBits(isExtended: Bool) -> Bool {
        !isCompressed && raw & (0x3f00_0000_0000_01fe | (isExtended ? Self.zero : 0)) != 0
    }

    /// What is wrong with an entry of an L1 table, as words that follow "the entry"; nil: nothing.
    public static func fault(ofL1Entry entry: UInt64) -> String? {
        if entry & ~(offsetMask | copied) != 0 { return "has bits that mean nothing" }
        return entry == copied ? "claims a table and names none" : nil
    }

    /// The place and the length in bytes of deflated data; the length counts whole sectors.
    @inline(__always)
    public func compressedRange(clusterBits: UInt64) -> (offset: UInt64, length: UInt64) {
        let shift = 62 - (clusterBits - 8)
        let offset = raw & (1 << shift - 1)
        let sectors = (raw & (1 << 62 - 1)) >> shift + 1
        return (offset, sectors * 512 - offset & 511)
    }

    /// The clusters of the file that the entry refers to: nil for none, and of one that is out of bounds.
    public func clusters(clusterBits: UInt64) -> ClosedRange<UInt64>? {
        if isCompressed {
            let (offset, length) = compressedRange(clusterBits: clusterBits)
            guard offset > 0 else { return nil }
            return offset >> clusterBits...(offset + length - 1) >> clusterBits
        }
        return place == 0 ? nil : place >> clusterBits...place >> clusterBits
    }
}
