// SPDX-License-Identifier: BSD-2-Clause
// The tables of an image are read from the start of the disk on, so that the first change finds most of the scan done.
//
// Little by little, since other disks use the storage too, and only what is read: what the scan writes or syncs is for the first change.
import QCOW2

extension ImageEngine {
    /// Bytes of tables for each ``commit()``.
    private static let bytesAhead: UInt64 = 64 << 10

    /// Lets the committer read the tables before a change waits for that. Any thread.
    public func readTablesAhead() {
        readsAhead.store(true, ordering: .relaxed)
        wake()
    }

    /// For the committer.
    var isReadingAhead: Bool {
        guard readsAhead.load(ordering: .relaxed), waitsForScan else { return false }
        // After an error only somebody who waits makes it begin anew.
        guard !isScanned.load(ordering: .acquiring), failure == 0, scanError == 0 else { return false }
        return switch scan?.phase {
        case .active?, .snapshot?: true
        default: false
        }
    }

    /// For the committer, while no change waits.
    func readAhead() {
        var left = Self.bytesAhead
        while left > 0, isReadingAhead {
            metadataLock.locked { step() }
            left -= min(left, geometry.clusterSize)
        }
    }
}
