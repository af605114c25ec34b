// SPDX-License-Identifier: BSD-2-Clause
// Both ends of a ring, in all pairings with the macros of ring.h, through the steps that the input says.
import TestSupport

@testable import Blkif

/// Takes one ring through the input's steps.
func walkRing() -> [String] {
    var random = SplitMix64(seed: 0)
    let abi = random.pick(RingABI.allCases)
    let pages = random.pick([1, 1, 1, 2, 4])
    let start = UInt32(truncatingIfNeeded: random.next())
    var walk = RingWalk(abi: abi, pages: pages, start: start, random: random)
    while !FuzzInput.isOver {
        if let difference = walk.advance() { return ["\(abi), \(pages) pages from \(start): \(difference)"] }
    }
    return []
}
