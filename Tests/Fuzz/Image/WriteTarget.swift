// SPDX-License-Identifier: BSD-2-Clause
// An image that QEMU made, changed as the input says, and a guest that writes to it, beside a model.
import Driver
import Foundation
import TestSupport

/// QEMU makes them once, before the first input: 512-byte and larger clusters, snapshots, deflated clusters, subclusters.
private let images: [MadeImage] = {
    let maker = HostileImages()
    return (0..<24 as Range<UInt64>).compactMap { seed in
        let made = try? maker.image(
            seed, hasSnapshot: seed % 3 == 0, needsBitmaps: seed % 5 == 4, needsDeflated: seed % 4 == 1)
        // Large ones take most of a run to be copied.
        return made.flatMap { $0.image.count <= 1 << 20 ? $0 : nil }
    }
}()

/// To be called before the first run: what makes images draws from seeds.
func makeImages() {
    guard images.count < 8 else { return }
    say("qemu-img and qemu-io made \(images.count) images")
    exit(1)
}

/// One image, its changes, and its guest.
func writeImage() throws -> [String] {
    var random = SplitMix64(seed: 0)
    let made = random.pick(images)
    let image = made.image.copy()
    let changes = random.pick([0, 1, 1, 2, 3, 5])
    var concerned: Set<Int> = []
    for _ in 0..<changes {
        if random.onceIn(3) {
            // A word of any table, or of the header.
            let offset = random.below(image.count / 8) * 8
            image.put64(
                random.onceIn(2) ? random.next() : image.u64(offset) ^ 1 << UInt64(random.below(64)), at: offset)
        } else if let touched = random.pick(ImageMutation.allCases).apply(image, &random) {
            concerned.formUnion(touched)
        }
    }
    return changes == 0 ? writeSound(made, &random) : writeChanged(made, image, concerned, &random)
}

/// All that was written is there, and the tables agree.
private func writeSound(_ made: MadeImage, _ random: inout SplitMix64) -> [String] {
    let setup = HistoryMaker.setup(&random)
    let storage = SimulatedStorage(made.image, isGrowable: !made.recipe.isDevice, isRecording: false)
    if random.onceIn(4) { storage.fail(at: random.below(60), random.pick(StorageFault.allCases)) }
    guard let engine = try? ProductEngine.open(storage, made.reader, setup) else { return ["a sound image is refused"] }
    let driver = HistoryDriver(
        engine, storage, content: made.content.generations, clusterBits: made.recipe.clusterBits,
        discardsZero: HistoryMaker.discardsZero(made.recipe, setup), shape: random.pick(HistoryShape.habits), seed: 0)
    while !FuzzInput.isOver, driver.faults.isEmpty { driver.run(1) }
    driver.drain()
    let isWhole = driver.errors == 0 && !engine.hasFailed
    engine.close()
    let judge = Judge(reader: made.reader, model: driver.model)
    var faults = driver.faults + storage.complaints + judge.faults(storage.snapshot, .kill, position: .max)
    // Clusters that could not be given back are lost until a scan, and nobody waits for that.
    if isWhole && !storage.faultStruck {
        let structure = StructureCheck.report(storage.snapshot)
        if structure.leaks + structure.behindEnd > 0 { faults.append("closed: \(structure)") }
    }
    return faults.isEmpty ? [] : ["\(made.recipe)"] + faults
}

/// Nothing is written but what is the guest's, and tables beside those that lie.
private func writeChanged(
    _ made: MadeImage, _ image: ByteImage, _ concerned: Set<Int>, _ random: inout SplitMix64
) -> [String] {
    var state = image
    for _ in 0..<2 {
        let storage = SimulatedStorage(state)
        guard let engine = try? ProductEngine.open(storage, made.reader, HistoryMaker.setup(&random)) else { return [] }
        var shape = HistoryShape()
        (shape.reads, shape.discards, shape.zeroes) = (0, 20, 10)
        let sectors = Int(min(engine.size / 512, UInt64(made.content.generations.count)))
        guard sectors > 0 else { return [] }
        let driver = HistoryDriver(
            engine, storage, content: Array(made.content.generations.prefix(sectors)),
            clusterBits: made.recipe.clusterBits, discardsZero: false, shape: shape, seed: 0)
        let clusterSectors = made.recipe.clusterSize / sectorSize
        for cluster in concerned.sorted().prefix(4) where cluster * clusterSectors < sectors {
            let start = cluster * clusterSectors
            driver.submit(
                random.pick([.write, .discard, .zeroes(mayFree: true)]), start..<min(start + clusterSectors, sectors))
        }
        driver.run(80)
        driver.drain()
        engine.close()
        state = storage.snapshot
        let parts = ProtectedParts(original: made.image, before: image)
        let found = driver.faults + storage.complaints + (parts?.faults(state, storage.log) ?? [])
        if !found.isEmpty { return ["\(made.recipe), changed: \(image.differences(from: made.image))"] + found }
    }
    return []
}
