// SPDX-License-Identifier: BSD-2-Clause
// The end of the process: each answered write is there, though nothing was flushed.
import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct EngineKillTests {
    /// Prefixes of the effects of all kinds of histories.
    @Test func everyAnsweredWriteSurvives() throws {
        let states = TestLength.states(300, long: 10_000)
        let campaign = CutCampaign(maker: HistoryMaker(opener: ProductEngine.open), ending: .kill, states: states)
        let result = try campaign.run(firstSeed: testSeed("kills"))
        print("kills: \(result)")
        #expect(result.findings.isEmpty, "\(result.findings.first ?? "")")
    }

    /// Each prefix of one short history, none left out.
    @Test func everyPrefixOfAShortHistoryIsWhole() throws {
        var recipe = ImageRecipe()
        (recipe.clusterBits, recipe.size, recipe.lowerSectors, recipe.hasSnapshot) = (12, 256 << 10, 300, true)
        var maker = HistoryMaker(opener: ProductEngine.open, steps: 60, recipe: recipe)
        maker.shape = HistoryShape(flushes: 2)
        let history = try maker.play(testSeed("every prefix"))
        #expect(history.liveFaults.isEmpty, "\(history.liveFaults)")
        let judge = Judge(history)
        var cut = KillCut(history.log)
        for position in 0...history.log.effects.count {
            let found = judge.faults(cut.state(at: position), .kill, position: position)
            #expect(found.isEmpty, "\(history.words("kill", position, found))")
        }
    }
}
