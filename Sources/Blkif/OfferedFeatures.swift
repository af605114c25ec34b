// SPDX-License-Identifier: BSD-2-Clause
// What a frontend is offered: one value, published in XenStore and enforced on every request.

/// How a disk discards.
public struct DiscardSupport: BitwiseCopyable, Sendable, Equatable {
    /// Bytes of one extent.
    public var granularity: UInt32
    /// Bytes before the first extent.
    public var alignment: UInt32
    /// The old content can be made unreadable.
    public var isSecure: Bool

    /// Extents of `granularity` bytes.
    public init(granularity: UInt32 = 512, alignment: UInt32 = 0, isSecure: Bool = false) {
        self.granularity = granularity
        self.alignment = alignment
        self.isSecure = isSecure
    }
}

/// Size and features of a disk as one frontend has them while its rings are connected.
///
/// XenBus makes it once, when rings are connected, out of what was asked for, what the storage can and what the frontend
/// has. The queues check requests against it (``BlockRequest/parse(_:layout:disk:segments:)``), and `BackendDescription` writes the
/// same value to XenStore.
public struct OfferedFeatures: BitwiseCopyable, Sendable, Equatable {
    /// Sectors of 512 bytes: `sectors`.
    public var sectorCount: UInt64
    /// Writes are refused: VDISK_READONLY of `info`.
    public var isReadOnly: Bool
    /// BLKIF_OP_DISCARD works: `feature-discard`. One byte, because each request is checked against these fields.
    public private(set) var canDiscard: Bool
    /// BLKIF_OP_WRITE_BARRIER works: `feature-barrier`.
    public var hasBarrier: Bool
    /// BLKIF_OP_FLUSH_DISKCACHE works: `feature-flush-cache`.
    public var canFlush: Bool
    private var discardSupport: DiscardSupport
    /// The most segments of an indirect request: `feature-max-indirect-segments`; 0 where there are no such requests.
    public var maximumIndirectSegments: UInt32
    /// Grants stay mapped between requests: `feature-persistent`.
    public var keepsGrants: Bool

    /// A disk of `sectorCount` sectors of 512 bytes. For tests and tools; a worker's comes from XenBus.
    public init(
        sectorCount: UInt64, isReadOnly: Bool = false, discard: DiscardSupport? = nil, hasBarrier: Bool = true,
        canFlush: Bool = true, maximumIndirectSegments: UInt32 = 0, keepsGrants: Bool = false
    ) {
        self.sectorCount = sectorCount
        self.isReadOnly = isReadOnly
        canDiscard = discard != nil
        discardSupport = discard ?? DiscardSupport()
        self.hasBarrier = hasBarrier
        self.canFlush = canFlush
        self.maximumIndirectSegments = maximumIndirectSegments
        self.keepsGrants = keepsGrants
    }

    /// How BLKIF_OP_DISCARD works, nil where it does not: `discard-granularity` and its companions.
    public var discard: DiscardSupport? {
        get { canDiscard ? discardSupport : nil }
        set {
            canDiscard = newValue != nil
            discardSupport = newValue ?? DiscardSupport()
        }
    }
}
