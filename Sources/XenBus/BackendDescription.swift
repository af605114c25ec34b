// SPDX-License-Identifier: BSD-2-Clause
// What the backend tells the frontend: limits before state 2, the disk and its features before state 4.

/// What a storage plugin reports about an open device.
public struct DeviceFacts: Equatable, Sendable {
    /// How the device discards. Sizes in bytes.
    public struct Discard: Equatable, Sendable {
        /// Size of one extent, in bytes.
        public var granularity: UInt32
        /// Offset of the first extent, in bytes.
        public var alignment: UInt32
        /// A secure discard is possible: the old content becomes unreadable.
        public var isSecure: Bool

        /// Extents of `granularity` bytes.
        public init(granularity: UInt32, alignment: UInt32 = 0, isSecure: Bool = false) {
            self.granularity = granularity
            self.alignment = alignment
            self.isSecure = isSecure
        }
    }

    /// Size in sectors of 512 bytes.
    public var sectorCount: UInt64
    /// The storage's own sector size in bytes.
    public var physicalSectorSize: UInt32
    /// The device cannot be written, even if that was asked for.
    public var isReadOnly: Bool
    /// Flushes reach stable storage.
    public var canFlush: Bool
    /// nil if the device cannot discard.
    public var discard: Discard?

    /// A device of `sectorCount` sectors of 512 bytes.
    public init(
        sectorCount: UInt64, physicalSectorSize: UInt32 = 512, isReadOnly: Bool = false, canFlush: Bool = true,
        discard: Discard? = nil
    ) {
        self.sectorCount = sectorCount
        self.physicalSectorSize = physicalSectorSize
        self.isReadOnly = isReadOnly
        self.canFlush = canFlush
        self.discard = discard
    }
}

/// What was agreed with the frontend when its rings were connected.
public struct RingFacts: Equatable, Sendable {
    /// Queues in use, at least 1.
    public var queueCount: Int
    /// Persistent grants: the frontend offers them and the backend keeps them mapped.
    public var keepsGrants: Bool

    /// `queueCount` rings.
    public init(queueCount: Int = 1, keepsGrants: Bool = false) {
        self.queueCount = queueCount
        self.keepsGrants = keepsGrants
    }
}

/// The keys that a frontend reads while the backend is in InitWait.
public struct BackendOffer: Equatable, Sendable {
    /// What the frontend may ask for.
    public var limits: FrontendLimits

    /// An offer of `limits`.
    public init(limits: FrontendLimits) {
        self.limits = limits
    }

    /// The limits in both schemes of ring sizes (blkif.h, note 3), and the number of queues.
    public var entries: [StoreUpdate.Entry] {
        [
            .write(BackendKey.maxRingPageOrder, String(limits.maximumRingPageOrder)),
            .write(BackendKey.maxRingPages, String(limits.maximumRingPageCount)),
            .write(BackendKey.maxQueues, String(limits.maximumQueueCount)),
        ]
    }
}

/// The keys that a frontend reads when the backend is Connected.
///
/// `sector-size` is always 512, the unit that every frontend counts in; larger sectors of the storage are published as
/// `physical-sector-size`.
public struct BackendDescription: Equatable, Sendable {
    /// Size in sectors of 512 bytes.
    public let sectorCount: UInt64
    /// In bytes: a power of two, at least 512, that divides the disk's size.
    public let physicalSectorSize: UInt32
    /// The guest sees a CD drive.
    public let isCDROM: Bool
    /// The guest sees a removable medium.
    public let isRemovable: Bool
    /// Writes are refused.
    public let isReadOnly: Bool
    /// BLKIF_OP_FLUSH_DISKCACHE works.
    public let canFlush: Bool
    /// BLKIF_OP_WRITE_BARRIER works. Never with several queues: they have no common order.
    public let hasBarrier: Bool
    /// How the disk discards; nil if it cannot.
    public let discard: DeviceFacts.Discard?
    /// The backend keeps grants mapped.
    public let keepsGrants: Bool
    /// The most segments of an indirect request; 0 if there are no such requests.
    public let maximumIndirectSegments: UInt32

    /// Combines what was asked for, what the storage can do and what was agreed with the frontend.
    public init(request: DeviceRequest, device: DeviceFacts, rings: RingFacts, maximumIndirectSegments: UInt32) {
        sectorCount = device.sectorCount
        physicalSectorSize = Self.physicalSectorSize(device)
        isCDROM = request.deviceType == .cdrom
        isRemovable = request.isRemovable
        isReadOnly = request.isReadOnly || device.isReadOnly
        canFlush = device.canFlush
        hasBarrier = device.canFlush && rings.queueCount == 1
        discard = request.mayDiscard && !isReadOnly ? device.discard : nil
        keepsGrants = rings.keepsGrants
        self.maximumIndirectSegments = maximumIndirectSegments
    }

    /// VDISK_CDROM 1, VDISK_REMOVABLE 2, VDISK_READONLY 4 of blkif.h.
    public var info: UInt32 {
        (isCDROM ? 1 : 0) | (isRemovable ? 2 : 0) | (isReadOnly ? 4 : 0)
    }

    /// All keys in order. Removes the keys that an earlier description may have written and this one does not have.
    public var entries: [StoreUpdate.Entry] {
        func flag(_ key: String, _ value: Bool) -> StoreUpdate.Entry { .write(key, value ? "1" : "0") }
        var entries: [StoreUpdate.Entry] = [
            .write(BackendKey.sectors, String(sectorCount)),
            .write(BackendKey.sectorSize, "512"),
            .write(BackendKey.physicalSectorSize, String(physicalSectorSize)),
            .write(BackendKey.info, String(info)),
            flag(BackendKey.flushCache, canFlush),
            flag(BackendKey.barrier, hasBarrier),
            flag(BackendKey.persistent, keepsGrants),
            flag(BackendKey.discard, discard != nil),
        ]
        if let discard {
            entries += [
                .write(BackendKey.discardGranularity, String(discard.granularity)),
                .write(BackendKey.discardAlignment, String(discard.alignment)),
                flag(BackendKey.discardSecure, discard.isSecure),
            ]
        } else {
            entries += [BackendKey.discardGranularity, BackendKey.discardAlignment, BackendKey.discardSecure]
                .map { .remove($0) }
        }
        if maximumIndirectSegments > 0 {
            entries.append(.write(BackendKey.maxIndirectSegments, String(maximumIndirectSegments)))
        } else {
            entries.append(.remove(BackendKey.maxIndirectSegments))
        }
        return entries
    }

    /// blkif.h requires the disk's size to be a multiple: an image of odd length gets smaller physical sectors.
    private static func physicalSectorSize(_ device: DeviceFacts) -> UInt32 {
        let size = device.physicalSectorSize
        guard size > 512, size.nonzeroBitCount == 1 else { return 512 }
        return min(size, UInt32(512) << min(device.sectorCount.trailingZeroBitCount, 22))
    }
}
