// SPDX-License-Identifier: BSD-2-Clause
// The values that the engine is made of: refcounts, sets, runs, locks and plans.
import ImageCore
import ImageWriting
import QCOW2
import TestSupport
import Testing

@Suite struct QCOWValuesTests {
    /// Each width beside an array, at random.
    @Test(arguments: UInt64(0)...6)
    func refcountsOfAllWidthsStandWhereTheyShould(order: UInt64) {
        var random = SplitMix64(seed: 7 + order)
        var block = RefcountBlock(Array(repeating: 0, count: 512), order: order)
        let largest: UInt64 = order == 6 ? .max : (1 << (1 << order)) - 1
        var expected = [UInt64](repeating: 0, count: block.count)
        #expect(block.count == (512 * 8) >> Int(order))
        for _ in 0..<2000 {
            let (index, value) = (Int(random.next() % UInt64(block.count)), random.next() & largest)
            block[index] = value
            expected[index] = value
        }
        #expect((0..<block.count).map { block[$0] } == expected)
    }

    /// docs/interop/qcow2.txt: below 8 bits the first refcount is in the lowest bits; others are big-endian.
    @Test func refcountsAreInTheOrderOfTheFile() {
        var nibbles = RefcountBlock([0, 0], order: 2)
        nibbles[0] = 0xa
        nibbles[1] = 0xb
        #expect(nibbles.bytes == [0xba, 0])
        var words = RefcountBlock([0, 0, 0, 0], order: 4)
        words[1] = 0x1234
        #expect(words.bytes == [0, 0, 0x12, 0x34])
        #expect(words.place(of: 1) == 2..<4)
    }

    @Test func aSetOfClustersIsASet() {
        var random = SplitMix64(seed: 3)
        var (set, expected) = (ClusterSet(), Set<UInt64>())
        for _ in 0..<20000 {
            let cluster = random.next() % 100_000
            if random.next() % 3 == 0 {
                set.remove(cluster)
                expected.remove(cluster)
            } else {
                #expect(set.insert(cluster) == expected.insert(cluster).inserted)
            }
        }
        #expect(set.count == UInt64(expected.count))
        #expect(set.highest == expected.max())
        for start in stride(from: UInt64(0), to: 100_000, by: 997) {
            #expect(set.firstAbsent(in: start..<100_000) == (start..<100_000).first { !expected.contains($0) })
        }
        var other = ClusterSet()
        other.insert(5)
        other.insert(200_000)
        set.formUnion(other)
        #expect(set.count == UInt64(expected.union([5, 200_000]).count))
    }

    @Test func runsGiveWhatFollowsEachOther() {
        var runs = ClusterRuns()
        runs.add(10..<12)
        runs.add(12..<20)
        runs.add(30..<33)
        #expect(runs.count == 13)
        #expect(runs.take(3) == 10)
        #expect(runs.take(8) == nil)
        #expect(runs.take(7) == 13)
        #expect(runs.take(2) == 30)
        #expect(runs.takeAll() == [32..<33])
        #expect(runs.count == 0 && runs.take(1) == nil)
    }

    @Test func whoMeetsARangeWaitsForIt() {
        var locks = RangeLocks<String>()
        let first = locks.acquire(0...9, orWait: "-")
        #expect(first != nil && locks.acquire(10...19, orWait: "-") != nil)
        #expect(locks.acquire(9...9, orWait: "a") == nil && locks.acquire(5...30, orWait: "b") == nil)
        #expect(locks.release(first ?? 0) == ["a", "b"])
        #expect(locks.acquire(9...9, orWait: "a") != nil)
    }

    // MARK: Plans

    private static let own = L2Entry(own: 0x50000)
    private static let shared = L2Entry(0x50000)
    private static let preallocated = L2Entry(0x50000 | L2Entry.copied | L2Entry.zero)
    private static let deflated = L2Entry(L2Entry.compressed | 0x50000)

    /// R6 and R3: what may be written in place, and what is written elsewhere, made durable and then published.
    @Test func dataGoWhereNothingElseIsHurt() {
        for hasLower in [false, true] {
            for version: UInt32 in [2, 3] {
                let rules = PlanRules(version: version, hasLower: hasLower)
                #expect(rules.plan(.data(isWhole: false), Self.own) == .inPlace(0x50000))
                #expect(rules.plan(.data(isWhole: false), Self.shared) == .copy(keepsOld: true))
                #expect(rules.plan(.data(isWhole: true), Self.shared) == .copy(keepsOld: false))
                #expect(rules.plan(.data(isWhole: false), Self.deflated) == .copy(keepsOld: true))
                #expect(rules.plan(.data(isWhole: false), .hole) == (hasLower ? .copy(keepsOld: true) : .fresh))
            }
            let rules = PlanRules(version: 3, hasLower: hasLower)
            #expect(rules.plan(.data(isWhole: false), .zeroes) == .fresh)
            // Old data of somebody may stand behind the zero flag.
            #expect(rules.plan(.data(isWhole: false), Self.preallocated) == .refill(0x50000))
            #expect(rules.plan(.data(isWhole: false), L2Entry(0x50001)) == .copy(keepsOld: true))
        }
    }

    @Test func zeroesAndDiscardsAreEntriesWhereTheyCanBe() {
        let (alone, above) = (PlanRules(version: 3, hasLower: false), PlanRules(version: 3, hasLower: true))
        #expect(alone.plan(.zeroes(mayFree: true), Self.own) == .publish(.hole, frees: true))
        #expect(above.plan(.zeroes(mayFree: true), Self.own) == .publish(.zeroes, frees: true))
        #expect(alone.plan(.zeroes(mayFree: false), Self.own) == .publish(Self.preallocated, frees: false))
        #expect(above.plan(.zeroes(mayFree: true), .hole) == .publish(.zeroes, frees: false))
        #expect(alone.plan(.zeroes(mayFree: true), .hole) == .nothing)
        #expect(alone.plan(.partZeroes, .hole) == .nothing && above.plan(.partZeroes, .zeroes) == .nothing)
        #expect(above.plan(.partZeroes, .hole) == .copy(keepsOld: true))
        #expect(alone.plan(.discard, Self.own) == .publish(.hole, frees: true))
        // What lies below must not come back into sight.
        #expect(above.plan(.discard, Self.own) == .publish(.zeroes, frees: true))
        #expect(above.plan(.discard, .hole) == .publish(.zeroes, frees: false))
        #expect(above.plan(.discard, .zeroes) == .nothing)
    }

    /// Version 2 has no zero flag.
    @Test func versionTwoNeverGetsAZeroFlag() {
        let entries = [L2Entry.hole, Self.own, Self.shared, Self.deflated]
        for hasLower in [false, true] {
            let rules = PlanRules(version: 2, hasLower: hasLower)
            for entry in entries {
                for change in [ClusterChange.zeroes(mayFree: true), .zeroes(mayFree: false), .partZeroes, .discard] {
                    if case .publish(let new, _) = rules.plan(change, entry) { #expect(!new.isZero) }
                }
            }
        }
        #expect(PlanRules(version: 2, hasLower: true).plan(.discard, Self.own) == .nothing)
        #expect(PlanRules(version: 2, hasLower: true).plan(.zeroes(mayFree: true), .hole) == .freshZeroes)
        #expect(PlanRules(version: 2, hasLower: false).plan(.zeroes(mayFree: false), Self.own) == .inPlace(0x50000))
    }

    @Test func compressedEntriesTellTheirClusters() {
        // 64 KiB clusters: 54 bits of offset, then 8 of additional sectors.
        let entry = L2Entry(L2Entry.compressed | 3 << 54 | 0x1fe00)
        let (offset, length) = entry.compressedRange(clusterBits: 16)
        #expect(offset == 0x1fe00 && length == 2048)
        #expect(entry.clusters(clusterBits: 16) == 1...2)
        #expect(L2Entry.hole.clusters(clusterBits: 16) == nil)
    }
}
