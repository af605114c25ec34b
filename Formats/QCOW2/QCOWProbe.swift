// SPDX-License-Identifier: BSD-2-Clause
// Looking at an image that nobody serves yet.
import ImageCore

/// What the first bytes of a file and a header alone tell.
public enum QCOWProbe {
    /// 0 to 100: does a file that begins with `head` look like an image of `format`, QEMU's name? Magic and version decide.
    public static func score(_ head: some Collection<UInt8>, format: String) -> Int {
        switch QCOWHeader.version(of: head) {
        case 1: format == "qcow" ? 100 : 0
        case 2, 3: format == "qcow2" ? 100 : 0
        default: 0
        }
    }

    /// Bytes of memory that an open image takes at most, with a cache of `cache` bytes for L2 tables: docs/qcow.md, "Memory". 0 of
    /// an image that is refused for its features: the sizes in such a header may be anything.
    public static func memory(_ check: QCOWCheck, cache: UInt64) -> UInt64 {
        guard (try? check.features()) != nil, !check.isCorrupt || (try? check.structure()) != nil else { return 0 }
        let clusterSize = check.header.clusterSize
        // The table as it was opened, and the one that is changed.
        let l1 = 2 * 8 * check.neededL1
        let (allTables, overflow) = check.neededL1.multipliedReportingOverflow(by: check.header.l2Bytes)
        let tables = overflow ? cache : min(cache, allTables)
        let inflated = InflatedRoom.places(clusterSize) * InflatedRoom.bytes(clusterSize)
        guard check.header.version >= 2 else { return l1 + tables + inflated }
        let geometry = QCOWGeometry(check.header)
        let clusters = geometry.clusters(of: check.fileSize)
        let table = UInt64(check.header.refcountClusters) << geometry.clusterBits
        let blocks = min(
            refcountCache, max(geometry.clusters(of: clusters << geometry.refcountOrder / 8), 1) << geometry.clusterBits
        )
        // A bit each: clusters in use, and clusters of snapshots.
        let scan = (clusters / 8) * (check.header.snapshotCount > 0 ? 2 : 1)
        return l1 + tables + inflated + table + blocks + scan
    }

    /// Bytes of refcount blocks that a writer keeps.
    public static let refcountCache: UInt64 = 4 << 20
}

/// Memory for clusters that are stored compressed.
public enum InflatedRoom {
    private static let most: UInt64 = 16
    private static let memory: UInt64 = 2 << 20

    /// Clusters that are kept.
    public static func places(_ clusterSize: UInt64) -> UInt64 { max(2, min(most, memory / clusterSize)) }
    /// Bytes for each: inflated, and deflated.
    public static func bytes(_ clusterSize: UInt64) -> UInt64 { 2 * clusterSize + 1024 }
}
