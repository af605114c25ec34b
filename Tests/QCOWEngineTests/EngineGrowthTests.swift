// SPDX-License-Identifier: BSD-2-Clause
// Disks that grow while they are in use: the L1 table moves, and each moment is whole.
import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct EngineGrowthTests {
    /// Sizes before and after, in clusters; the L1 table of the last ones needs more clusters than it had.
    private static let sizes: [(clusterBits: Int, before: Int, after: Int)] = [
        (9, 3000, 3001), (9, 4090, 9000), (12, 100, 300), (14, 20, 60), (16, 10, 40),
    ]

    @Test(arguments: sizes.indices, [0, 1])
    func everyMomentOfAGrowthIsWhole(_ index: Int, _ turn: Int) throws {
        let (clusterBits, before, after) = Self.sizes[index]
        let seed = testSeed("growth") &+ UInt64(turn)
        var recipe = ImageRecipe()
        (recipe.clusterBits, recipe.size) = (clusterBits, before << clusterBits)
        recipe.isExtended = clusterBits == 14
        if turn == 1 { recipe.lowerSectors = recipe.size / 512 / 2 } else { recipe.hasSnapshot = true }
        var maker = try ImageMaker(recipe, seed: seed)
        let made = try maker.make()
        let storage = SimulatedStorage(made.image)
        var setup = EngineSetup()
        setup.isVouched = turn == 1
        let engine = try ProductEngine.open(storage, made.reader, setup)
        let content = made.content.generations + [UInt32](repeating: 0, count: (after - before) << clusterBits / 512)
        var shape = HistoryShape()
        shape.largest = 128
        let driver = HistoryDriver(
            engine, storage, content: content, clusterBits: clusterBits, discardsZero: true, shape: shape, seed: seed)
        driver.sectors = made.content.generations.count
        // The first change waits until all tables were read.
        driver.submit(.write, 0..<1)
        driver.drain()
        driver.run(80)
        let start = storage.position
        try engine.grow(to: UInt64(after << clusterBits))
        let end = storage.position
        driver.sectors = content.count
        driver.run(120)
        driver.drain()
        driver.flush()
        try #require(driver.faults == [] && driver.errors == 0 && !engine.hasFailed)
        let judge = Judge(reader: made.reader, model: driver.model)
        var (random, power, kill) = (SplitMix64(seed: seed), PowerCut(storage.log), KillCut(storage.log))
        for position in start...min(end + 20, storage.position) {
            let dead = judge.faults(kill.state(at: position), .kill, position: position)
            try #require(dead == [], "kill at \(position)\n\(storage.log.tail(position))")
            for _ in 0..<4 {
                let found = judge.faults(power.state(at: position, &random), .powerCut, position: position)
                try #require(found == [], "cut at \(position)\n\(storage.log.tail(position))")
            }
        }
        engine.close()
        let last = storage.snapshot
        let structure = StructureCheck.report(last)
        #expect(structure.leaks == 0 && structure.behindEnd == 0, "\(structure)")
        let jury = QemuJury(made.folder)
        try jury.ask(last) { verdict in
            let found = judge.faults(verdict, structure: structure, .kill, position: .max)
            #expect(found.isEmpty, "\(found)")
        }
        try jury.decide()
    }
}
