// SPDX-License-Identifier: BSD-2-Clause
// The backend's description of its disk, read as blkfront reads it.
import CLinux
import Glibc
import Xen

/// The keys of the backend that describe the disk and its features.
public struct BackendInfo: Sendable, Equatable {
    /// "sectors": the size in units of ``sectorUnit``.
    public var sectors: UInt64 = 0
    /// "sector-size" in bytes.
    public var sectorSize = 512
    /// "physical-sector-size" in bytes; ``sectorSize`` if there is none.
    public var physicalSectorSize = 512
    /// "info": `VDISK_CDROM` 1, `VDISK_REMOVABLE` 2, `VDISK_READONLY` 4.
    public var info = 0
    /// "feature-barrier"
    public var barrier = false
    /// "feature-flush-cache"
    public var flush = false
    /// "feature-discard"
    public var discard = false
    /// "discard-granularity" in bytes; 0 if there is none.
    public var discardGranularity = 0
    /// "discard-alignment" in bytes
    public var discardAlignment = 0
    /// "discard-secure"
    public var secureDiscard = false
    /// "feature-persistent"
    public var persistent = false
    /// "feature-max-indirect-segments"; 0 if there is none.
    public var maxIndirectSegments = 0
    /// Bytes per sector, as "sectors" and requests count them: 512 unless large sectors were negotiated.
    public var sectorUnit = 512

    /// Nothing read yet.
    public init() {}

    /// `VDISK_READONLY`
    public var readOnly: Bool { info & 4 != 0 }
    /// `VDISK_REMOVABLE`
    public var removable: Bool { info & 2 != 0 }
    /// `VDISK_CDROM`
    public var cdrom: Bool { info & 1 != 0 }
    /// Size of the disk in bytes.
    public var byteCount: UInt64 { sectors.multipliedReportingOverflow(by: UInt64(sectorUnit)).partialValue }

    /// Reads the keys below `path`. "sectors", "info" and "sector-size" must be there, all others default to 0.
    init(path: String, store: any XenStore, largeSectors: Bool) throws(BlkfrontError) {
        sectors = try Self.required("\(path)/sectors", store)
        let flags: UInt32 = try Self.required("\(path)/info", store)
        info = Int(flags)
        let size: Int = try Self.required("\(path)/sector-size", store)
        guard size >= 512, size <= 1 << 20, size & (size - 1) == 0 else {
            throw .badKey(path: "\(path)/sector-size", value: String(size))
        }
        sectorSize = size
        physicalSectorSize = Int(clamping: try Self.optional("\(path)/physical-sector-size", store) ?? UInt64(size))
        barrier = try Self.flag("\(path)/feature-barrier", store)
        flush = try Self.flag("\(path)/feature-flush-cache", store)
        discard = try Self.flag("\(path)/feature-discard", store)
        discardGranularity = Int(clamping: try Self.optional("\(path)/discard-granularity", store) ?? 0)
        discardAlignment = Int(clamping: try Self.optional("\(path)/discard-alignment", store) ?? 0)
        secureDiscard = try Self.flag("\(path)/discard-secure", store)
        persistent = try Self.flag("\(path)/feature-persistent", store)
        maxIndirectSegments = Int(clamping: try Self.optional("\(path)/feature-max-indirect-segments", store) ?? 0)
        sectorUnit = largeSectors ? size : 512
        if sectors.multipliedReportingOverflow(by: UInt64(sectorUnit)).overflow {
            throw .badKey(path: "\(path)/sectors", value: String(sectors))
        }
    }

    /// A mandatory number.
    static func required<Number: FixedWidthInteger>(
        _ path: String, _ store: any XenStore
    ) throws(BlkfrontError) -> Number {
        let text = try text(path, store)
        guard let text, let value = Number(text) else { throw .badKey(path: path, value: text) }
        return value
    }

    /// A number; nil if there is none (`xenbus_read_unsigned`).
    static func optional(_ path: String, _ store: any XenStore) throws(BlkfrontError) -> UInt64? {
        try text(path, store).flatMap { UInt64($0) }
    }

    private static func flag(_ path: String, _ store: any XenStore) throws(BlkfrontError) -> Bool {
        try optional(path, store).map { $0 != 0 } ?? false
    }

    /// A key as text; nil if there is none.
    ///
    /// For a node that is gone, XenStore answers EACCES if the domain may not read the nearest remaining parent.
    static func text(_ path: String, _ store: any XenStore) throws(BlkfrontError) -> String? {
        do {
            return try store.text(path)
        } catch {
            if error.code == EACCES { return nil }
            throw .store(error)
        }
    }
}
