// SPDX-License-Identifier: BSD-2-Clause
// The names of the keys, each defined once (blkif.h, libxl_disk.c).

/// Keys below the backend's node.
public enum BackendKey {
    /// The backend's XenBus state.
    public static let state = "state"
    /// 0 once the toolstack wants the device removed.
    public static let online = "online"
    /// The frontend's node.
    public static let frontend = "frontend"
    /// The frontend's domain.
    public static let frontendID = "frontend-id"
    /// The target as the toolstack wrote it.
    public static let params = "params"
    /// "r" or "w".
    public static let mode = "mode"
    /// "disk" or "cdrom".
    public static let deviceType = "device-type"
    /// 1 for removable media.
    public static let removable = "removable"
    /// The hotplug script.
    public static let script = "script"
    /// The virtual device's name in the guest.
    public static let dev = "dev"
    /// "phy", "qdisk", "vbd3".
    public static let type = "type"
    /// 0 if discard must not be offered.
    public static let discardEnable = "discard-enable"
    /// "major:minor" in hexadecimal, from the hotplug script.
    public static let physicalDevice = "physical-device"
    /// The files and devices that a connected guest is served from; ours, for a successor.
    public static let storage = "xbb-storage"
    /// The process that served last and let go with every request answered; ours, for a successor.
    public static let handedOver = "xbb-handed-over"
    /// Behind the value of ``handedOver``: requests that have no answer stand in the journal.
    public static let leftRequests = " left"
    /// Which images a disk consists of, where it is more than one; ours, for operators.
    public static let chain = "xbb-chain"
    /// What of the disk does not end; ours, for operators and xbbd.
    public static let stall = "xbb-stall"
    /// Why others may have the storage too: ``sameGuest``, or "forced: " and who was overridden.
    public static let sharing = "xbb-sharing"
    /// The value of ``sharing`` where another domain of the same guest has the storage: it migrates within this host, or is
    /// the guest's stub domain. Both may claim the device; image files are left to the locks on them.
    public static let sameGuest = "same-guest"
    /// Which statistics in the run directory are the disk's; ours, for a successor.
    public static let statistics = "xbb-statistics"
    /// What is wrong with the disk while it is served, in one line; ours, for operators.
    public static let trouble = "xbb-trouble"
    /// Until when the disk takes no requests, in ns of CLOCK_MONOTONIC; ours, for a successor and for xbbd.
    public static let paused = "xbb-paused"
    /// Until when no worker is to serve the paused disk, in ns of CLOCK_MONOTONIC; xbbd's alone.
    public static let released = "xbb-released"
    /// What ``paused`` said before a command released the storage for as long as it runs; "-": nothing. xbbd's alone.
    public static let held = "xbb-held"
    /// The disk is about to get other storage; ``StorageExchange``. What was configured before stands in keys below it. xbbd's
    /// alone: with it, a worker serves a connected guest from storage that it did not have before.
    public static let swap = "xbb-swap"
    /// The value of ``swap``, as soon as a guest may be served from what is configured now; ours, for xbbd.
    public static let swapServed = "xbb-swap-served"
    /// The path of the storage, from the hotplug script.
    public static let physicalDevicePath = "physical-device-path"
    /// The format of the image at `physical-device-path`, from the hotplug script; raw if missing.
    public static let format = "xbb-format"
    /// "key=value,key=value" for the plugin, from the toolstack or the hotplug script.
    public static let options = "xbb-options"
    /// "connected" or "error".
    public static let hotplugStatus = "hotplug-status"
    /// Why the storage could not be opened; xl prints it.
    public static let hotplugError = "hotplug-error"
    /// Size in sectors of 512 bytes.
    public static let sectors = "sectors"
    /// Always 512.
    public static let sectorSize = "sector-size"
    /// The storage's own sector size in bytes.
    public static let physicalSectorSize = "physical-sector-size"
    /// VDISK_* bits.
    public static let info = "info"
    /// Base-2 logarithm of the largest ring in pages.
    public static let maxRingPageOrder = "max-ring-page-order"
    /// The largest ring in pages; the second scheme of blkif.h, note 3.
    public static let maxRingPages = "max-ring-pages"
    /// The most queues.
    public static let maxQueues = "multi-queue-max-queues"
    /// BLKIF_OP_FLUSH_DISKCACHE works.
    public static let flushCache = "feature-flush-cache"
    /// BLKIF_OP_WRITE_BARRIER works.
    public static let barrier = "feature-barrier"
    /// BLKIF_OP_DISCARD works.
    public static let discard = "feature-discard"
    /// Bytes of one discardable extent.
    public static let discardGranularity = "discard-granularity"
    /// Bytes before the first discardable extent.
    public static let discardAlignment = "discard-alignment"
    /// BLKIF_DISCARD_SECURE works.
    public static let discardSecure = "discard-secure"
    /// The backend keeps grants mapped.
    public static let persistent = "feature-persistent"
    /// The most segments of an indirect request.
    public static let maxIndirectSegments = "feature-max-indirect-segments"

    /// Where errors of the backend at `path` stand: "error/" and its path, in the home of its domain.
    public static func errorPath(of path: String) -> String {
        let parts = path.split(separator: "/", omittingEmptySubsequences: true)
        guard parts.count > 3 else { return "error\(path)" }
        return "/" + parts.prefix(3).joined(separator: "/") + "/error/" + parts.dropFirst(3).joined(separator: "/")
    }
}

/// Keys below the frontend's node.
public enum FrontendKey {
    /// The frontend's XenBus state.
    public static let state = "state"
    /// Port of the frontend's end of the event channel.
    public static let eventChannel = "event-channel"
    /// Grant reference of the only ring page; followed by an index, of one of several.
    public static let ringReference = "ring-ref"
    /// Base-2 logarithm of the ring's pages.
    public static let ringPageOrder = "ring-page-order"
    /// Number of ring pages; deprecated.
    public static let ringPages = "num-ring-pages"
    /// The ring's layout.
    public static let ringProtocol = "protocol"
    /// The frontend reuses its grants.
    public static let persistent = "feature-persistent"
    /// The frontend counts in sectors of `sector-size`.
    public static let largeSectorSize = "feature-large-sector-size"
    /// The number of queues that the frontend uses.
    public static let queueCount = "multi-queue-num-queues"
    /// 0 if the frontend does not trust the backend.
    public static let trusted = "trusted"

    /// The node of one of several queues.
    public static func queue(_ index: Int) -> String { "queue-\(index)" }
}
