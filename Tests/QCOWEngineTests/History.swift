// SPDX-License-Identifier: BSD-2-Clause
// One image and what a guest did with it: made from a seed, judged at any moment.
import Foundation
import TestSupport

/// A history that was played to its end, without closing the engine.
struct History: @unchecked Sendable {
    let made: MadeImage
    let setup: EngineSetup
    let seed: UInt64
    let log: EffectLog
    let model: SectorModel
    /// What went wrong while it was played.
    let liveFaults: [String]
    /// Operations that failed.
    let errors: Int

    /// For the words of a fault.
    var name: String {
        "seed \(seed): \(made.recipe), reserve \(setup.reserve), cache \(setup.cacheBytes)\(setup.isVouched ? ", vouched" : "")\(setup.readsAhead ? ", ahead" : "")"
    }

    /// What deserves a line: the first words, where, and the log's tail.
    func words(_ what: String, _ position: Int, _ faults: [String]) -> String {
        "\(name): \(what) after \(position) of \(log.effects.count) effects: \(faults.prefix(4).joined(separator: "; "))\n"
            + log.tail(position)
    }
}

/// Makes and plays histories with an engine.
struct HistoryMaker: Sendable {
    let opener: EngineOpener
    /// The habits of the guest; nil: by chance.
    var shape: HistoryShape?
    var vice = StorageVice()
    var steps = 160
    /// The kind of image; nil: by chance.
    var recipe: ImageRecipe?
    /// Kinds that an engine does not know are made simpler.
    var simplify: (@Sendable (inout ImageRecipe) -> Void)?

    /// The settings of a seed.
    static func setup(_ random: inout SplitMix64) -> EngineSetup {
        var setup = EngineSetup()
        setup.cacheBytes = random.pick([4096, 16384, 1 << 20] as [UInt64])
        setup.discards = !random.onceIn(5)
        setup.reserve = random.pick([1...1, 1...4, 2...16, 8...64])
        setup.isVouched = random.onceIn(2)
        setup.readsAhead = random.onceIn(2)
        return setup
    }

    /// Whole clusters that were discarded read as zeroes.
    static func discardsZero(_ recipe: ImageRecipe, _ setup: EngineSetup) -> Bool {
        setup.discards && (recipe.version >= 3 || recipe.lowerSectors == nil)
    }

    /// The habits of a seed's guest.
    func shape(_ seed: UInt64) -> HistoryShape {
        shape ?? HistoryShape.habits[Int(truncatingIfNeeded: seed / 3 % UInt64(HistoryShape.habits.count))]
    }

    /// The image of a seed.
    func make(_ seed: UInt64) throws -> (MadeImage, EngineSetup) {
        var random = SplitMix64(seed: seed)
        var kind = recipe ?? ImageRecipe.random(&random)
        simplify?(&kind)
        var maker = try ImageMaker(kind, seed: seed)
        return (try maker.make(), Self.setup(&random))
    }

    /// Plays the history of a seed.
    func play(_ seed: UInt64) throws -> History {
        let (made, setup) = try make(seed)
        return try play(seed, made, setup)
    }

    /// The same on an image that is there.
    func play(_ seed: UInt64, _ made: MadeImage, _ setup: EngineSetup) throws -> History {
        let storage = SimulatedStorage(made.image, isGrowable: !made.recipe.isDevice, vice: vice)
        let engine = try opener(storage, made.reader, setup)
        let driver = HistoryDriver(
            engine, storage, content: made.content.generations, clusterBits: made.recipe.clusterBits,
            discardsZero: Self.discardsZero(made.recipe, setup), shape: shape(seed), seed: seed)
        driver.run(steps)
        // Some end in the middle of everything.
        if seed % 3 != 0 { driver.drain() }
        var faults = driver.faults
        if engine.hasFailed { faults.append("the engine failed") }
        if driver.errors > 0 { faults.append("\(driver.errors) operations failed") }
        faults += storage.complaints
        return History(
            made: made, setup: setup, seed: seed, log: storage.log, model: driver.model, liveFaults: faults,
            errors: driver.errors)
    }
}

/// Judges what is left of an image.
struct Judge {
    let reader: ImageContent
    let model: SectorModel

    init(_ history: History) { (reader, model) = (history.made.reader, history.model) }

    init(reader: ImageContent, model: SectorModel) { (self.reader, self.model) = (reader, model) }

    /// What is wrong with a file after an end at a position of the log.
    func faults(_ image: ByteImage, _ ending: Ending, position: Int) -> [String] {
        let structure = StructureCheck.report(image)
        guard let content = reader.read(image) else { return structure.corruptions }
        return structure.corruptions + model.faults(of: content, ending, position: position)
    }

    /// What QEMU finds wrong, and where it differs from the tests' own judges.
    func faults(
        _ verdict: QemuJury.Verdict, structure: StructureReport, _ ending: Ending, position: Int
    ) -> [String] {
        var found: [String] = []
        if let errors = verdict.errors { found.append(errors) }
        if verdict.corruptions > 0 { found.append("qemu-img check: \(verdict.corruptions) corruptions") }
        if let content = verdict.content { found += model.faults(of: content, ending, position: position) }
        if structure.corruptions.isEmpty, verdict.corruptions == 0, structure.leaks != verdict.leaks {
            found.append("the tests' check finds \(structure.leaks) leaks and QEMU \(verdict.leaks)")
        }
        return found
    }
}
