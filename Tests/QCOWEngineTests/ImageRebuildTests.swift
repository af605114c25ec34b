// SPDX-License-Identifier: BSD-2-Clause
// Images whose last writer did not close them (lazy_refcounts): their refcounts are written anew before the first change.
import Foundation
import ImageWriting
import QCOW2
import Synchronization
import TestSupport
import Testing

@testable import QCOWEngine

@Suite(.serialized) struct ImageRebuildTests {
    /// QEMU is killed with all of its refcounts in memory. Opening and reading change nothing, the first write mends.
    @Test(arguments: ["cluster_size=4096", "cluster_size=512", "cluster_size=64k,extended_l2=on", "refcount_bits=1"])
    func whatQemuLeftIsMended(_ options: String) throws {
        let folder = try TestFolder()
        try Shell.run(
            """
            cd \(folder.path) && qemu-img create -q -f qcow2 -o lazy_refcounts=on,\(options) image 8M
            qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 5M 3k' -c flush -c 'write -P 3 1M 2M' -c 'sigraise 9' \
            image >/dev/null 2>&1; true
            """)
        let image = try ByteImage(contentsOf: folder.file("image"))
        try #require(image.u64(72) & 1 == 1, "QEMU left it dirty")
        try image.save(folder.file("judge"))
        try Shell.run(
            "cd \(folder.path) && qemu-img check -q -r all -f qcow2 judge >/dev/null 2>&1; qemu-img check -q judge")
        let said = Mutex<[EngineEvent]>([])
        let storage = SimulatedStorage(image)
        let engine = try ImageEngine(storage, below: nil, options: EngineOptions())
        engine.observe { event in said.withLock { $0.append(event) } }
        #expect(perform(.read, 0..<2048, engine).status == 0 && storage.position == 0)
        // As the guest's first write: 4 KiB in the middle of what is there.
        #expect(perform(.write, 16..<24, engine).status == 0)
        #expect(perform(.discard, 2048..<4096, engine).status == 0)
        engine.close()
        #expect(engine.failure == 0)
        guard case .rebuilt(let changes)? = said.withLock({ $0.first }) else {
            Issue.record("the operator was not told: \(said.withLock { $0 })")
            return
        }
        #expect(changes > 0)
        let end = storage.snapshot
        #expect(end.u64(72) & 1 == 0 && end.u64(80) & 1 == 1, "no more dirty, and lazy as it was")
        try end.save(folder.file("image"))
        let pattern = SectorPattern.bytes(first: 16, count: 8, generation: 1)
        try Data(pattern).write(to: URL(fileURLWithPath: folder.file("pattern")))
        try Shell.run(
            """
            cd \(folder.path) && qemu-img check -q -f qcow2 image
            qemu-io -f qcow2 -c 'write -s pattern 8k 4k' -c 'write -z 1M 1M' judge
            qemu-img compare -q -f qcow2 -F qcow2 image judge
            """)
    }

    /// An image with counts and flags that may be anything is mended, and cut off at each of its effects: what is left is mended too.
    @Test func everyMomentOfTheRepairIsWhole() throws {
        let first = testSeed("rebuilding")
        var (images, states, again) = (0, 0, 0)
        for seed in first..<first + UInt64(TestLength.states(12, long: 1500)) {
            var random = SplitMix64(seed: seed)
            var recipe = ImageRecipe.random(&random)
            recipe.version = 3
            recipe.size = min(recipe.size, 64 << min(recipe.clusterBits, 16))
            if let sectors = recipe.lowerSectors { recipe.lowerSectors = min(sectors, recipe.size / 512) }
            var maker = try ImageMaker(recipe, seed: seed)
            let made = try maker.make()
            let image = made.image.copy()
            scramble(image, &random)
            images += 1
            let (storage, driver) = try play(image, made, seed, steps: 20)
            let name = "seed \(seed): \(recipe)"
            try #require(driver.faults.isEmpty && driver.errors == 0, "\(name): \(driver.faults)")
            let judge = Judge(reader: made.reader, model: driver.model)
            try #require(judge.faults(storage.snapshot, .kill, position: .max) == [], "\(name), at the end")
            try #require(StructureCheck.report(storage.snapshot).leaks == 0, "\(name), at the end")
            let count = storage.position
            // The repair is what comes first.
            let positions = (0..<10).map { _ in random.below(random.onceIn(3) ? count + 1 : min(count, 40) + 1) }
                .sorted()
            var (cut, kill) = (PowerCut(storage.log), KillCut(storage.log))
            for position in positions {
                let isKill = random.onceIn(2)
                let state = isKill ? kill.state(at: position) : cut.state(at: position, &random)
                states += 1
                let content = try #require(made.reader.read(state))
                let ending = isKill ? Ending.kill : .powerCut
                let shown = driver.model.faults(of: content, ending, position: position)
                try #require(shown == [], "\(name): \(ending) at \(position)")
                guard ImageLayout(state)?.isDirty == true else {
                    let found = StructureCheck.report(state).corruptions
                    try #require(found == [], "\(name): \(ending) at \(position)\n\(storage.log.tail(position))")
                    continue
                }
                again += 1
                let before = MadeImage(
                    recipe: recipe, image: state, content: content, reader: made.reader, folder: made.folder)
                let (mended, second) = try play(state, before, seed + 1, steps: 5)
                try #require(second.faults.isEmpty && second.errors == 0, "\(name): \(second.faults)")
                let report = StructureCheck.report(mended.snapshot)
                try #require(
                    report.corruptions == [] && report.leaks == 0,
                    "\(name): \(ending) at \(position), mended: \(report)")
            }
            guard random.onceIn(4) else { continue }
            let jury = QemuJury(made.folder)
            try jury.ask(storage.snapshot) { verdict in
                #expect(
                    verdict.corruptions == 0 && verdict.leaks == 0 && verdict.errors == nil, "\(name): QEMU: \(verdict)"
                )
            }
            try jury.decide()
        }
        print("rebuilding: \(images) images, \(states) states, \(again) mended again")
    }

    /// What cannot be mended safely is left alone, with a line: two tables in one place, data in a table.
    @Test func tablesThatOverlapAreNotMended() throws {
        let folder = try TestFolder()
        try Shell.run(
            """
            cd \(folder.path) && qemu-img create -q -f qcow2 -o cluster_size=4096 image 4M
            qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -P 2 3M 64k' image
            """)
        let good = try ByteImage(contentsOf: folder.file("image"))
        let layout = try #require(ImageLayout(good))
        for place in [layout.l1Offset, layout.refcountBlocks[0], layout.l2Offset(layout.l1Offset, 1)] {
            let image = good.copy()
            image.put64(1, at: 72)
            image.put64(UInt64(place) | L2Entry.copied, at: try #require(layout.entryOffset(3)))
            let storage = SimulatedStorage(image)
            let engine = try ImageEngine(storage, below: nil, options: EngineOptions())
            #expect(perform(.write, 0..<8, engine).status == -EIO && engine.failure != 0)
            let end = storage.snapshot
            #expect(end.u64(72) == 3, "dirty still, and corrupt")
            end.put64(1, at: 72)
            #expect(end.isEqual(to: image, 0, image.count) && end.count == image.count)
        }
    }

    private func play(
        _ image: ByteImage, _ made: MadeImage, _ seed: UInt64, steps: Int
    ) throws -> (SimulatedStorage, HistoryDriver) {
        let storage = SimulatedStorage(image, isGrowable: !made.recipe.isDevice)
        var setup = EngineSetup()
        (setup.reserve, setup.isVouched) = (1...4, seed % 2 == 0)
        let engine = try ProductEngine.open(storage, made.reader, setup)
        let driver = HistoryDriver(
            engine, storage, content: made.content.generations, clusterBits: made.recipe.clusterBits,
            discardsZero: HistoryMaker.discardsZero(made.recipe, setup), shape: HistoryShape(), seed: seed,
            firstGeneration: UInt32(5000 + seed % 2 * 5000))
        driver.submit(.write, 0..<1)
        driver.run(steps)
        driver.drain()
        engine.close()
        return (storage, driver)
    }

    /// Counts and flags become anything, and a block of counts may be lost.
    private func scramble(_ image: ByteImage, _ random: inout SplitMix64) {
        guard let layout = ImageLayout(image) else { return }
        image.put64(image.u64(72) | 1, at: 72)
        let blocks = layout.refcountBlocks
        for (index, block) in blocks.enumerated() where block != 0 {
            let bytes = min(layout.clusterSize, max(1, (layout.fileClusters << layout.refcountOrder) / 8 + 1))
            for _ in 0..<1 + random.below(24) {
                image.write([UInt8(truncatingIfNeeded: random.next())], at: block + random.below(bytes))
            }
            // The only one is always there.
            if index > 0, random.onceIn(6) { image.put64(0, at: layout.refcountOffset + index * 8) }
        }
        let copied: UInt64 = 1 << 63
        for cluster in 0..<layout.guestClusters where random.onceIn(8) {
            guard let place = layout.entryOffset(cluster), case .data = layout.describe(image.u64(place)) else {
                continue
            }
            image.put64(image.u64(place) ^ copied, at: place)
        }
        for index in 0..<layout.l1Count where random.onceIn(3) && layout.l2Offset(layout.l1Offset, index) != 0 {
            let place = layout.l1Offset + index * 8
            image.put64(image.u64(place) ^ copied, at: place)
        }
    }
}
