// SPDX-License-Identifier: BSD-2-Clause
// The same steps through our ends of the ring and through the macros of xen/io/ring.h: after every step every byte of
// the pages, every private index and every answer must be the same.
//
// Two differences are intended and do not show here, because these frontends do not write `rsp_prod`, nor backends
// `req_prod`: `publish()` compares with its private copy of the index that it published last, where the macros read
// it back from the shared page; and `available()` refuses indices that the macros let pass (see RingSides.swift).
import Memory
import TestSupport
import Testing

@testable import Blkif

/// Where free-running indices begin.
private let starts: [UInt32] = [0, 1, 0x7FFF_FFF0, 0x7FFF_FC01, 0xFFFF_FFFF, 0xFFFF_FFE1, 0xFFFF_FC10]

@Suite("Our ring against the macros of ring.h")
struct RingDifferentialTests {
    @Test("All ring sizes", arguments: RingABI.allCases)
    func allSizes(abi: RingABI) {
        let seed = testSeed("differential ring test, \(abi), 1 to 32 pages")
        var random = SplitMix64(seed: seed)
        for pages in 1...BlkifLimits.ringPages {
            run(abi, pages: pages, start: starts[random.below(starts.count)], steps: 1500, seed: random.next())
        }
    }

    @Test("Indices that wrap around, and the sign", arguments: RingABI.allCases, starts)
    func wrapAround(abi: RingABI, start: UInt32) {
        let seed = testSeed("differential ring test, \(abi), from \(start)")
        var random = SplitMix64(seed: seed)
        let small = run(abi, pages: 1, start: start, steps: 20_000, seed: random.next())
        #expect(small.fullRings > 0 && small.events > 0 && small.heldOff > 0 && small.overflows > 0)
        run(abi, pages: 2, start: start, steps: 5000, seed: random.next())
        run(abi, pages: 8, start: start, steps: 5000, seed: random.next())
    }

    /// Enough steps to fill 1024 slots several times.
    @Test("The longest ring goes round", arguments: RingABI.allCases)
    func longest(abi: RingABI) {
        let seed = testSeed("differential ring test, \(abi), 32 pages around")
        let start = UInt32.max - 700
        let walk = run(abi, pages: 32, start: start, steps: 25_000, seed: seed)
        let made = walk.worlds[0].front.requestProducer &- start
        #expect(made > 2048, "\(made) requests")
    }

    @discardableResult
    private func run(_ abi: RingABI, pages: Int, start: UInt32, steps: Int, seed: UInt64) -> RingWalk {
        var walk = RingWalk(abi: abi, pages: pages, start: start, random: SplitMix64(seed: seed))
        #expect(walk.worlds.allSatisfy { $0.indices == walk.worlds[0].indices })
        #expect(walk.worlds.allSatisfy { $0.pages.firstDifference(from: walk.worlds[0].pages) == nil })
        while walk.steps < steps {
            if let difference = walk.advance() {
                Issue.record("\(abi), \(pages) pages from \(start), step \(walk.steps), seed \(seed): \(difference)")
                break
            }
        }
        return walk
    }
}
