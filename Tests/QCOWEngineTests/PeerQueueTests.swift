// SPDX-License-Identifier: BSD-2-Clause
// What went wrong in other engines where queues meet, and where a guest stands still: a case for each.
import Foundation
import ImageWriting
import TestSupport
import Testing

@Suite(.serialized) struct PeerQueueTests {
    /// cloud-hypervisor #7660: each queue had tables and refcounts of its own. #8621: several queues above a backing file.
    @Test(arguments: [false, true]) func queuesShareOneState(isLowerQcow2: Bool) throws {
        let first = testSeed("queues above \(isLowerQcow2 ? "qcow2" : "raw")")
        for seed in first..<first + UInt64(TestLength.isLong ? 60 : 2) {
            var recipe = ImageRecipe()
            (recipe.clusterBits, recipe.lowerSectors, recipe.isLowerQcow2) = (12, 1500, isLowerQcow2)
            recipe.hasSnapshot = seed % 2 == 0
            var maker = try ImageMaker(recipe, seed: seed)
            let made = try maker.make()
            let history = try ThreadedHistory(made, opener: ProductEngine.open, seed: seed)
            let found = try history.run(operations: TestLength.isLong ? 2000 : 400)
            try #require(found.isEmpty, "seed \(seed): \(recipe): \(found)")
        }
    }

    /// cloud-hypervisor #8607: tables were still in memory when a guest was paused, so that who copied the file then had another disk.
    @Test func thePausedDiskIsInItsFile() throws {
        var recipe = ImageRecipe()
        (recipe.clusterBits, recipe.size, recipe.lowerSectors, recipe.hasSnapshot) = (12, 512 << 10, 700, true)
        let seed = testSeed("paused")
        let bench = try EngineBench(recipe, seed: seed, shape: HistoryShape(discards: 25))
        let judge = { Judge(reader: bench.made.reader, model: bench.driver.model) }
        var random = SplitMix64(seed: seed)
        for _ in 0..<(TestLength.isLong ? 60 : 8) {
            bench.driver.run(80)
            bench.driver.drain()
            bench.driver.flush()
            // It stands still, and is not closed: what a copy has, and what a loss of power leaves.
            try #require(bench.faults() == [])
            let position = bench.storage.position
            var cut = PowerCut(bench.storage.log)
            for _ in 0..<4 {
                let found = judge().faults(cut.state(at: position, &random), .powerCut, position: position)
                try #require(found.isEmpty, "\(found)\n\(bench.storage.log.tail(position))")
            }
        }
        #expect(try bench.qemuFaults() == [])
        #expect(bench.close() == [])
    }
}
