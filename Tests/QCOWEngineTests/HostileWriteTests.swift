// SPDX-License-Identifier: BSD-2-Clause
// Hostile images, opened for writing: whatever their tables say, no table is overwritten with data, and a snapshot keeps its own.
import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct HostileWriteTests {
    /// Some images, which are changed in many ways.
    private static let images = HostileImages()

    @Test(arguments: ImageMutation.allCases)
    func nothingButTheGuestsOwnClustersIsWritten(_ mutation: ImageMutation) throws {
        let first = testSeed("hostile \(mutation)")
        let count = mutation == .randomBits ? TestLength.states(16, long: 4000) : TestLength.states(2, long: 100)
        var refused = 0, failed = 0
        for seed in first..<first + UInt64(count) {
            var random = SplitMix64(seed: seed)
            let needsSnapshot = mutation.rawValue.lowercased().contains("snapshot")
            let needsBitmaps = mutation.rawValue.hasPrefix("bitmap")
            let made = try Self.images.image(
                seed % 24, hasSnapshot: needsSnapshot, needsBitmaps: needsBitmaps,
                needsDeflated: mutation == .bitmapOfDeflated)
            let recipe = made.recipe
            let image = made.image.copy()
            guard let concerned = mutation.apply(image, &random) else { continue }
            let place = image.differences(from: made.image).prefix(4).joined(separator: ", ")
            let name = "\(mutation) (\(place)), seed \(seed): \(recipe)"
            // Twice: what the first time left is found by the second.
            var state = image
            for round in 0..<2 {
                let storage = SimulatedStorage(state)
                var setup = HistoryMaker.setup(&random)
                setup.isVouched = false
                guard let engine = try? ProductEngine.open(storage, made.reader, setup) else {
                    refused += 1
                    break
                }
                var shape = HistoryShape()
                (shape.reads, shape.discards, shape.zeroes) = (0, 20, 10)
                let driver = HistoryDriver(
                    engine, storage, content: made.content.generations, clusterBits: recipe.clusterBits,
                    discardsZero: false, shape: shape, seed: seed + UInt64(round))
                touch(driver, concerned, recipe, &random)
                driver.run(120)
                driver.drain()
                try #require(driver.faults.isEmpty, "\(name): \(driver.faults)\n\(storage.log.tail(.max))")
                if engine.hasFailed { failed += 1 }
                // Damage is found before anything is written, and then only the mark is.
                let isMark = { (effect: Effect) in effect.isSync || effect.range == 72..<80 }
                try #require(
                    !engine.hasFailed || storage.log.effects.allSatisfy(isMark),
                    "\(name): changed, and then found to be damaged\n\(storage.log.tail(.max))")
                engine.close()
                state = storage.snapshot
                let found =
                    ProtectedParts(original: made.image, before: image)?.faults(state, storage.log) ?? ["no header"]
                try #require(found.isEmpty, "\(name), time \(round): \(found)\n\(storage.log.tail(.max))")
            }
        }
        print("hostile \(mutation): \(count) images, \(refused) refused, \(failed) times damage was found")
    }

    /// Writes and discards right where the tables are wrong.
    private func touch(
        _ driver: HistoryDriver, _ concerned: Set<Int>, _ recipe: ImageRecipe, _ random: inout SplitMix64
    ) {
        let sectors = recipe.clusterSize / sectorSize
        for cluster in concerned.sorted().prefix(6) {
            let start = cluster * sectors
            guard start < driver.model.sectors else { continue }
            let all = start..<min(start + sectors, driver.model.sectors)
            switch random.below(4) {
            case 0: driver.submit(.discard, all)
            case 1: driver.submit(.zeroes(mayFree: true), all)
            case 2: driver.submit(.write, all)
            default: driver.submit(.write, start..<start + 1)
            }
            if random.onceIn(2) { driver.run(3) }
        }
    }
}
