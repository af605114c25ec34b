// SPDX-License-Identifier: BSD-2-Clause
// Hostile images, opened for writing: whatever their tables say, no table is overwritten with data, and a snapshot keeps its own.
import Foundation
import TestSupport
import Testing

/// What must not change in an image whatever a guest writes into it.
struct ProtectedParts {
    private let before: ByteImage
    private let layout: ImageLayout
    /// Bytes that must stay as they are.
    private var fixed: [Range<Int>] = []
    /// Clusters that are tables, before and after.
    private var tables: Set<Int> = []

    /// `original` is the image before somebody changed it, `before` the one that was opened.
    init?(original: ByteImage, before: ByteImage) {
        guard let layout = ImageLayout(original) else { return nil }
        (self.before, self.layout) = (before, layout)
        // The fields that may change: the refcount table, feature bits.
        fixed = [0..<48, 60..<72, 80..<88]
        if layout.snapshotCount > 0, let end = layout.snapshots.last?.end {
            fixed.append(layout.snapshotOffset..<end)
            for snapshot in layout.snapshots {
                fixed.append(snapshot.l1Offset..<snapshot.l1Offset + snapshot.l1Count * 8)
            }
        }
        // A table that nothing refers to any more may be taken.
        tables = Self.tables(layout).intersection(ImageLayout(before).map(Self.tables) ?? [])
        let still = ImageLayout(before).map(Self.snapshotData) ?? []
        for offset in Self.snapshotData(layout).intersection(still).sorted() {
            fixed.append(offset..<offset + layout.clusterSize)
        }
    }

    private static func tables(_ layout: ImageLayout) -> Set<Int> {
        var found: Set<Int> = [0]
        func add(_ offset: Int, _ length: Int) {
            for place in stride(from: offset, to: offset + length, by: layout.clusterSize) {
                found.insert(place >> layout.clusterBits)
            }
        }
        add(layout.refcountOffset, layout.refcountClusters * layout.clusterSize)
        for block in layout.refcountBlocks where block != 0 { add(block, 1) }
        for l1 in layout.l1Tables {
            add(l1.offset, l1.count * 8)
            for index in 0..<l1.count where layout.l2Offset(l1.offset, index) != 0 {
                add(layout.l2Offset(l1.offset, index), 1)
            }
        }
        return found
    }

    /// Clusters with data of snapshots.
    private static func snapshotData(_ layout: ImageLayout) -> Set<Int> {
        var found: Set<Int> = []
        for l1 in layout.l1Tables where !l1.isActive {
            for index in 0..<l1.count where layout.l2Offset(l1.offset, index) != 0 {
                for place in 0..<layout.l2Count {
                    let entry = layout.image.u64(layout.l2Offset(l1.offset, index) + place * layout.entryBytes)
                    if case .data(let offset) = layout.describe(entry) { found.insert(offset) }
                }
            }
        }
        return found
    }

    /// What changed that must not, with the effects that did it.
    func faults(_ after: ByteImage, _ log: EffectLog) -> [String] {
        var found: [String] = []
        for range in fixed where found.count < 4 && !isEqual(after, range) {
            found.append("bytes \(range) were changed by \(effects(log, range))")
        }
        // A table that the image has no more was copied, and what it left is free.
        let kept = tables.intersection(ImageLayout(after).map(Self.tables) ?? [])
        for cluster in kept where found.count < 8 {
            let offset = cluster << layout.clusterBits
            for sector in stride(from: offset, to: offset + layout.clusterSize, by: sectorSize) {
                // The mark of the simulated guest's data.
                let mark = after.u32(sector + 8)
                if mark.byteSwapped == SectorPattern.magic, before.u32(sector + 8) != mark {
                    found.append(
                        "data of the guest in a table, at \(sector), by \(effects(log, sector..<sector + sectorSize))")
                    break
                }
            }
        }
        return found
    }

    /// A file need not end with a cluster.
    private func isEqual(_ after: ByteImage, _ range: Range<Int>) -> Bool {
        before.isEqual(to: after, range.lowerBound, min(range.count, max(0, before.count - range.lowerBound)))
    }

    private func effects(_ log: EffectLog, _ range: Range<Int>) -> String {
        log.effects.enumerated().filter { $0.element.range?.overlaps(range) == true }.prefix(4)
            .map { "\($0.offset): \($0.element.description)" }.joined(separator: ", ")
    }
}

@Suite(.serialized) struct HostileWriteTests {
    /// Some images, which are changed in many ways.
    private static let images = HostileImages()

    fileprivate static func recipe(
        _ random: inout SplitMix64, hasSnapshot: Bool, needsBitmaps: Bool, needsDeflated: Bool
    ) -> ImageRecipe {
        var recipe = ImageRecipe()
        recipe.clusterBits = random.pick([9, 12, 12, 16])
        recipe.size = 96 << min(recipe.clusterBits, 12)
        if recipe.clusterBits == 16 { recipe.size = 24 << 16 }
        recipe.version = random.onceIn(4) ? 2 : 3
        if needsBitmaps || recipe.version == 3 && random.onceIn(4) {
            (recipe.version, recipe.isExtended, recipe.clusterBits, recipe.size) = (3, true, 14, 48 << 14)
        }
        if needsDeflated { recipe.hasDeflated = true }
        recipe.hasSnapshot = hasSnapshot || random.onceIn(2)
        if random.onceIn(3) { recipe.lowerSectors = recipe.size / 512 }
        return recipe
    }

    @Test(arguments: ImageMutation.allCases)
    func nothingButTheGuestsOwnClustersIsWritten(_ mutation: ImageMutation) throws {
        let first = testSeed("hostile \(mutation)")
        let count = mutation == .randomBits ? TestLength.states(16, long: 4000) : TestLength.states(2, long: 100)
        var refused = 0, failed = 0
        for seed in first..<first + UInt64(count) {
            var random = SplitMix64(seed: seed)
            let needsSnapshot = mutation.rawValue.lowercased().contains("snapshot")
            let needsBitmaps = mutation.rawValue.hasPrefix("bitmap")
            let made = try Self.images.image(
                seed % 24, hasSnapshot: needsSnapshot, needsBitmaps: needsBitmaps,
                needsDeflated: mutation == .bitmapOfDeflated)
            let recipe = made.recipe
            let image = made.image.copy()
            guard let concerned = mutation.apply(image, &random) else { continue }
            let place = image.differences(from: made.image).prefix(4).joined(separator: ", ")
            let name = "\(mutation) (\(place)), seed \(seed): \(recipe)"
            // Twice: what the first time left is found by the second.
            var state = image
            for round in 0..<2 {
                let storage = SimulatedStorage(state)
                var setup = HistoryMaker.setup(&random)
                setup.isVouched = false
                guard let engine = try? ProductEngine.open(storage, made.reader, setup) else {
                    refused += 1
                    break
                }
                var shape = HistoryShape()
                (shape.reads, shape.discards, shape.zeroes) = (0, 20, 10)
                let driver = HistoryDriver(
                    engine, storage, content: made.content.generations, clusterBits: recipe.clusterBits,
                    discardsZero: false, shape: shape, seed: seed + UInt64(round))
                touch(driver, concerned, recipe, &random)
                driver.run(120)
                driver.drain()
                try #require(driver.faults.isEmpty, "\(name): \(driver.faults)\n\(storage.log.tail(.max))")
                if engine.hasFailed { failed += 1 }
                // Damage is found before anything is written, and then only the mark is.
                let isMark = { (effect: Effect) in effect.isSync || effect.range == 72..<80 }
                try #require(
                    !engine.hasFailed || storage.log.effects.allSatisfy(isMark),
                    "\(name): changed, and then found to be damaged\n\(storage.log.tail(.max))")
                engine.close()
                state = storage.snapshot
                let found =
                    ProtectedParts(original: made.image, before: image)?.faults(state, storage.log) ?? ["no header"]
                try #require(found.isEmpty, "\(name), time \(round): \(found)\n\(storage.log.tail(.max))")
            }
        }
        print("hostile \(mutation): \(count) images, \(refused) refused, \(failed) times damage was found")
    }

    /// Writes and discards right where the tables are wrong.
    private func touch(
        _ driver: HistoryDriver, _ concerned: Set<Int>, _ recipe: ImageRecipe, _ random: inout SplitMix64
    ) {
        let sectors = recipe.clusterSize / sectorSize
        for cluster in concerned.sorted().prefix(6) {
            let start = cluster * sectors
            guard start < driver.model.sectors else { continue }
            let all = start..<min(start + sectors, driver.model.sectors)
            switch random.below(4) {
            case 0: driver.submit(.discard, all)
            case 1: driver.submit(.zeroes(mayFree: true), all)
            case 2: driver.submit(.write, all)
            default: driver.submit(.write, start..<start + 1)
            }
            if random.onceIn(2) { driver.run(3) }
        }
    }
}

/// Images that several tests change copies of.
private final class HostileImages: @unchecked Sendable {
    private var made: [String: MadeImage] = [:]
    private let lock = NSLock()

    func image(
        _ seed: UInt64, hasSnapshot: Bool, needsBitmaps: Bool, needsDeflated: Bool
    ) throws -> MadeImage {
        lock.lock()
        defer { lock.unlock() }
        let key = "\(seed) \(hasSnapshot) \(needsBitmaps) \(needsDeflated)"
        if let found = made[key] { return found }
        var random = SplitMix64(seed: seed)
        let recipe = HostileWriteTests.recipe(
            &random, hasSnapshot: hasSnapshot, needsBitmaps: needsBitmaps, needsDeflated: needsDeflated)
        var maker = try ImageMaker(recipe, seed: seed)
        let new = try maker.make()
        made[key] = new
        return new
    }
}
