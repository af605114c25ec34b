// SPDX-License-Identifier: BSD-2-Clause
// Losses of power: what was flushed is there, the tables agree, and nothing of another place shows.
import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct PowerCutTests {
    /// All kinds of images. `make test` judges some hundred states, `make test-long` 20,000.
    @Test func everyStateIsWhole() throws {
        let states = TestLength.states(400, long: 20_000)
        let campaign = CutCampaign(maker: HistoryMaker(opener: ProductEngine.open), ending: .powerCut, states: states)
        let result = try campaign.run(firstSeed: testSeed("power cuts"))
        print("power cuts: \(result)")
        #expect(result.findings.isEmpty, "\(result.findings.first ?? "")")
    }

    /// Small images with much freeing and reuse, where a mistake of order shows soonest.
    @Test func everyStateIsWholeWhenClustersGoRound() throws {
        var maker = HistoryMaker(opener: ProductEngine.open, steps: 400)
        maker.shape = HistoryShape(zeroes: 10, discards: 30)
        maker.simplify = { recipe in
            recipe.size = min(recipe.size, 24 << recipe.clusterBits)
            if let sectors = recipe.lowerSectors { recipe.lowerSectors = min(sectors, recipe.size / 512) }
        }
        let campaign = CutCampaign(
            maker: maker, ending: .powerCut, states: TestLength.states(200, long: 6000), statesOfHistory: 50)
        let result = try campaign.run(firstSeed: testSeed("power cuts, going round"))
        print("power cuts, going round: \(result)")
        #expect(result.findings.isEmpty, "\(result.findings.first ?? "")")
    }
}
