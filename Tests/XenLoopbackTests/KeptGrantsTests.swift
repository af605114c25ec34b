// SPDX-License-Identifier: BSD-2-Clause
// The table of known references, against a dictionary and an array that do the same slowly.
import TestSupport
import Testing

@testable import Xen

@Suite struct KeptGrantsTests {
    @Test(arguments: [1, 2, 7, 64, 1056])
    func theTableIsABoundedDictionaryWithAnOrder(capacity: Int) {
        var random = SplitMix64(seed: testSeed("KeptGrantsTests") ^ UInt64(capacity))
        var table = KeptGrants(capacity: capacity, secret: random.next())
        // From the one used last.
        var order: [UInt32] = []
        var uses: [UInt32: Int] = [:]
        for _ in 0..<20_000 {
            let reference = UInt32(random.below(UInt64(capacity * 2 + 2)))
            switch random.below(8) {
            case 0 where !order.isEmpty:
                let gone = random.onceIn(2) ? order.last : order[Int(random.below(UInt64(order.count)))]
                guard let gone else { continue }
                let before = uses[gone]
                guard let index = table.use(gone) else {
                    Issue.record("\(gone) is not found")
                    return
                }
                uses[gone] = (before ?? 0) + 1
                table.remove(index)
                order.removeAll { $0 == gone }
                uses[gone] = nil
            default:
                if let index = table.use(reference) {
                    uses[reference, default: 0] += 1
                    #expect(
                        table[index].reference == reference && Int(table[index].uses) == min(uses[reference] ?? 0, 255))
                    order.removeAll { $0 == reference }
                    order.insert(reference, at: 0)
                } else {
                    #expect(uses[reference] == nil)
                    guard let index = table.add(reference) else {
                        #expect(table.isFull && order.count == capacity)
                        continue
                    }
                    #expect(table[index].state == .seen && table[index].uses == 1 && table[index].address == 0)
                    uses[reference] = 1
                    order.insert(reference, at: 0)
                }
            }
            #expect(table.count == order.count)
            #expect(order.isEmpty ? table.oldest < 0 : table[table.oldest].reference == order.last)
        }
        while table.oldest >= 0 {
            #expect(table[table.oldest].reference == order.popLast())
            table.remove(table.oldest)
        }
        #expect(order.isEmpty && table.count == 0)
    }

    @Test func whatIsNotedOfAReferenceStays() {
        var table = KeptGrants(capacity: 8, secret: 1)
        for reference in UInt32(0)..<8 {
            guard let index = table.add(reference) else { return }
            table[index].state = .mapped
            table[index].address = UInt(reference) + 100
            table[index].cookie = UInt64(reference) + 200
        }
        #expect(table.add(9) == nil)
        for reference in UInt32(0)..<8 where reference % 2 == 0 {
            if let index = table.use(reference) { table.remove(index) }
        }
        for reference in UInt32(0)..<8 {
            let index = table.use(reference)
            #expect((index != nil) == (reference % 2 == 1))
            guard let index else { continue }
            #expect(table[index].state == .mapped && table[index].address == UInt(reference) + 100)
            #expect(table[index].cookie == UInt64(reference) + 200)
        }
    }

    /// A guest chooses references; a million of them neither fill nor slow the table.
    @Test func aMillionReferencesFit() {
        var table = KeptGrants(capacity: 1056, secret: .random(in: .min ... .max))
        for number in UInt32(0)..<1_000_000 {
            let reference = number &* 4096
            if table.use(reference) != nil { Issue.record("\(reference) was never added") }
            if table.isFull { table.remove(table.oldest) }
            #expect(table.add(reference) != nil)
        }
        #expect(table.count == 1056)
    }
}
