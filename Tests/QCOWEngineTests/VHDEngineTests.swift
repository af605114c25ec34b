// SPDX-License-Identifier: BSD-2-Clause
// VHDs that are written: what is answered is there after the end of the process, and what was flushed after a loss of power.
import Foundation
import ImageCore
import TestSupport
import Testing
import VHDEngine

@Suite(.serialized) struct VHDEngineTests {
    /// Prefixes of the effects of all kinds of histories.
    @Test func everyAnsweredWriteSurvivesAKill() throws {
        let campaign = VHDCampaign(ending: .kill, states: TestLength.states(600, long: 20_000))
        let found = try campaign.run(firstSeed: testSeed("VHD kills"))
        #expect(found.isEmpty, "\(found.first ?? "")")
    }

    /// Effects that were not synced are dropped, reordered and torn at sectors.
    @Test func everyLossOfPowerLeavesAWholeImage() throws {
        let campaign = VHDCampaign(ending: .powerCut, states: TestLength.states(800, long: 40_000))
        let found = try campaign.run(firstSeed: testSeed("VHD power cuts"))
        #expect(found.isEmpty, "\(found.first ?? "")")
    }

    /// Each prefix of a short history, none left out, and each state opened again.
    @Test(arguments: [3, 4] as [UInt32]) func everyPrefixIsWhole(kind: UInt32) throws {
        var recipe = VHDRecipe()
        (recipe.kind, recipe.filled, recipe.hasPartial, recipe.lowerSectors) = (kind, 30, true, kind == 4 ? 300 : nil)
        let history = try VHDHistory(testSeed("VHD prefixes"), recipe: recipe)
        let live = history.play(60)
        #expect(live.isEmpty, "\(live)")
        var cut = KillCut(history.storage.log)
        for position in 0...history.storage.position {
            let state = cut.state(at: position)
            let found = history.faults(state, .kill, position: position) + (try history.reopened(state.copy()))
            #expect(found.isEmpty, "\(history.words("kill", position, found))")
            if !found.isEmpty { return }
        }
    }

    /// The tests find each rule when it is left out: V1 and V3 (syncs), V2 (reserved blocks that are not zeroes), V5 (zeroes too wide).
    @Test(arguments: ["dynamic without syncs", "differencing without syncs", "zeroes do nothing", "zeroes too wide"])
    func aForgottenRuleIsFound(_ name: String) throws {
        var recipe = VHDRecipe()
        (recipe.filled, recipe.hasPartial) = (30, true)
        var campaign = VHDCampaign(ending: .powerCut, states: 4000)
        switch name {
        case "dynamic without syncs": (campaign.order, recipe.filled, recipe.hasPartial) = (.engineNeverSyncs, 0, false)
        case "differencing without syncs":
            (campaign.order, recipe.kind, recipe.lowerSectors) = (.engineNeverSyncs, 4, 400)
        case "zeroes do nothing": campaign.vice.zeroDoesNothing = true
        default: campaign.vice.zeroTooWide = 512
        }
        campaign.recipe = recipe
        let found = try campaign.run(firstSeed: testSeed(name))
        #expect(!found.isEmpty)
    }

    /// One error at every effect, or at every read; then all works again.
    @Test(arguments: [false, true]) func oneErrorAtEveryPlace(ofReads: Bool) throws {
        for kind in [3, 4] as [UInt32] {
            var recipe = VHDRecipe()
            (recipe.kind, recipe.hasPartial, recipe.lowerSectors) = (kind, true, kind == 4 ? 300 : nil)
            let seed = testSeed("VHD faults \(kind)") | 1
            var (number, total) = (0, 1)
            while number < total {
                let history = try? VHDHistory(seed, recipe: recipe)
                guard let history else { break }
                let fault = StorageFault.allCases[number % 3]
                if ofReads {
                    history.storage.failRead(at: number + history.storage.readCount)
                } else {
                    history.storage.fail(at: number, fault)
                }
                let before = history.storage.readCount
                history.driver.run(60)
                history.driver.drain()
                total = ofReads ? history.storage.readCount - before : history.storage.tried
                history.storage.heal()
                let end = history.storage.snapshot
                var found = history.driver.faults + history.faults(end, .kill, position: .max)
                found += VHDLayout.foreignChanges(history.made.image, end)
                if found.isEmpty, number % 7 == 0 { found = try history.reopened(end) }
                #expect(found.isEmpty, "\(history.words("\(fault) at \(number)", .max, found))")
                if !found.isEmpty { return }
                number += 1
            }
            #expect(total > 20)
        }
    }

    /// After a sync that failed nothing is written any more.
    @Test func aFailedSyncIsTheEndOfTheDisk() throws {
        let history = try VHDHistory(testSeed("VHD sync"), recipe: VHDRecipe())
        _ = history.play(30)
        history.storage.fail(at: history.storage.tried, .inputOutputError, lasts: true)
        history.driver.flush()
        #expect(history.driver.engine.hasFailed)
        history.storage.heal()
        let before = history.storage.position
        for sector in 0..<20 { history.driver.submit(.write, sector * 16..<sector * 16 + 8) }
        history.driver.drain()
        #expect(history.storage.position == before)
    }

    /// A file system that is full is an error of the request, and the disk goes on when there is room.
    @Test func aFullFileSystemIsSurvived() throws {
        var recipe = VHDRecipe()
        recipe.filled = 0
        let history = try VHDHistory(testSeed("VHD full"), recipe: recipe)
        history.storage.setLimit(history.made.image.count + 40_000)
        Reopening.fill(history.driver)
        history.driver.drain()
        #expect(history.driver.errors > 0)
        var found = history.faults(history.storage.snapshot, .kill, position: .max)
        #expect(found.isEmpty, "\(found)")
        history.storage.heal()
        let errors = history.driver.errors
        Reopening.fill(history.driver)
        history.driver.drain()
        #expect(history.driver.errors == errors)
        found = history.driver.faults + history.faults(history.storage.snapshot, .kill, position: .max)
        #expect(found.isEmpty, "\(found)")
    }

    /// What a killed process had reserved is taken by the next one: a hundred kills cost no more than one.
    @Test(arguments: [3, 4] as [UInt32]) func killsDoNotMakeTheFileLonger(kind: UInt32) throws {
        var recipe = VHDRecipe()
        (recipe.kind, recipe.filled, recipe.lowerSectors, recipe.size) = (kind, 0, kind == 4 ? 400 : nil, 4 << 20)
        let made = recipe.make(seed: 1)
        var image = made.image
        var lengths: [Int] = []
        for round in 0..<100 {
            let storage = SimulatedStorage(image)
            let product = try VHDProduct(storage, lower: made.lower, reserve: 4...4, discards: true)
            let driver = HistoryDriver(
                product, storage, content: made.content, clusterBits: 13, discardsZero: false, shape: HistoryShape(),
                seed: 1)
            driver.submit(.write, round * 16..<round * 16 + 1)
            driver.drain()
            #expect(driver.faults.isEmpty)
            image = storage.snapshot
            lengths.append(image.count)
        }
        // A hundred blocks, and what is reserved.
        let stride = (recipe.bitmapSize + recipe.blockSize + 4095) & ~4095
        #expect(image.count <= made.image.count + 112 * stride, "\(lengths.suffix(5))")
    }

    /// A disk that is closed has nothing behind its last block but the footer.
    @Test func aClosedImageEndsWithItsLastBlock() throws {
        var recipe = VHDRecipe()
        recipe.filled = 0
        let made = recipe.make(seed: 2)
        let storage = SimulatedStorage(made.image)
        let product = try VHDProduct(storage, lower: nil, reserve: 8...8, discards: true)
        let driver = HistoryDriver(
            product, storage, content: made.content, clusterBits: 13, discardsZero: false, shape: HistoryShape(),
            seed: 1)
        driver.submit(.write, 0..<1)
        driver.drain()
        product.close()
        let layout = try #require(VHDLayout(storage.snapshot))
        #expect(layout.faults.isEmpty && layout.hasFooter)
        #expect(storage.size == UInt64(layout.entries[0]) * 512 + UInt64(layout.stride) + 512)
    }

    /// All of what a device has is used, and its end is a clean ENOSPC.
    @Test func theEndOfADeviceIsNoSpace() throws {
        var recipe = VHDRecipe()
        (recipe.filled, recipe.slack) = (0, 3 << 13)
        let made = recipe.make(seed: 3)
        let storage = SimulatedStorage(made.image, isGrowable: false)
        let product = try VHDProduct(storage, lower: nil, reserve: 2...2, discards: true)
        let driver = HistoryDriver(
            product, storage, content: made.content, clusterBits: 13, discardsZero: false, shape: HistoryShape(),
            seed: 1)
        Reopening.fill(driver)
        driver.drain()
        #expect(driver.errors > 0 && driver.faults.isEmpty)
        let layout = try #require(VHDLayout(storage.snapshot))
        #expect(layout.faults.isEmpty && layout.hasFooter)
        #expect(layout.entries.contains { $0 != .max })
    }
}
