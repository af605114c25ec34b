// SPDX-License-Identifier: BSD-2-Clause
// An error at every single effect of a history: the image stays whole, what was answered stays, and it is written on.
import Foundation
import TestSupport
import Testing

/// Plays one short history again and again, with an error at another effect each time.
struct FaultCampaign {
    let maker: HistoryMaker
    let seed: UInt64
    /// Reads fail instead of effects.
    var failsReads = false
    /// All later effects fail too, until the image is opened again.
    var lasts = false
    /// Each such state is opened again and written on.
    var reopenEvery = TestLength.isLong ? 3 : 9

    struct Result: CustomStringConvertible {
        var effects = 0
        var faults = 0
        var reopened = 0
        var cuts = 0
        var findings: [String] = []
        var description: String {
            "\(effects) effects, \(faults) faults, \(cuts) cuts after a fault, \(reopened) opened again, "
                + "\(findings.count) bad"
        }
    }

    func run() throws -> Result {
        let (made, setup) = try maker.make(seed)
        var result = Result()
        var number = 0
        // None fails, to learn how many there are.
        var total = try play(made, setup, .max, .inputOutputError, &result)
        while number < total {
            let kinds = failsReads ? [StorageFault.inputOutputError] : StorageFault.allCases
            for kind in kinds where result.findings.count < 6 {
                let tried = try play(made, setup, number, kind, &result)
                total = max(total, tried)
            }
            number += 1
        }
        result.effects = total
        return result
    }

    private func play(
        _ made: MadeImage, _ setup: EngineSetup, _ number: Int, _ kind: StorageFault, _ result: inout Result
    ) throws -> Int {
        let storage = SimulatedStorage(made.image, isGrowable: !made.recipe.isDevice, vice: maker.vice)
        if failsReads { storage.failRead(at: number) } else { storage.fail(at: number, kind, lasts: lasts) }
        guard let engine = try? maker.opener(storage, made.reader, setup) else {
            // It is not opened, and nothing was changed.
            if storage.position > 0 { result.findings.append("seed \(seed): changed and not opened") }
            return storage.readCount
        }
        let driver = HistoryDriver(
            engine, storage, content: made.content.generations, clusterBits: made.recipe.clusterBits,
            discardsZero: HistoryMaker.discardsZero(made.recipe, setup), shape: maker.shape(seed), seed: seed)
        driver.run(maker.steps)
        driver.drain()
        let tried = failsReads ? storage.readCount : storage.tried
        guard tried > number else { return tried }
        result.faults += 1
        let what = failsReads ? "read" : "effect"
        let name = "seed \(seed): \(made.recipe), reserve \(setup.reserve): \(kind) at \(what) \(number)"
        var found = driver.faults + storage.complaints
        if storage.failedSyncs > 0, !engine.hasFailed { found.append("a sync failed, and writing goes on") }
        storage.heal()
        // What a process sees, and what a loss of power leaves.
        let judge = Judge(reader: made.reader, model: driver.model)
        found += judge.faults(storage.snapshot, .kill, position: .max)
        var random = SplitMix64(seed: seed ^ UInt64(number))
        var cut = PowerCut(storage.log)
        let position = min(storage.position, max(0, storage.position - random.below(8)))
        let state = cut.state(at: position, &random)
        found += judge.faults(state, .powerCut, position: position).map { "power cut at \(position): \($0)" }
        result.cuts += 1
        if found.isEmpty && !engine.hasFailed { found += goOn(driver, engine, storage, made, setup) }
        if found.isEmpty, number % reopenEvery == 0 {
            let reopening = Reopening(
                opener: maker.opener, recipe: made.recipe, reader: made.reader, setup: setup,
                seed: seed &+ UInt64(number),
                steps: 10)
            var states = 0
            found += try reopening.faults(storage.snapshot, jury: nil, states: &states)
            result.reopened += 1
        }
        if !found.isEmpty {
            result.findings.append("\(name): \(found.prefix(4).joined(separator: "; "))\n\(storage.log.tail(.max))")
        }
        return tried
    }

    /// The fault is over, and the disk goes on: it is filled and closed.
    private func goOn(
        _ driver: HistoryDriver, _ engine: any WritingEngine, _ storage: SimulatedStorage, _ made: MadeImage,
        _ setup: EngineSetup
    ) -> [String] {
        let errors = driver.errors
        Reopening.fill(driver)
        driver.drain()
        var found = driver.faults
        if driver.errors > errors {
            found.append("\(driver.errors - errors) operations failed after the fault was over")
        }
        guard found.isEmpty, !engine.hasFailed else {
            return found + (engine.hasFailed ? ["failed after the fault"] : [])
        }
        engine.close()
        let end = storage.snapshot
        return Judge(reader: made.reader, model: driver.model).faults(end, .kill, position: .max).map {
            "after closing: \($0)"
        }
    }
}

@Suite(.serialized) struct EngineFaultTests {
    private func maker(steps: Int) -> HistoryMaker {
        var maker = HistoryMaker(opener: ProductEngine.open, steps: steps)
        maker.simplify = { recipe in
            recipe.size = min(recipe.size, 32 << recipe.clusterBits)
            if recipe.clusterBits > 16 { (recipe.clusterBits, recipe.size) = (16, 1 << 20) }
            if let sectors = recipe.lowerSectors { recipe.lowerSectors = min(sectors, recipe.size / 512) }
        }
        return maker
    }

    /// Plays a campaign for each of some seeds; `change` says what fails in it.
    private func play(
        _ name: String, seeds: Int, long: Int, steps: Int, _ change: (inout FaultCampaign) -> Void = { _ in }
    ) throws {
        let first = testSeed(name)
        for seed in first..<first + UInt64(TestLength.isLong ? long : seeds) {
            var campaign = FaultCampaign(maker: maker(steps: steps), seed: seed)
            change(&campaign)
            let result = try campaign.run()
            print("\(name), seed \(seed): \(result)")
            #expect(result.findings.isEmpty, "\(result.findings.first ?? "")")
        }
    }

    /// One error, and then all works again.
    @Test func oneErrorAtEveryEffect() throws { try play("faults", seeds: 2, long: 60, steps: 60) }

    /// From one effect on everything fails: a file system that is full, or gone.
    @Test func everythingFailsFromEveryEffectOn() throws {
        try play("lasting faults", seeds: 1, long: 30, steps: 50) { $0.lasts = true }
    }

    /// One read fails: of a table, of what is copied, of refcounts, or of the guest's own.
    @Test func oneErrorAtEveryRead() throws {
        try play("read faults", seeds: 2, long: 60, steps: 50) { $0.failsReads = true }
    }

    /// Somebody cuts the file off while it is in use: errors, and nothing else is harmed.
    @Test func aFileThatBecomesShorterGivesErrors() throws {
        let first = testSeed("shorter")
        for seed in first..<first + UInt64(TestLength.isLong ? 100 : 6) {
            let (made, setup) = try maker(steps: 0).make(seed)
            let storage = SimulatedStorage(made.image)
            let engine = try ProductEngine.open(storage, made.reader, setup)
            let driver = HistoryDriver(
                engine, storage, content: made.content.generations, clusterBits: made.recipe.clusterBits,
                discardsZero: false, shape: HistoryShape(reads: 0), seed: seed)
            driver.run(40)
            var random = SplitMix64(seed: seed)
            storage.cutOff(random.below(Int(storage.size)))
            driver.run(80)
            driver.drain()
            #expect(driver.faults == [], "seed \(seed): every operation ends once")
            engine.close()
        }
    }

    /// A guest's flush that failed is not followed by a good one: nobody knows what was lost.
    @Test func aFailedFlushIsTheEndOfTheDisk() throws {
        var recipe = ImageRecipe()
        (recipe.clusterBits, recipe.size, recipe.isEmpty) = (12, 256 << 10, true)
        let maker = HistoryMaker(opener: ProductEngine.open, recipe: recipe)
        let (made, setup) = try maker.make(7)
        let storage = SimulatedStorage(made.image)
        let engine = try ProductEngine.open(storage, made.reader, setup)
        let driver = HistoryDriver(
            engine, storage, content: made.content.generations, clusterBits: 12, discardsZero: true,
            shape: HistoryShape(), seed: 7)
        driver.submit(.write, 0..<16)
        driver.drain()
        #expect(driver.errors == 0 && driver.faults.isEmpty)
        storage.fail(at: storage.tried, .inputOutputError)
        driver.flush()
        storage.heal()
        #expect(engine.hasFailed)
        driver.submit(.write, 64..<80)
        driver.drain()
        #expect(driver.errors == 2, "a write after a failed flush is refused")
        driver.submit(.read, 0..<16)
        driver.drain()
        #expect(driver.faults.isEmpty && driver.errors == 2, "reads go on: \(driver.faults)")
    }
}
