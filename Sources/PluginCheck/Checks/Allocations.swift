// SPDX-License-Identifier: BSD-2-Clause
// Memory that the process has from malloc().
import CAllocations

/// Live memory of the allocator.
struct Allocations {
    var blocks: Int
    var bytes: Int

    /// The current value.
    static var live: Allocations {
        Allocations(blocks: Int(callocations_live_blocks()), bytes: Int(callocations_live_bytes()))
    }

    static func - (left: Allocations, right: Allocations) -> Allocations {
        Allocations(blocks: left.blocks - right.blocks, bytes: left.bytes - right.bytes)
    }
}
