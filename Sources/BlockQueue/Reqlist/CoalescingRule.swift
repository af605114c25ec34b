// SPDX-License-Identifier: BSD-2-Clause
// Which requests become one reqlist.
import Blkif

/// The rule by which adjacent requests become one reqlist: FreeBSD's (same operation, next sector, a limit of segments)
/// with the plugin's limits.
package struct CoalescingRule: Equatable, BitwiseCopyable {
    /// Bytes of a reqlist.
    package var maxBytes: UInt64
    /// Segments of a reqlist.
    package var maxSegments: Int32
    /// `no_coalesce_reqs`: every request alone.
    package var disabled = false

    /// True if a request continues `list`.
    @inline(__always)
    func allows(_ list: borrowing Reqlist, _ request: borrowing BlockRequest) -> Bool {
        if disabled { return false }
        if request.firstSector != list.firstSector &+ list.sectorCount { return false }
        let operation = request.operation
        if operation != list.state.operation { return false }
        if operation != .read && operation != .write { return false }
        if list.segmentCount &+ Int32(truncatingIfNeeded: request.segmentCount) > maxSegments { return false }
        return (list.sectorCount &+ request.sectorCount) &* 512 <= maxBytes
    }
}
