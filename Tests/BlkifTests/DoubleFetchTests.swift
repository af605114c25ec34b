// SPDX-License-Identifier: BSD-2-Clause
// A frontend rewrites its slot while the backend reads it: what is parsed is one copy, and the copy only.
import CBlkifOracle
import Glibc
import Memory
import TestSupport
import Testing

@testable import Blkif

@Suite("A slot that changes while it is read")
struct DoubleFetchTests {
    private static let pairs = 24
    private static let takesPerPair = 10_000

    /// How the copies looked.
    private struct Tally {
        var first = 0
        var second = 0
        var mixed = 0
        var valid = 0
        var refused = 0
    }

    @Test("take() copies each word once, and parsing looks at the copy alone", arguments: [RingABI.x86_64, .x86_32])
    func flipper(abi: RingABI) {
        let seed = testSeed("double fetch, \(abi)")
        var random = SplitMix64(seed: seed)
        var tally = Tally()
        for pair in 0..<Self.pairs {
            // Each slot of the ring has its turn; in the narrow ABI they are aligned to four bytes only.
            if let problem = run(abi, slotIndex: pair * 31 / (Self.pairs - 1), &random, &tally) {
                Issue.record("\(abi), seed \(seed), pair \(pair): \(problem)")
                return
            }
        }
        #expect(tally.first > 0 && tally.second > 0 && tally.mixed > 0, "\(tally)")
        #expect(tally.valid > 0 && tally.refused > 0, "\(tally)")
        print("double fetch, \(abi): \(tally)")
    }

    private func run(_ abi: RingABI, slotIndex: Int, _ random: inout SplitMix64, _ tally: inout Tally) -> String? {
        let layout = RingLayout(abi)
        let disk = OfferedFeatures(sectorCount: 1 << 40, discard: DiscardSupport())
        let a = request(layout, &random, good: true)
        let b = request(layout, &random, good: false)
        let pages = TestPages(pages: 1)
        var front = FrontRing(initializing: pages.shared, abi: abi, startIndex: UInt32(slotIndex))
        front.put(a)
        _ = front.publish()

        let words = layout.slotSize / 4
        let flag = StopFlag()
        let address = UInt(bitPattern: pages.base) + UInt(RingLayout.ringHeaderSize + slotIndex * layout.slotSize)
        let flipper = TestThread {
            withUnsafeBytes(of: a) { first in
                withUnsafeBytes(of: b) { second in
                    _ = oracle_flip(
                        UnsafeMutableRawPointer(bitPattern: address),
                        first.bindMemory(to: UInt32.self).baseAddress, second.bindMemory(to: UInt32.self).baseAddress,
                        words, flag.word)
                }
            }
        }
        defer {
            flag.stop()
            flipper.join()
        }

        for _ in 0..<Self.takesPerPair {
            var back = BackRing(attaching: pages.shared, abi: abi)
            guard (try? back.available()) == 1 else { return "no request" }
            var copy = SlotBytes()
            copy.store(0x5A5A_5A5A as UInt32, at: SlotBytes.byteCount - 4)
            back.take(into: &copy)

            var fromA = 0
            var fromB = 0
            for word in 0..<words {
                let value = copy.load(UInt32.self, at: word * 4)
                let (ofA, ofB) = (a.load(UInt32.self, at: word * 4), b.load(UInt32.self, at: word * 4))
                if value == ofA {
                    fromA += 1
                } else if value == ofB {
                    fromB += 1
                } else {
                    return "word \(word) is \(value), never written: \(ofA) or \(ofB)"
                }
            }
            if fromB == 0 { tally.first += 1 } else if fromA == 0 { tally.second += 1 } else { tally.mixed += 1 }
            if words * 4 < SlotBytes.byteCount, copy.load(UInt32.self, at: words * 4) != 0x5A5A_5A5A {
                return "bytes behind the slot were copied"
            }
            if let problem = parse(copy, abi, layout, disk, &tally) { return problem }
        }
        return nil
    }

    /// Parses a copy twice, with time for the flipper between, and asks C's structs.
    private func parse(
        _ copy: SlotBytes, _ abi: RingABI, _ layout: RingLayout, _ disk: OfferedFeatures, _ tally: inout Tally
    ) -> String? {
        let first = ParsedRequest()
        let error = first.parse(copy, layout: layout, disk: disk)
        let second = meaning(of: copy, abi: abi, disk: disk)
        let again = ParsedRequest()
        let errorAgain = again.parse(copy, layout: layout, disk: disk)
        if error != errorAgain || first.meaning(error) != again.meaning(errorAgain) {
            return "parsed twice, two results"
        }
        guard (first.id, first.wireOperation, first.meaning(error)) == second else {
            return "\(first.meaning(error)) is not what the copy says: \(second)"
        }
        if error == nil { tally.valid += 1 } else { tally.refused += 1 }
        return nil
    }

    /// A valid request or one that is wrong everywhere; no byte of the two is the same by intention.
    private func request(_ layout: RingLayout, _ random: inout SplitMix64, good: Bool) -> SlotBytes {
        var slot = SlotBytes.random(&random)
        slot.store(UInt8(good ? 1 : 0), at: 0)
        slot.store(good ? UInt8(1 + random.below(11)) : [UInt8(12), 255, 0, 11][random.below(4)], at: 1)
        slot.store(random.next() >> (good ? 30 : 0), at: layout.sectorOffset)
        for index in 0..<11 {
            let offset = layout.segmentsOffset + 8 * index + 4
            slot.store(UInt8(good ? random.below(4) : 5 + random.below(2)), at: offset)
            slot.store(UInt8(good ? 4 + random.below(4) : 8 + random.below(200)), at: offset + 1)
        }
        return slot
    }
}
