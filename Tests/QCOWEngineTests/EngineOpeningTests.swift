// SPDX-License-Identifier: BSD-2-Clause
// What opening an image for writing does to it, and which images are not opened.
import Foundation
import ImageCore
import QCOWEngine
import TestSupport
import Testing

@Suite(.serialized) struct EngineOpeningTests {
    private func recipe(_ change: (inout ImageRecipe) -> Void = { _ in }) -> ImageRecipe {
        var recipe = ImageRecipe()
        (recipe.clusterBits, recipe.size) = (12, 512 << 10)
        change(&recipe)
        return recipe
    }

    /// An image that QEMU made with more options than the recipes have.
    private func image(_ folder: TestFolder, _ commands: String) throws -> ByteImage {
        try Shell.run("cd \(folder.path) && \(commands)")
        return try ByteImage(contentsOf: folder.file("image"))
    }

    private let noLayers = ImageContent(of: ByteImage(), content: DiskContent(sectors: 0), lower: nil)

    private func refusal(_ image: ByteImage) -> ImageError? {
        do {
            _ = try ProductEngine.open(SimulatedStorage(image), noLayers, EngineSetup())
            return nil
        } catch { return error as? ImageError }
    }

    @Test func openingReadingAndClosingChangesNothing() throws {
        for change: (inout ImageRecipe) -> Void in [
            { _ in }, { $0.hasSnapshot = true }, { $0.version = 2 }, { $0.lowerSectors = 700 },
            { $0.isPreallocated = true },
        ] {
            var shape = HistoryShape()
            (shape.reads, shape.flushes) = (90, 10)
            var setup = EngineSetup()
            setup.followsUncleanEnd = true
            let bench = try EngineBench(recipe(change), setup: setup, shape: shape)
            bench.driver.run(100)
            #expect(bench.close() == [])
            let changes = bench.storage.log.effects.filter { !$0.isSync }
            #expect(changes.isEmpty, "\(changes.map(\.description))")
        }
    }

    /// A bitmap that nobody keeps up would make the next backup silently wrong.
    @Test func bitsOfUnknownKeepersAreClearedBeforeTheFirstWrite() throws {
        let folder = try TestFolder()
        let image = try image(
            folder, "qemu-img create -q -f qcow2 -o cluster_size=4096 image 512k && qemu-img bitmap --add image b")
        try #require(image.u64(88) != 0, "QEMU sets an autoclear bit for bitmaps")
        let storage = SimulatedStorage(image)
        let engine = try ProductEngine.open(storage, noLayers, EngineSetup())
        let driver = HistoryDriver(
            engine, storage, content: DiskContent(sectors: 1024).generations, clusterBits: 12, discardsZero: true,
            shape: HistoryShape(), seed: 1)
        driver.submit(.write, 0..<64)
        driver.drain()
        // The scan before it may sync, which changes nothing.
        let effects = Array(storage.log.effects.drop { $0.isSync })
        guard case .write(let offset, let bytes)? = effects.first, effects.count > 1 else {
            Issue.record("the first change is \(effects.first?.description ?? "none")")
            return
        }
        #expect(offset <= 88 && offset + bytes.count >= 96 && effects[1].isSync, "cleared and synced before all else")
        #expect(storage.snapshot.u64(88) == 0)
        engine.close()
        let end = storage.snapshot
        let jury = QemuJury(folder)
        try jury.ask(end) { verdict in
            #expect(verdict.corruptions == 0 && verdict.errors == nil)
            #expect(verdict.content?.generations.prefix(64).allSatisfy { $0 == driver.nextGeneration - 1 } == true)
        }
        try jury.decide()
    }

    @Test func damagedAndForeignImagesAreRefusedUnchanged() throws {
        let folder = try TestFolder()
        let good = try image(folder, "qemu-img create -q -f qcow2 -o cluster_size=4096 image 512k")
        let bits: [(UInt64, String)] = [(2, "corrupt"), (1 << 40, "unknown")]
        for (bit, name) in bits {
            let image = good.copy()
            image.put64(bit, at: 72)
            let refused = refusal(image)
            #expect(refused != nil, "\(name)")
            #expect(refused?.message.isEmpty == false, "\(name): the operator gets a reason")
        }
        let encrypted = good.copy()
        encrypted.put32(1, at: 32)
        #expect(refusal(encrypted) != nil)
        let first = good.copy()
        first.put32(1, at: 4)
        #expect(refusal(first) != nil, "version 1")
    }

    /// A flag of the header that another program set stays as it was.
    @Test func compatibleBitsStay() throws {
        let folder = try TestFolder()
        let image = try image(
            folder, "qemu-img create -q -f qcow2 -o cluster_size=4096,lazy_refcounts=on image 512k")
        try #require(image.u64(80) == 1)
        let storage = SimulatedStorage(image)
        let engine = try ProductEngine.open(storage, noLayers, EngineSetup())
        let driver = HistoryDriver(
            engine, storage, content: DiskContent(sectors: 1024).generations, clusterBits: 12, discardsZero: true,
            shape: HistoryShape(), seed: 3)
        driver.run(120)
        driver.drain()
        #expect(driver.faults == [])
        engine.close()
        #expect(storage.snapshot.u64(80) == 1 && storage.snapshot.u64(72) == 0)
    }
}
