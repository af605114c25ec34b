// SPDX-License-Identifier: BSD-2-Clause
// An image that a crash left is opened again and used until every free cluster was taken.
import TestSupport

/// Opens an image after a crash, writes on, fills the disk, closes it, and looks whether all is well.
struct Reopening {
    let opener: EngineOpener
    let recipe: ImageRecipe
    let reader: ImageContent
    let setup: EngineSetup
    let seed: UInt64
    /// Also its own log is cut.
    var cuts = 0
    var steps = 30

    /// What went wrong. States that were judged are added to `states`; closed images go to the jury.
    func faults(_ image: ByteImage, jury: QemuJury?, states: inout Int) throws -> [String] {
        guard let content = reader.read(image) else { return ["there is no image to open again"] }
        let storage = SimulatedStorage(image, isGrowable: !recipe.isDevice)
        var setup = setup
        setup.followsUncleanEnd = true
        let engine = try opener(storage, reader, setup)
        let driver = HistoryDriver(
            engine, storage, content: content.generations, clusterBits: recipe.clusterBits,
            discardsZero: HistoryMaker.discardsZero(recipe, setup), shape: HistoryShape(), seed: seed,
            firstGeneration: 1 << 20)
        driver.run(steps)
        // Each free cluster is used once: what somebody left in it would show.
        Self.fill(driver)
        driver.drain()
        driver.flush()
        if !driver.faults.isEmpty || engine.hasFailed || driver.errors > 0 {
            return driver.faults + [
                "opened again: failed \(engine.hasFailed), errors \(driver.errors)\n\(storage.log.tail(.max))"
            ]
        }
        engine.close()
        let end = storage.snapshot
        let judge = Judge(reader: reader, model: driver.model)
        var found = judge.faults(end, .kill, position: .max)
        let structure = StructureCheck.report(end)
        // What a crash left of a cluster that a snapshot shares is counted once too often, which costs nothing more.
        // What was counted too often, and changed while it was looked at, is mended by the next scan.
        if structure.leaks + structure.behindEnd > StructureCheck.report(image).overcounted {
            found.append("closed: \(structure)")
        } else if structure.leaks + structure.behindEnd > 0 {
            found += try mended(end, setup)
        }
        states += 1
        var random = SplitMix64(seed: seed)
        var cut = PowerCut(storage.log)
        for _ in 0..<cuts where found.isEmpty {
            let position = random.below(storage.position + 1)
            cut = PowerCut(storage.log)
            found += judge.faults(cut.state(at: position, &random), .powerCut, position: position)
            states += 1
        }
        found += storage.complaints
        if !found.isEmpty { found.append("opened again:\n\(storage.log.tail(.max))") }
        try jury?.ask(end) { verdict in
            let late = judge.faults(verdict, structure: structure, .kill, position: .max)
            if !late.isEmpty { JuryFindings.shared.add("seed \(seed): closed image: \(late)") }
        }
        return found
    }

    /// One more scan of a quiet disk mends all counts.
    private func mended(_ image: ByteImage, _ setup: EngineSetup) throws -> [String] {
        let storage = SimulatedStorage(image, isGrowable: !recipe.isDevice)
        let engine = try opener(storage, reader, setup)
        var rounds = 0
        while engine.needsCommit, rounds < 20_000 {
            _ = engine.commit()
            rounds += 1
        }
        engine.close()
        let structure = StructureCheck.report(storage.snapshot)
        guard structure.leaks + structure.behindEnd > 0 || !structure.corruptions.isEmpty else { return [] }
        return ["closed, scanned again and closed: \(structure)"]
    }

    /// Writes all of the disk in pieces.
    static func fill(_ driver: HistoryDriver) {
        let piece = max(1, min(driver.model.sectors / 16, 128))
        var first = 0
        while first < driver.model.sectors, driver.faults.isEmpty {
            driver.submit(.write, first..<min(first + piece, driver.model.sectors))
            driver.run(2)
            first += piece
        }
    }
}

/// What QEMU found later, when a batch of states was judged.
final class JuryFindings: @unchecked Sendable {
    static let shared = JuryFindings()
    private var found: [String] = []

    func add(_ words: String) { found.append(words) }

    /// All since the last call.
    func take() -> [String] {
        defer { found = [] }
        return found
    }
}
