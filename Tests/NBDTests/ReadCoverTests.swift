// SPDX-License-Identifier: BSD-2-Clause
// The cover of a read beside a set of its bytes.
import NBD
import Testing
import TestSupport

@Suite struct ReadCoverTests {
    /// Additions are refused exactly where a byte is there already, or where there would be a ninth interval.
    @Test func itSaysWhatASetOfBytesSays() {
        for seed in testSeeds("ReadCoverTests", count: 400) {
            var random = SplitMix64(seed: seed)
            var cover = ReadCover()
            var bytes = Set<UInt32>()
            let length = 1 + random.below(60)
            for _ in 0..<40 {
                let start = random.below(length)
                let end = start + 1 + random.below(min(6, length - start))
                let added = UInt32(start)..<UInt32(end)
                let after = bytes.union(added)
                let intervals = after.count { !after.contains($0 &- 1) }
                switch cover.add(added.lowerBound, to: added.upperBound) {
                case .overlaps: #expect(!bytes.isDisjoint(with: added), "seed \(seed)")
                case .full: #expect(bytes.isDisjoint(with: added) && intervals > ReadCover.most, "seed \(seed)")
                case .added:
                    #expect(bytes.isDisjoint(with: added) && intervals <= ReadCover.most, "seed \(seed)")
                    bytes = after
                }
                #expect(cover.isWhole(UInt32(length)) == (bytes.count == length), "seed \(seed)")
            }
        }
    }

    @Test func itKnowsTheLargestRequest() {
        var cover = ReadCover()
        #expect(!cover.isWhole(.max))
        if case .added = cover.add(1, to: .max) {} else { Issue.record("refused") }
        if case .added = cover.add(0, to: 1) {} else { Issue.record("refused") }
        #expect(cover.isWhole(.max))
    }
}
