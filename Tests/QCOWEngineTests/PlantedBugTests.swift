// SPDX-License-Identifier: BSD-2-Clause
// Each rule of order is broken below the product's engine, and the judges find it: a suite that finds nothing proves little.
import Foundation
import TestSupport
import Testing

/// A mistake that is made below an engine.
struct PlantedBug: CustomTestStringConvertible, Sendable {
    let name: String
    var order = OrderVice.none
    var storage = StorageVice()
    var ending = Ending.powerCut
    /// It must be found within so many states.
    var within = 1500
    /// Images that have what it is about.
    var simplify: (@Sendable (inout ImageRecipe) -> Void)?

    var testDescription: String { name }

    private static let overLower: @Sendable (inout ImageRecipe) -> Void = { recipe in
        recipe.isPreallocated = false
        recipe.lowerSectors = recipe.size / 512
    }
    private static let withSnapshot: @Sendable (inout ImageRecipe) -> Void = { recipe in
        recipe.refcountBits = max(recipe.refcountBits, 2)
        (recipe.hasSnapshot, recipe.isEmpty) = (true, false)
    }

    private static let overLowerBySubclusters: @Sendable (inout ImageRecipe) -> Void = { recipe in
        SubclusterTests.extended(&recipe)
        overLower(&recipe)
    }

    static let all: [PlantedBug] = [
        PlantedBug(name: "R1 refcounts are durable too late", order: .late(.refcounts, syncs: 2)),
        PlantedBug(
            name: "R2 an L1 entry is published before its table is durable", order: .early(.l1), simplify: withSnapshot),
        PlantedBug(
            name: "R3 a copy is published before it is durable", order: .early(.l2), simplify: overLower),
        PlantedBug(name: "R3 an entry waits in memory after the answer", order: .heldBack(.l2), ending: .kill),
        PlantedBug(name: "R4 clusters are not zeroed", storage: StorageVice(zeroDoesNothing: true)),
        PlantedBug(name: "R5 removed entries are durable too late", order: .late(.l2, syncs: 3)),
        PlantedBug(
            name: "R5 a hole is punched late, in a cluster that is used again", storage: StorageVice(zeroDelay: 30)),
        PlantedBug(name: "R6 a hole reaches into the next cluster", storage: StorageVice(zeroTooWide: 512)),
        PlantedBug(
            name: "R4 a subcluster gets its bit before its data are durable", order: .early(.l2),
            simplify: overLowerBySubclusters),
        PlantedBug(
            name: "R6 a write into one subcluster zeroes the next one", storage: StorageVice(zeroesBehindData: 512),
            ending: .kill, simplify: overLowerBySubclusters),
        PlantedBug(
            name: "R8 an extended entry is torn between its words", order: .torn(.l2), simplify: overLowerBySubclusters),
        PlantedBug(name: "nothing but a flush of the guest syncs", order: .engineNeverSyncs),
    ]
}

@Suite(.serialized) struct PlantedBugTests {
    @Test(arguments: PlantedBug.all)
    func thePlantedBugIsFound(_ bug: PlantedBug) throws {
        var maker = HistoryMaker(opener: ProductEngine.open, vice: bug.storage, steps: 300, simplify: bug.simplify)
        maker.shape = HistoryShape(discards: 25)
        let campaign = CutCampaign(
            maker: maker, ending: bug.ending, order: bug.order, states: bug.within, statesOfHistory: 60, juryEvery: 0)
        let result = try campaign.run(firstSeed: testSeed(bug.name))
        print("planted, \(bug.name): found after \(result.states) states: \(result.findings.first?.prefix(400) ?? "")")
        #expect(!result.findings.isEmpty, "\(bug.name) is not found: \(result)")
    }

    /// R7: errors that are passed over leave what the judges see.
    @Test func hiddenErrorsAreFound() throws {
        var found = 0
        let first = testSeed("hidden errors")
        for seed in first..<first + 4 {
            let maker = HistoryMaker(
                opener: ProductEngine.open, vice: StorageVice(hidesErrors: true), steps: 60,
                simplify: { recipe in
                    (recipe.clusterBits, recipe.size, recipe.isExtended) = (12, 256 << 10, false)
                    if recipe.lowerSectors != nil { recipe.lowerSectors = 500 }
                })
            found += try FaultCampaign(maker: maker, seed: seed).run().findings.count
        }
        #expect(found > 0, "errors that are not reported are found by what they leave")
    }
}
