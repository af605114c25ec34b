// SPDX-License-Identifier: BSD-2-Clause
// Hostile VHDs, opened for writing: they are refused, or nothing is changed but the disk's own blocks.
import Foundation
import ImageCore
import TestSupport
import Testing
import VHD
import VHDEngine

@Suite struct VHDHostileTests {
    @Test(arguments: VHDMutation.allCases) func nothingForeignIsWritten(_ mutation: VHDMutation) throws {
        let first = testSeed("VHD hostile \(mutation)")
        let count = mutation == .randomBits || mutation == .randomTable ? TestLength.states(60, long: 20_000) : 6
        var opened = 0
        for seed in first..<first + UInt64(count) {
            var random = SplitMix64(seed: seed)
            var recipe = VHDRecipe()
            recipe.kind = random.onceIn(2) ? 3 : 4
            (recipe.filled, recipe.hasPartial) = (60, true)
            (recipe.hasBatmap, recipe.isAligned) = (mutation == .blockInTheBatmap || random.onceIn(3), random.onceIn(2))
            if recipe.kind == 4 { recipe.lowerSectors = 300 }
            let made = recipe.make(seed: seed)
            let image = made.image.copy()
            mutation.apply(made, image, &random)
            let storage = SimulatedStorage(image)
            guard let product = try? VHDProduct(storage, lower: made.lower, reserve: 1...4, discards: true) else {
                #expect(storage.position == 0)
                continue
            }
            opened += 1
            guard product.size <= 16 << 20 else { continue }
            let driver = HistoryDriver(
                product, storage, content: [UInt32](repeating: 0, count: Int(product.size) / sectorSize),
                clusterBits: 13,
                discardsZero: false, shape: HistoryShape(reads: 0, zeroes: 10, discards: 20), seed: seed)
            driver.run(80)
            driver.drain()
            product.close()
            // What the tests' reader takes for blocks may have changed, and nothing else.
            let found = VHDLayout.foreignChanges(image, storage.snapshot)
            #expect(found.isEmpty, "\(mutation), seed \(seed): \(recipe): \(found)\n\(storage.log.tail(.max))")
            if !found.isEmpty { return }
        }
        if mutation != .randomBits && mutation != .randomTable {
            #expect(opened == 0, "\(mutation): \(opened) were opened")
        }
    }

    /// Four million entries: memory and time stay bounded, and one more is refused.
    @Test func aLargeTableIsBounded() throws {
        var recipe = VHDRecipe()
        (recipe.blockBits, recipe.size, recipe.filled) = (12, 64 << 20, 0)
        let made = recipe.make(seed: 1)
        let image = made.image.copy()
        image.put32(4 << 20 | 1, at: 512 + 28)
        VHDRecipe.checksum(image, 512, 1024, at: 36)
        #expect(throws: ImageError.self) { try VHDImage(SimulatedStorage(image)) }
    }
}
