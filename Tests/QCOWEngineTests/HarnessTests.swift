// SPDX-License-Identifier: BSD-2-Clause
// The judges are judged: a small writer that keeps all rules is found right, and found wrong as soon as it forgets one.
import Foundation
import QCOWEngine
import TestSupport
import Testing

@Suite(.serialized) struct HarnessTests {
    /// Images that the naive writer knows.
    static let simple: @Sendable (inout ImageRecipe) -> Void = { recipe in
        (recipe.version, recipe.isExtended) = (3, false)
        recipe.refcountBits = 16
        recipe.clusterBits = recipe.clusterBits <= 12 ? 12 : 16
        recipe.size = recipe.clusterBits == 12 ? 512 << 10 : 1 << 20
        if recipe.lowerSectors != nil { recipe.lowerSectors = recipe.size / 512 - 3 }
        (recipe.hasSnapshot, recipe.hasDeflated, recipe.hasZeroes) = (false, false, false)
        recipe.isDevice = false
    }

    private func maker(_ forgotten: WritingRule?) -> HistoryMaker {
        var maker = HistoryMaker(opener: { storage, reader, _ in
            try NaiveWriter(storage, below: reader.lower.map(SimulatedLayer.init), forgets: forgotten)
        })
        maker.simplify = Self.simple
        maker.shape = HistoryShape(zeroes: 0, discards: 20)
        return maker
    }

    @Test(arguments: [Ending.kill, .powerCut])
    func theNaiveWriterIsFoundRight(_ ending: Ending) throws {
        let campaign = CutCampaign(maker: maker(nil), ending: ending, states: 120)
        let result = try campaign.run(firstSeed: testSeed("naive"))
        #expect(result.findings.isEmpty, "\(result)")
        print("naive writer, \(ending): \(result)")
    }

    /// In how many states each forgotten rule is found.
    @Test(arguments: WritingRule.allCases)
    func aForgottenRuleIsFound(_ rule: WritingRule) throws {
        // What is forgotten after an error shows with errors: EngineFaultTests' way.
        if rule == .undoInReverse { return }
        let ending = rule == .entryThenAnswer ? Ending.kill : .powerCut
        var maker = maker(rule)
        if rule == .tableThenL1 {
            // Tables are made at the beginning of an image.
            maker.steps = 24
            maker.simplify = { recipe in
                Self.simple(&recipe)
                (recipe.isEmpty, recipe.isPreallocated) = (true, false)
            }
        }
        let campaign = CutCampaign(maker: maker, ending: ending, states: 3000, juryEvery: 0)
        let result = try campaign.run(firstSeed: testSeed("\(rule)"))
        #expect(!result.findings.isEmpty, "\(rule): \(result)")
        print("\(rule) forgotten: found after \(result.states) states: \(result.findings.first?.prefix(300) ?? "")")
    }
}
