// SPDX-License-Identifier: BSD-2-Clause
// One image, one engine, one driver: the table at which named cases are played by hand.
import Foundation
import TestSupport

/// An engine on a simulated file, and what was on it before.
final class EngineBench {
    let made: MadeImage
    let storage: SimulatedStorage
    let engine: any WritingEngine
    let driver: HistoryDriver

    init(
        _ recipe: ImageRecipe, seed: UInt64 = 1, setup: EngineSetup = EngineSetup(),
        shape: HistoryShape = HistoryShape(),
        isGrowable: Bool = true, size: Int? = nil, change: (ByteImage) throws -> Void = { _ in }
    ) throws {
        var maker = try ImageMaker(recipe, seed: seed)
        made = try maker.make()
        let image = made.image.copy()
        if let size { image.resize(size) }
        try change(image)
        storage = SimulatedStorage(image, isGrowable: isGrowable)
        engine = try ProductEngine.open(storage, made.reader, setup)
        driver = HistoryDriver(
            engine, storage, content: made.content.generations, clusterBits: recipe.clusterBits,
            discardsZero: HistoryMaker.discardsZero(recipe, setup), shape: shape, seed: seed)
    }

    /// What is wrong now with the file, the reads, and the calls.
    func faults() -> [String] {
        let judge = Judge(reader: made.reader, model: driver.model)
        return driver.faults + storage.complaints + judge.faults(storage.snapshot, .kill, position: .max)
    }

    /// Closes it; nothing may leak then.
    func close() -> [String] {
        driver.drain()
        engine.close()
        let structure = StructureCheck.report(storage.snapshot)
        var found = faults()
        if structure.leaks + structure.behindEnd > 0 { found.append("closed: \(structure)") }
        return found
    }

    /// QEMU's word about the file as it is.
    func qemuFaults() throws -> [String] {
        let jury = QemuJury(made.folder)
        let image = storage.snapshot
        var found: [String] = []
        let judge = Judge(reader: made.reader, model: driver.model)
        try jury.ask(image) {
            found = judge.faults($0, structure: StructureCheck.report(image), .kill, position: .max)
        }
        try jury.decide()
        return found
    }
}
