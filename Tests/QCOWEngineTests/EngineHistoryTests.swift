// SPDX-License-Identifier: BSD-2-Clause
// Histories without a crash: what is read, what QEMU reads afterwards, and what both write in turns.
import Foundation
import TestSupport
import Testing

@Suite(.serialized) struct EngineHistoryTests {
    /// A history, closed; QEMU checks and writes on; another one, closed.
    @Test func engineAndQemuWriteInTurns() throws {
        let first = testSeed("histories")
        for seed in first..<first + UInt64(TestLength.states(16, long: 600)) {
            let maker = HistoryMaker(opener: ProductEngine.open, steps: TestLength.isLong ? 500 : 200)
            let (made, setup) = try maker.make(seed)
            let name = "seed \(seed): \(made.recipe), \(setup)"
            let middle = try play(made, made.image, made.content, setup, seed, maker, name)
            guard let (image, content) = middle else { return }
            guard let (written, after) = try writeByQemu(made, image, content, seed) else { return }
            guard let end = try play(made, written, after, setup, seed + 1, maker, name + ", second time") else {
                return
            }
            try judge(made, end.image, end.content, name + ", at the end")
        }
    }

    /// Plays to the end and closes: the image and what it has; nil after a failure.
    private func play(
        _ made: MadeImage, _ image: ByteImage, _ content: DiskContent, _ setup: EngineSetup, _ seed: UInt64,
        _ maker: HistoryMaker, _ name: String
    ) throws -> (image: ByteImage, content: DiskContent)? {
        let storage = SimulatedStorage(image, isGrowable: !made.recipe.isDevice)
        // QEMU may have deflated nothing new, so the reader of the made image is right.
        let engine = try maker.opener(storage, made.reader, setup)
        let driver = HistoryDriver(
            engine, storage, content: content.generations, clusterBits: made.recipe.clusterBits,
            discardsZero: HistoryMaker.discardsZero(made.recipe, setup), shape: maker.shape(seed), seed: seed,
            firstGeneration: UInt32(truncatingIfNeeded: 1 << 16 | (seed & 1) << 20))
        driver.run(maker.steps)
        driver.drain()
        try #require(driver.faults.isEmpty, "\(name): \(driver.faults)\n\(storage.log.tail(.max))")
        #expect(driver.errors == 0 && !engine.hasFailed, "\(name)")
        engine.close()
        let end = storage.snapshot
        let structure = StructureCheck.report(end)
        let judge = Judge(reader: made.reader, model: driver.model)
        let found = judge.faults(end, .kill, position: .max) + storage.complaints
        try #require(found.isEmpty, "\(name): closed: \(found)\n\(storage.log.tail(.max))")
        try #require(structure.leaks == 0 && structure.behindEnd == 0, "\(name): closed: \(structure)")
        guard let read = made.reader.read(end) else { return nil }
        return (end, read)
    }

    /// QEMU says that nothing is wrong, and reads the same.
    private func judge(_ made: MadeImage, _ image: ByteImage, _ content: DiskContent, _ name: String) throws {
        let jury = QemuJury(made.folder)
        try jury.ask(image) { verdict in
            #expect(verdict.corruptions == 0 && verdict.leaks == 0 && verdict.errors == nil, "\(name): \(verdict)")
            #expect(verdict.content?.generations == content.generations, "\(name): QEMU reads something else")
        }
        try jury.decide()
    }

    private func writeByQemu(
        _ made: MadeImage, _ image: ByteImage, _ content: DiskContent, _ seed: UInt64
    ) throws -> (ByteImage, DiskContent)? {
        try judge(made, image, content, "seed \(seed): \(made.recipe), after the first time")
        var random = SplitMix64(seed: seed)
        let path = made.folder.file("turn")
        try image.save(path)
        var commands: [String] = []
        for number in 0..<4 {
            let start = random.below(content.generations.count)
            let end = min(content.generations.count, start + 1 + random.below(64))
            let pattern = made.folder.file("turn\(number)")
            let bytes = SectorPattern.bytes(first: start, count: end - start, generation: UInt32(500 + number))
            try Data(bytes).write(to: URL(fileURLWithPath: pattern))
            let what = random.onceIn(3) ? "discard" : random.onceIn(3) ? "write -z" : "write -s \(pattern)"
            commands.append("-c '\(what) \(start * 512) \((end - start) * 512)'")
        }
        try Shell.run("qemu-io -f qcow2 -d unmap \(commands.joined(separator: " ")) \(path)")
        let written = try ByteImage(contentsOf: path)
        guard let after = made.reader.read(written) else { return nil }
        try judge(made, written, after, "seed \(seed): \(made.recipe), after QEMU's turn")
        return (written, after)
    }

    /// Several threads write into the same clusters, while one thread commits.
    @Test func queuesOnThreadsShareClusters() throws {
        let first = testSeed("threads")
        for seed in first..<first + UInt64(TestLength.isLong ? 200 : 8) {
            var random = SplitMix64(seed: seed)
            let recipe = ImageRecipe.random(&random)
            var maker = try ImageMaker(recipe, seed: seed)
            let made = try maker.make()
            let found = try ThreadedHistory(made, opener: ProductEngine.open, seed: seed).run(
                operations: TestLength.isLong ? 2000 : 400)
            try #require(found.isEmpty, "seed \(seed): \(recipe): \(found)")
        }
    }
}
