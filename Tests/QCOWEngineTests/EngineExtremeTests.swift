// SPDX-License-Identifier: BSD-2-Clause
// Guests and images at the edge of what there can be.
import Foundation
import QCOWEngine
import Synchronization
import TestSupport
import Testing

@Suite(.serialized) struct EngineExtremeTests {
    /// A guest gives everything up in steps of one sector, again and again.
    @Test func everythingIsDiscardedInSectors() throws {
        var recipe = ImageRecipe()
        (recipe.clusterBits, recipe.size, recipe.lowerSectors) = (12, 512 << 10, 900)
        let bench = try EngineBench(recipe, seed: testSeed("discards"))
        for _ in 0..<2 {
            Reopening.fill(bench.driver)
            for sector in 0..<bench.driver.model.sectors {
                bench.driver.submit(.discard, sector..<sector + 1)
                if sector % 16 == 0 { bench.driver.run(2) }
            }
            bench.driver.drain()
            try #require(bench.faults() == [])
        }
        #expect(bench.driver.errors == 0)
        #expect(bench.close() == [])
    }

    /// 2 PiB of disk: the first and the last sectors are written, and the tables stay small.
    @Test func aVeryLargeDiskIsWrittenAtItsEnds() throws {
        let folder = try TestFolder()
        let size: UInt64 = 2 << 50
        try Shell.run("cd \(folder.path) && qemu-img create -q -f qcow2 -o cluster_size=2M image \(size)")
        let storage = SimulatedStorage(try ByteImage(contentsOf: folder.file("image")), isRecording: false)
        let reader = ImageContent(of: ByteImage(), content: DiskContent(sectors: 0), lower: nil)
        var setup = EngineSetup()
        setup.reserve = 1...2
        let engine = try ProductEngine.open(storage, reader, setup)
        let last = Int(size / 512)
        for sectors in [0..<8, last - 8..<last, last / 2..<last / 2 + 8] {
            let operation = SimulatedOperation(
                .write, sectors: sectors, generation: 5, number: 0, onFinish: { _ in }, onResume: { _ in })
            try perform(operation, engine)
            let read = SimulatedOperation(
                .read, sectors: sectors, generation: 0, number: 0, onFinish: { _ in }, onResume: { _ in })
            try perform(read, engine)
            #expect(read.data == operation.data)
        }
        let everything = SimulatedOperation(
            .discard, sectors: 0..<last, generation: 0, number: 0, onFinish: { _ in }, onResume: { _ in })
        try perform(everything, engine)
        engine.close()
        try storage.snapshot.save(folder.file("image"))
        try Shell.run("qemu-img check -q -f qcow2 \(folder.file("image"))")
    }

    /// Whoever is called again and again, as the committer under a guest that writes, costs the same each time. A closure that a
    /// generic holds grew by a wrapping at each look, and ended the process after some 130,000.
    @Test func theCommitterIsCalledAsOftenAsOneLikes() throws {
        let folder = try TestFolder()
        try Shell.run("cd \(folder.path) && qemu-img create -q -f qcow2 image 8M")
        let storage = SimulatedStorage(try ByteImage(contentsOf: folder.file("image")), isRecording: false)
        var options = EngineOptions()
        options.isVouched = true
        let engine = try ImageEngine(storage, below: nil, options: options)
        let calls = Counter()
        engine.wakeCommitter { calls.add() }
        let write = SimulatedOperation(
            .write, sectors: 0..<8, generation: 1, number: 0, onFinish: { _ in }, onResume: { _ in })
        #expect(engine.perform(write) == .finished)
        // More than is reserved: each attempt asks for more.
        for _ in 0..<300_000 { #expect(engine.placeOfWrite(1 << 20, 4 << 20) == .engine) }
        #expect(calls.count >= 300_000)
        engine.close()
    }

    private func perform(_ operation: SimulatedOperation, _ engine: any WritingEngine) throws {
        operation.run(in: engine)
        try #require(operation.finishes == 1 && operation.status == 0, "\(operation.kind): \(operation.status)")
    }
}

/// A number that any thread may raise.
private final class Counter: Sendable {
    private let value = Atomic<Int>(0)
    var count: Int { value.load(ordering: .relaxed) }
    func add() { value.wrappingAdd(1, ordering: .relaxed) }
}
