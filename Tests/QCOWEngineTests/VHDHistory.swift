// SPDX-License-Identifier: BSD-2-Clause
// Histories of guests on VHDs, judged after each end.
import Foundation
import ImageCore
import ImageWriting
import TestSupport
import VHD
import VHDEngine

/// `VHDEngine` behind the tests' protocol.
final class VHDProduct: WritingEngine, @unchecked Sendable {
    let engine: VHDEngine

    init(_ storage: SimulatedStorage, lower: ByteImage?, reserve: ClosedRange<Int>, discards: Bool) throws {
        var options = VHDOptions()
        (options.reserve, options.discards, options.cacheBytes) = (reserve, discards, 4096)
        engine = try VHDEngine(storage, below: lower.map(SimulatedLayer.init), options: options)
    }

    var size: UInt64 { engine.size }
    var needsCommit: Bool { engine.pending != .nothing }
    var hasFailed: Bool { engine.failure != 0 }
    func commit() -> Bool { engine.commit() }
    func close() { engine.close() }
    func grow(to size: UInt64) throws { throw SimulationError("a VHD does not grow") }
    func fail(_ code: Int32) { engine.fail(code) }
    func begin() -> () -> Void { {} }

    func perform(_ operation: any EngineOperation) -> OperationProgress {
        switch engine.perform(operation) {
        case .finished: .finished
        case .waiting: .waiting
        case .committing: .committing
        }
    }

    func placeOfRead(_ offset: UInt64, _ length: UInt64) -> DataPlace { place(engine.placeOfRead(offset, length)) }
    func placeOfWrite(_ offset: UInt64, _ length: UInt64) -> DataPlace { place(engine.placeOfWrite(offset, length)) }

    private func place(_ place: Place) -> DataPlace {
        switch place {
        case .file(let offset): .file(offset)
        case .zeroes: .zeroes
        case .engine: .engine
        }
    }
}

/// A history that was played on a VHD.
final class VHDHistory {
    let made: MadeVHD
    let seed: UInt64
    let storage: SimulatedStorage
    let driver: HistoryDriver
    private let reserve: ClosedRange<Int>
    private let discards: Bool

    var name: String { "seed \(seed): \(made.recipe), reserve \(reserve)" }

    /// Makes an image and opens it.
    init(_ seed: UInt64, recipe: VHDRecipe? = nil, image: ByteImage? = nil, vice: StorageVice = StorageVice()) throws {
        var random = SplitMix64(seed: seed)
        let kind = VHDRecipe.random(&random)
        made = (recipe ?? kind).make(seed: seed)
        (self.seed, reserve, discards) = (seed, random.pick([1...1, 1...4, 2...16]), !random.onceIn(5))
        storage = SimulatedStorage(image ?? made.image, isGrowable: !made.recipe.isDevice, vice: vice)
        let product = try VHDProduct(storage, lower: made.lower, reserve: reserve, discards: discards)
        driver = HistoryDriver(
            product, storage, content: made.content, clusterBits: made.recipe.kind == 2 ? 9 : made.recipe.blockBits,
            discardsZero: discards && made.recipe.kind != 4,
            shape: HistoryShape.habits[Int(seed / 3 % UInt64(HistoryShape.habits.count))], seed: seed)
    }

    /// Plays it; some end in the middle of everything. What went wrong meanwhile.
    func play(_ steps: Int) -> [String] {
        driver.run(steps)
        if seed % 3 != 0 { driver.drain() }
        var faults = driver.faults + storage.complaints
        if driver.engine.hasFailed { faults.append("the engine failed") }
        if driver.errors > 0 { faults.append("\(driver.errors) operations failed") }
        return faults + VHDLayout.foreignChanges(made.image, storage.snapshot, isDevice: made.recipe.isDevice)
    }

    /// What is wrong with a file after an end.
    func faults(_ image: ByteImage, _ ending: Ending, position: Int) -> [String] {
        guard let layout = VHDLayout(image) else { return ["there is no footer"] }
        return layout.faults + driver.model.faults(of: layout.content(above: made.lower), ending, position: position)
    }

    /// Opens what an end left, writes on, fills the disk, closes it: what is wrong then.
    func reopened(_ image: ByteImage) throws -> [String] {
        guard let layout = VHDLayout(image) else { return ["there is no footer"] }
        let storage = SimulatedStorage(image, isGrowable: !made.recipe.isDevice)
        let product = try VHDProduct(storage, lower: made.lower, reserve: reserve, discards: discards)
        let next = HistoryDriver(
            product, storage, content: layout.content(above: made.lower).generations,
            clusterBits: made.recipe.kind == 2 ? 9 : made.recipe.blockBits,
            discardsZero: discards && made.recipe.kind != 4, shape: HistoryShape(), seed: seed, firstGeneration: 1 << 20
        )
        next.run(20)
        Reopening.fill(next)
        next.drain()
        next.flush()
        var found = next.faults + storage.complaints
        if product.hasFailed || next.errors > 0 { found.append("\(next.errors) errors") }
        product.close()
        let end = storage.snapshot
        guard let closed = VHDLayout(end) else { return found + ["closed without a footer"] }
        found += closed.faults
        if !closed.hasFooter { found.append("closed without a footer at its end") }
        found += next.model.faults(of: closed.content(above: made.lower), .kill, position: .max)
        found += VHDLayout.foreignChanges(image, end, isDevice: made.recipe.isDevice)
        return found.isEmpty ? [] : found + [storage.log.tail(.max)]
    }

    func words(_ what: String, _ position: Int, _ faults: [String]) -> String {
        "\(name): \(what) at \(position) of \(storage.position): \(faults.prefix(4).joined(separator: "; "))\n"
            + storage.log.tail(position)
    }
}

/// Many histories, each cut at many places.
struct VHDCampaign {
    let ending: Ending
    var order = OrderVice.none
    var vice = StorageVice()
    var recipe: VHDRecipe?
    let states: Int

    /// The first findings; it ends with one.
    func run(firstSeed: UInt64) throws -> [String] {
        var (judged, seed) = (0, firstSeed)
        while judged < states {
            let history = try VHDHistory(seed, recipe: recipe, vice: vice)
            let live = history.play(160)
            if !live.isEmpty { return [history.words("while it ran", .max, live)] }
            var random = SplitMix64(seed: seed ^ 0xc075)
            let log = history.storage.log
            var (power, kill) = (PowerCut(log, vice: order), KillCut(log, vice: order))
            for position in (0..<min(40, states - judged)).map({ _ in random.below(log.effects.count + 1) }).sorted() {
                let image = ending == .kill ? kill.state(at: position, &random) : power.state(at: position, &random)
                judged += 1
                var found = history.faults(image, ending, position: position)
                if found.isEmpty, random.onceIn(12) { found = try history.reopened(image.copy()) }
                if !found.isEmpty { return [history.words("\(ending)", position, found)] }
            }
            seed += 1
        }
        return []
    }
}
