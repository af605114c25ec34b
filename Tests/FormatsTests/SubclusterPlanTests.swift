// SPDX-License-Identifier: BSD-2-Clause
// Subclusters: their masks, what an extended entry may say, and the plans of changes, beside what each subcluster shows.
import Glibc
import ImageCore
import QCOW2
import TestSupport
import Testing

@Suite struct SubclusterPlanTests {
    @Test func masksAreRangesOfBits() {
        for first in 0...32 {
            for end in first...32 {
                let mask = SubclusterMask(first..<end)
                #expect(
                    (0..<32).allSatisfy { mask.contains(SubclusterMask($0..<$0 + 1)) == (first..<end).contains($0) })
                #expect(mask.runs == (first == end ? [] : [first..<end]))
            }
        }
        let mask = SubclusterMask(rawValue: 0b1100_0111)
        #expect(mask.run(from: 0) == 3 && mask.run(from: 1) == 2 && mask.run(from: 3) == 3 && mask.run(from: 8) == 24)
        #expect(mask.runs == [0..<3, 6..<8])
        // 16 KiB clusters: 512 bytes each.
        #expect(SubclusterMask(touchedBy: 1..<513, bits: 9) == SubclusterMask(0..<2))
        #expect(SubclusterMask(coveredBy: 1..<513, bits: 9) == [])
        #expect(SubclusterMask(coveredBy: 512..<16384, bits: 9) == SubclusterMask(1..<32))
        #expect(SubclusterMask(coveredBy: 0..<16384, bits: 9) == .all)
    }

    private static let place: UInt64 = 0x50000
    private static let own = L2Entry(own: place).raw

    @Test func whatCannotBeIsAFault() {
        let bad = [
            L2Entry(Self.own, bitmap: 1 << 32 | 1), L2Entry(0, bitmap: 1), L2Entry(Self.own | 1, bitmap: 2),
            L2Entry(L2Entry.compressed | Self.place, bitmap: 1),
            L2Entry(L2Entry.compressed | Self.place, bitmap: 1 << 63),
        ]
        for entry in bad { #expect(entry.bitmapFault != nil, "\(entry)") }
        let good = [
            L2Entry(0, bitmap: L2Entry.allZeroed), .hole, L2Entry(Self.own),
            L2Entry(Self.own, bitmap: L2Entry.allAllocated),
            L2Entry(Self.place, bitmap: 1 | 1 << 33), L2Entry(L2Entry.compressed | Self.place | 1),
        ]
        for entry in good { #expect(entry.bitmapFault == nil, "\(entry)") }
    }

    /// What a subcluster shows.
    private enum Sight: Equatable { case data, zeroes, below }

    private func sight(_ entry: L2Entry, _ number: Int, _ hasLower: Bool) -> Sight {
        let bit = SubclusterMask(number..<number + 1)
        if entry.isCompressed || entry.allocated.contains(bit) { return .data }
        return hasLower && !entry.zeroed.contains(bit) ? .below : .zeroes
    }

    private func entry(_ random: inout SplitMix64) -> L2Entry {
        let allocated = UInt32(truncatingIfNeeded: random.next() & random.next())
        let zeroed = UInt32(truncatingIfNeeded: random.next() & random.next()) & ~allocated
        switch random.below(6) {
        case 0: return L2Entry(0, allocated: [], zeroed: SubclusterMask(rawValue: zeroed))
        case 1: return L2Entry(0, bitmap: random.onceIn(2) ? 0 : L2Entry.allZeroed)
        case 2: return L2Entry(Self.place, allocated: .init(rawValue: allocated), zeroed: .init(rawValue: zeroed))
        case 3: return L2Entry(L2Entry.compressed | Self.place)
        case 4: return L2Entry(Self.own, allocated: random.onceIn(3) ? .all : [])
        default: return L2Entry(Self.own, allocated: .init(rawValue: allocated), zeroed: .init(rawValue: zeroed))
        }
    }

    private func mask(_ random: inout SplitMix64) -> SubclusterMask {
        let first = random.below(32)
        return random.onceIn(4) ? .all : SubclusterMask(first..<first + 1 + random.below(32 - first))
    }

    /// R4 and R6: what is written where others may read or write is only what the guest writes; what nobody asked for shows what it
    /// showed; and every entry is one that can be.
    @Test func dataChangeNothingElse() {
        var random = SplitMix64(seed: 11)
        for _ in 0..<20_000 {
            let (entry, touched, hasLower) = (entry(&random), mask(&random), random.onceIn(2))
            let rules = PlanRules(version: 3, hasLower: hasLower)
            var (new, written) = (entry, SubclusterMask())
            switch rules.planData(touched, entry) {
            case .inPlace(let place):
                #expect(place == Self.place && touched.isSubset(of: entry.allocated) && entry.isOwn)
            case .fill(let place, let missing, let then):
                #expect(place == Self.place && entry.isOwn && missing.isDisjoint(with: entry.allocated))
                #expect(then.raw == entry.raw)
                (new, written) = (then, missing)
            case .fresh(let allocated):
                // The reserved cluster reads as zeroes, and so did these.
                #expect(
                    entry.raw == 0
                        && (0..<32).allSatisfy {
                            !allocated.contains(SubclusterMask($0..<$0 + 1)) || sight(entry, $0, hasLower) == .zeroes
                        })
                new = L2Entry(Self.own, allocated: allocated)
            case .copy(let whole, let allocated):
                #expect(!entry.isOwn && whole.isSubset(of: allocated))
                (new, written) = (L2Entry(Self.own, allocated: allocated), whole)
            case .nothing, .publish: Issue.record("\(entry)")
            }
            #expect(new.bitmapFault == nil && touched.isSubset(of: new.allocated))
            for number in 0..<32 where !touched.contains(SubclusterMask(number..<number + 1)) {
                let bit = SubclusterMask(number..<number + 1)
                let (before, after) = (sight(entry, number, hasLower), sight(new, number, hasLower))
                // A subcluster that is allocated and not written has the zeroes of a reserved cluster.
                let isEmpty =
                    after == .data && !written.contains(bit) && !(entry.isOwn && entry.allocated.contains(bit))
                #expect(isEmpty ? before == .zeroes : before == after, "\(entry) \(touched.runs) \(number)")
            }
        }
    }

    @Test func zeroesChangeNothingElse() {
        var random = SplitMix64(seed: 12)
        for _ in 0..<20_000 {
            let (entry, covered, hasLower) = (entry(&random), mask(&random), random.onceIn(2))
            let rules = PlanRules(version: 3, hasLower: hasLower)
            let mayFree = random.onceIn(2)
            let plan = rules.planZeroes(covered, entry, mayFree: mayFree)
            guard case .publish(let new, let frees) = plan else {
                #expect(plan == .nothing)
                let isZero = (0..<32).allSatisfy {
                    !covered.contains(SubclusterMask($0..<$0 + 1)) || sight(entry, $0, hasLower) == .zeroes
                }
                // A part of a deflated cluster has no bits.
                #expect(isZero || entry.isCompressed && covered != .all)
                continue
            }
            #expect(new.bitmapFault == nil && frees == (new.place == 0 && entry.raw != 0))
            #expect(!frees || new.allocated.isEmpty)
            #expect(frees || new.raw == entry.raw)
            for number in 0..<32 {
                let isCovered = covered.contains(SubclusterMask(number..<number + 1))
                let (before, after) = (sight(entry, number, hasLower), sight(new, number, hasLower))
                #expect(isCovered ? after == .zeroes : after == before, "\(entry) \(covered.runs) \(number)")
            }
        }
    }

    @Test func readersSeeEachSubcluster() throws {
        let folder = try Folder()
        let image = try QCOWImage(ArrayReader(try folder.image("qcow2 -o extended_l2=on,cluster_size=16k")))
        let decoder = EntryDecoder(image.header)
        let (place, size) = (UInt64(5 << 14), UInt64(5 << 14) + 4 * 512)
        // Subclusters 1 to 3 have data, 4 and 5 are zeroes, and the file ends behind the data.
        let entry = L2Entry(place | L2Entry.copied, allocated: SubclusterMask(1..<4), zeroed: SubclusterMask(4..<6))
        func seen(_ first: Int) throws -> (Extent, Int) { try decoder.describe(entry, from: first, fileSize: size) }
        #expect(try seen(0) == (.hole, 1))
        #expect(try seen(1) == (.data(place + 512), 3))
        #expect(try seen(2) == (.data(place + 1024), 2))
        #expect(try seen(4) == (.zeroes, 2))
        #expect(try seen(6) == (.hole, 26))
        #expect(throws: ReadFault.self) { try decoder.describe(entry, from: 1, fileSize: size - 1) }
        let bad = L2Entry(entry.raw, bitmap: entry.bitmap | 1 << 33)
        #expect(throws: ReadFault.self) { try decoder.describe(bad, from: 20, fileSize: size) }
    }
}
