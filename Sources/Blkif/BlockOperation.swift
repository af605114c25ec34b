// SPDX-License-Identifier: BSD-2-Clause
// The operations and the statuses of blkif.h, and its limits.

/// Numbers of the protocol.
public enum BlkifLimits {
    /// Bytes of a sector in requests, whatever the device has.
    public static let sectorSize = 512
    /// Sectors of a granted page.
    @inlinable public static var sectorsPerPage: Int { 8 }
    /// `BLKIF_MAX_SEGMENTS_PER_REQUEST`
    @inlinable public static var segmentsPerRequest: Int { 11 }
    /// The most pages of a ring that we map.
    public static let ringPages = 32
    /// The most requests of a ring: those of 32 pages.
    public static let ringEntries = 1024
}

/// An operation of a request that we know (`BLKIF_OP_*`).
public enum BlockOperation: UInt8, Sendable, CaseIterable, BitwiseCopyable {
    /// `BLKIF_OP_READ`
    case read = 0
    /// `BLKIF_OP_WRITE`
    case write = 1
    /// `BLKIF_OP_WRITE_BARRIER`: everything before it is on the disk first, and it is before everything after it.
    case writeBarrier = 2
    /// `BLKIF_OP_FLUSH_DISKCACHE`, with or without data
    case flush = 3
    /// `BLKIF_OP_DISCARD`
    case discard = 5

    /// True if the operation changes the disk.
    @inlinable public var isWriting: Bool {
        self == .write || self == .writeBarrier || self == .discard
    }
}

/// The status of a response (`BLKIF_RSP_*`).
public enum BlockStatus: Int16, Sendable, BitwiseCopyable {
    /// `BLKIF_RSP_OKAY`
    case okay = 0
    /// `BLKIF_RSP_ERROR`
    case error = -1
    /// `BLKIF_RSP_EOPNOTSUPP`
    case notSupported = -2
}
