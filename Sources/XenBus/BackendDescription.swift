// SPDX-License-Identifier: BSD-2-Clause
// What the backend tells the frontend: limits before state 2, the disk and its features before state 4.
public import Blkif

/// What a storage plugin reports about an open device.
public struct DeviceFacts: Equatable, Sendable {
    /// Size in sectors of 512 bytes.
    public var sectorCount: UInt64
    /// The storage's own sector size in bytes.
    public var physicalSectorSize: UInt32
    /// The device cannot be written, even if that was asked for.
    public var isReadOnly: Bool
    /// Flushes reach stable storage.
    public var canFlush: Bool
    /// nil if the device cannot discard.
    public var discard: DiscardSupport?

    /// A device of `sectorCount` sectors of 512 bytes.
    public init(
        sectorCount: UInt64, physicalSectorSize: UInt32 = 512, isReadOnly: Bool = false, canFlush: Bool = true,
        discard: DiscardSupport? = nil
    ) {
        self.sectorCount = sectorCount
        self.physicalSectorSize = physicalSectorSize
        self.isReadOnly = isReadOnly
        self.canFlush = canFlush
        self.discard = discard
    }
}

/// How requests may bring their data: what settings say to a new frontend; to one that is connected already, what an earlier
/// process has told it, which is kept whatever the settings are now.
public struct TransferOffer: Equatable, Sendable {
    /// The most segments of an indirect request, at most 4096; 0 for no such requests.
    public var maximumIndirectSegments: UInt32
    /// Grants of a frontend that reuses them may stay mapped.
    public var keepsGrants: Bool

    /// An offer; the number is clamped to what the protocol has.
    public init(maximumIndirectSegments: UInt32 = 0, keepsGrants: Bool = false) {
        self.maximumIndirectSegments = min(maximumIndirectSegments, BlkifLimits.mostIndirectSegments)
        self.keepsGrants = keepsGrants
    }
}

extension OfferedFeatures {
    /// The features for a frontend with `queueCount` rings: what was asked for, as far as the storage supports it.
    public init(
        request: DeviceRequest, device: DeviceFacts, queueCount: Int = 1, transfer: TransferOffer = TransferOffer()
    ) {
        let isReadOnly = request.isReadOnly || device.isReadOnly
        self.init(
            sectorCount: device.sectorCount, isReadOnly: isReadOnly,
            discard: request.mayDiscard && !isReadOnly ? device.discard : nil,
            // A successor may do again what another queue's barrier has passed.
            hasBarrier: device.canFlush && queueCount == 1, canFlush: device.canFlush,
            maximumIndirectSegments: transfer.maximumIndirectSegments, keepsGrants: transfer.keepsGrants)
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
    /// The features that the queues enforce.
    public let offered: OfferedFeatures
    /// In bytes: a power of two, at least 512, that divides the disk's size.
    public let physicalSectorSize: UInt32
    /// The guest sees a CD drive.
    public let isCDROM: Bool
    /// The guest sees a removable medium.
    public let isRemovable: Bool

    /// A disk with these features. The other arguments are only published; `physicalSectorSize` is the storage's own, in
    /// bytes.
    public init(_ offered: OfferedFeatures, physicalSectorSize: UInt32, deviceType: DeviceType, isRemovable: Bool) {
        self.offered = offered
        self.physicalSectorSize = Self.physicalSectorSize(physicalSectorSize, sectorCount: offered.sectorCount)
        isCDROM = deviceType == .cdrom
        self.isRemovable = isRemovable
    }

    /// VDISK_CDROM 1, VDISK_REMOVABLE 2, VDISK_READONLY 4 of blkif.h.
    public var info: UInt32 {
        (isCDROM ? 1 : 0) | (isRemovable ? 2 : 0) | (offered.isReadOnly ? 4 : 0)
    }

    /// All keys in order. Removes the keys that an earlier description may have written and this one does not have.
    public var entries: [StoreUpdate.Entry] {
        func flag(_ key: String, _ value: Bool) -> StoreUpdate.Entry { .write(key, value ? "1" : "0") }
        var entries: [StoreUpdate.Entry] = [
            .write(BackendKey.sectors, String(offered.sectorCount)),
            .write(BackendKey.sectorSize, "512"),
            .write(BackendKey.physicalSectorSize, String(physicalSectorSize)),
            .write(BackendKey.info, String(info)),
            flag(BackendKey.flushCache, offered.canFlush),
            flag(BackendKey.barrier, offered.hasBarrier),
            flag(BackendKey.persistent, offered.keepsGrants),
            flag(BackendKey.discard, offered.discard != nil),
        ]
        if let discard = offered.discard {
            entries += [
                .write(BackendKey.discardGranularity, String(discard.granularity)),
                .write(BackendKey.discardAlignment, String(discard.alignment)),
                flag(BackendKey.discardSecure, discard.isSecure),
            ]
        } else {
            entries += [BackendKey.discardGranularity, BackendKey.discardAlignment, BackendKey.discardSecure]
                .map { .remove($0) }
        }
        if offered.maximumIndirectSegments > 0 {
            entries.append(.write(BackendKey.maxIndirectSegments, String(offered.maximumIndirectSegments)))
        } else {
            entries.append(.remove(BackendKey.maxIndirectSegments))
        }
        return entries
    }

    /// blkif.h requires the disk's size to be a multiple: an image of odd length gets smaller physical sectors.
    private static func physicalSectorSize(_ size: UInt32, sectorCount: UInt64) -> UInt32 {
        guard size > 512, size.nonzeroBitCount == 1 else { return 512 }
        return min(size, UInt32(512) << min(sectorCount.trailingZeroBitCount, 22))
    }
}
