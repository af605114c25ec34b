// SPDX-License-Identifier: BSD-2-Clause
// The sizes of an image of versions 2 and 3, and the arithmetic that follows from them.

/// Shapes of the tables of an image. All of it is bounded by `QCOWCheck.structure()`.
public struct QCOWGeometry: Sendable, Equatable {
    /// 2 or 3.
    public let version: UInt32
    /// Bytes of a cluster, as a power of two: 9 to 21.
    public let clusterBits: UInt64
    /// Entries of an L2 table, as a power of two.
    public let l2Bits: UInt64
    /// Bits of a refcount, as a power of two: 0 to 6.
    public let refcountOrder: UInt64
    /// L2 entries have a second word, for 32 subclusters.
    public let isExtended: Bool

    /// The data are in a file of their own: L2 entries point into that one, and have no refcounts.
    public let hasDataFile: Bool

    /// Of the image with this checked header.
    public init(_ header: QCOWHeader) {
        hasDataFile = header.hasDataFile
        version = header.version
        clusterBits = UInt64(header.clusterBits)
        l2Bits = UInt64(header.l2Bits)
        refcountOrder = UInt64(header.refcountOrder)
        isExtended = header.hasExtendedL2
    }

    /// Bytes.
    public var clusterSize: UInt64 { 1 << clusterBits }
    /// Words of 8 bytes of an L2 entry, as a power of two.
    public var wordBits: UInt64 { isExtended ? 1 : 0 }
    /// Bytes of an L2 entry.
    public var entryBytes: UInt64 { 8 << wordBits }
    /// Bytes of a subcluster, as a power of two; a cluster of a standard image is one.
    public var subclusterBits: UInt64 { isExtended ? clusterBits - 5 : clusterBits }
    /// Refcounts in a block, as a power of two.
    public var blockBits: UInt64 { clusterBits + 3 - refcountOrder }
    /// Refcounts in a block.
    public var refcountsPerBlock: UInt64 { 1 << blockBits }
    /// The largest refcount that the image can hold.
    public var largestRefcount: UInt64 { refcountOrder == 6 ? .max : (1 << (1 << refcountOrder)) - 1 }
    /// Entries of the refcount table that a cluster holds.
    public var tableEntriesPerCluster: UInt64 { clusterSize / 8 }

    /// Whole clusters that `bytes` take.
    public func clusters(of bytes: UInt64) -> UInt64 {
        bytes >> clusterBits + (bytes & (clusterSize - 1) == 0 ? 0 : 1)
    }
}
