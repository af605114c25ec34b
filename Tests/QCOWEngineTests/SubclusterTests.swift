// SPDX-License-Identifier: BSD-2-Clause
// Images with extended L2 entries: the same losses of power, kills, errors and turns, on images of that kind only, and the mistakes
// that only subclusters have.
import Foundation
import ImageCore
import ImageWriting
import QCOWEngine
import TestSupport
import Testing

@Suite(.serialized) struct SubclusterTests {
    /// Makes any recipe one with subclusters, of a size that tests can have many of.
    static let extended: @Sendable (inout ImageRecipe) -> Void = { recipe in
        recipe.version = 3
        (recipe.isExtended, recipe.clusterBits) = (true, recipe.clusterBits > 14 ? 16 : 14)
        recipe.size = min(max(recipe.size, 4 << recipe.clusterBits), 24 << recipe.clusterBits)
        if let sectors = recipe.lowerSectors { recipe.lowerSectors = min(sectors, recipe.size / 512) }
    }

    private func maker(steps: Int = 200, _ change: @escaping @Sendable (inout ImageRecipe) -> Void = { _ in })
        -> HistoryMaker
    {
        HistoryMaker(
            opener: ProductEngine.open, steps: steps,
            simplify: { recipe in
                Self.extended(&recipe)
                change(&recipe)
            })
    }

    @Test func everyStateAfterALossOfPowerIsWhole() throws {
        let campaign = CutCampaign(maker: maker(), ending: .powerCut, states: TestLength.states(200, long: 8000))
        let result = try campaign.run(firstSeed: testSeed("power cuts, subclusters"))
        print("power cuts, subclusters: \(result)")
        #expect(result.findings.isEmpty, "\(result.findings.first ?? "")")
    }

    /// Guests that give up and write again what is smaller than a cluster.
    @Test func everyStateIsWholeWhenSubclustersGoRound() throws {
        var maker = maker(steps: 400) { $0.lowerSectors = $0.lowerSectors ?? $0.size / 512 }
        maker.shape = HistoryShape(largest: 24, zeroes: 25, discards: 25)
        let campaign = CutCampaign(
            maker: maker, ending: .powerCut, states: TestLength.states(100, long: 4000), statesOfHistory: 50)
        let result = try campaign.run(firstSeed: testSeed("subclusters going round"))
        print("power cuts, subclusters going round: \(result)")
        #expect(result.findings.isEmpty, "\(result.findings.first ?? "")")
    }

    @Test func everyAnsweredWriteSurvivesAKill() throws {
        let campaign = CutCampaign(maker: maker(), ending: .kill, states: TestLength.states(120, long: 5000))
        let result = try campaign.run(firstSeed: testSeed("kills, subclusters"))
        print("kills, subclusters: \(result)")
        #expect(result.findings.isEmpty, "\(result.findings.first ?? "")")
    }

    @Test(arguments: [false, true])
    func anErrorAtEveryEffectLeavesAWholeImage(isLasting: Bool) throws {
        let first = testSeed("faults, subclusters")
        let small = maker(steps: 50) { recipe in
            (recipe.clusterBits, recipe.size) = (14, 8 << 14)
            if let sectors = recipe.lowerSectors { recipe.lowerSectors = min(sectors, recipe.size / 512) }
        }
        for seed in first..<first + UInt64(TestLength.isLong ? 20 : 1) {
            var campaign = FaultCampaign(maker: small, seed: seed &+ (isLasting ? 1000 : 0))
            campaign.lasts = isLasting
            let result = try campaign.run()
            print("faults, subclusters, seed \(seed): \(result)")
            #expect(result.findings.isEmpty, "\(result.findings.first ?? "")")
        }
    }

    @Test func queuesOnThreadsShareSubclusters() throws {
        let first = testSeed("threads, subclusters")
        for seed in first..<first + UInt64(TestLength.isLong ? 60 : 4) {
            var random = SplitMix64(seed: seed)
            var recipe = ImageRecipe.random(&random)
            Self.extended(&recipe)
            var maker = try ImageMaker(recipe, seed: seed)
            let found = try ThreadedHistory(try maker.make(), opener: ProductEngine.open, seed: seed).run(
                operations: TestLength.isLong ? 2000 : 400)
            try #require(found.isEmpty, "seed \(seed): \(recipe): \(found)")
        }
    }

    // MARK: Named cases

    /// One cluster of 16 KiB with data below all of it, and subclusters of one sector.
    private func bench(_ commands: String = "", lowerSectors: Int? = 64) throws -> Table {
        try Table(commands, lowerSectors: lowerSectors)
    }

    /// QEMU's fault: a write that takes new subclusters zeroes others that are being written.
    @Test func liveSubclustersAreNotTouchedUnderAWriteInFlight() throws {
        let table = try bench()
        try table.write(8..<16, 2)
        let inFlight = table.operation(.write, 8..<12, 3)
        let end = table.engine.begin()
        guard case .file(let place) = table.engine.placeOfWrite(inFlight.offset, inFlight.length) else {
            Issue.record("subclusters with data are written in place")
            return
        }
        // Meets the one in flight, and takes subclusters on both sides of what is there.
        let position = table.storage.position
        try table.write(4..<20, 4)
        _ = inFlight.data.withUnsafeBytes { table.storage.write($0.bytes, at: place) }
        end()
        let start = Int(place) - 8 * sectorSize
        for effect in table.storage.log.effects[position...].dropLast() {
            guard let range = effect.range, range.overlaps(start..<start + 32 * sectorSize) else { continue }
            let isOfTheGuest = range.lowerBound >= start + 4 * sectorSize && range.upperBound <= start + 20 * sectorSize
            #expect(isOfTheGuest, "\(effect.description)")
        }
        #expect(
            table.content(0..<24) == Array(repeating: 1, count: 4) + Array(repeating: 4, count: 4)
                + Array(repeating: 3, count: 4) + Array(repeating: 4, count: 8) + Array(repeating: 1, count: 4))
    }

    /// Copies reach to the edges of subclusters only, and what lies below the others stays in sight.
    @Test func aCopyEndsWithItsSubclusters() throws {
        let table = try bench()
        let position = table.storage.position
        try table.write(3..<5, 2)
        let data = table.storage.log.effects[position...].compactMap { effect -> Int? in
            if case .write(_, let bytes) = effect, bytes.count % sectorSize == 0, bytes.count < 4096 {
                return bytes.count
            }
            return nil
        }
        #expect(data.contains(2 * sectorSize) && !data.contains(32 * sectorSize), "\(data)")
        #expect(table.content(0..<8) == [1, 1, 1, 2, 2, 1, 1, 1])
        let layout = try #require(ImageLayout(table.storage.snapshot))
        #expect(layout.image.u64((layout.entryOffset(0) ?? 0) + 8) == 0b11000)
    }

    /// Neighbours in one cluster wait for the same sync, not for each other.
    @Test func writesIntoOneClusterShareASync() throws {
        let table = try bench()
        try table.write(0..<1, 2)
        table.settle()
        let writes = (1..<9).map { table.operation(.write, $0..<$0 + 1, 3) }
        let end = table.engine.begin()
        for write in writes { #expect(table.engine.perform(write) == .committing) }
        let meets = table.operation(.write, 3..<4, 4)
        #expect(table.engine.perform(meets) == .waiting)
        let gone = table.operation(.discard, 0..<32)
        #expect(table.engine.perform(gone) == .waiting)
        end()
        let syncs = { table.storage.log.effects.count { $0.isSync } }
        let before = syncs()
        _ = table.engine.commit()
        #expect(syncs() == before + 1 && writes.allSatisfy { $0.finishes == 1 && $0.status == 0 })
        #expect(table.content(0..<10) == [2, 3, 3, 3, 3, 3, 3, 3, 3, 1])
        try table.perform(meets)
        try table.perform(gone)
        #expect(table.content(0..<10) == Array(repeating: 0, count: 10))
    }

    /// The last subcluster takes the cluster with it, and no hole is punched before.
    @Test func aClusterIsGivenBackWithItsLastSubcluster() throws {
        let table = try bench()
        try table.write(0..<32, 2)
        let position = table.storage.position
        func punched() -> Bool {
            table.storage.log.effects[position...].contains { if case .zero = $0 { true } else { false } }
        }
        try table.perform(table.operation(.discard, 0..<20))
        try table.perform(table.operation(.zeroes(mayFree: true), 25..<32))
        table.settle()
        #expect(!punched() && table.content(16..<32) == [0, 0, 0, 0, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0])
        try table.perform(table.operation(.discard, 20..<25))
        table.settle()
        #expect(punched() && table.content(0..<64) == Array(repeating: 0, count: 32) + Array(repeating: 1, count: 32))
        let layout = try #require(ImageLayout(table.storage.snapshot))
        #expect(layout.entry(0) == 0 && layout.parts(0).allSatisfy { $0.what == .zeroes })
    }

    /// QEMU's file ends with the last subcluster that was written; the others of that cluster are written behind its end.
    @Test func aFileThatEndsWithinACluster() throws {
        let table = try bench("-c 'write -P 0 0 1k'", lowerSectors: nil)
        let image = table.storage.snapshot
        let layout = try #require(ImageLayout(image))
        guard case .data(let place) = layout.describe(layout.entry(0)) else { throw SimulationError("no cluster") }
        image.resize(place + 2 * sectorSize)
        let short = try Table(image, table.made)
        #expect(short.content(0..<4) == [0, 0, 0, 0] && short.storage.position == 0)
        try short.write(7..<9, 5)
        #expect(short.content(4..<12) == [0, 0, 0, 5, 5, 0, 0, 0])
        short.engine.close()
        #expect(StructureCheck.report(short.storage.snapshot).corruptions == [])
        #expect(try short.qemu(4..<12) == [0, 0, 0, 5, 5, 0, 0, 0])
    }

    /// What a bitmap cannot say stops all writing, and the image is marked.
    @Test(arguments: [0x1_0000_0001, 0x100_0000_0100] as [UInt64])
    func aBitmapThatCannotBeIsDamage(_ bits: UInt64) throws {
        let table = try bench("-c 'write -P 1 0 16k'")
        let image = table.storage.snapshot
        let layout = try #require(ImageLayout(image))
        let entry = try #require(layout.entryOffset(0))
        image.put64(image.u64(entry + 8) | bits, at: entry + 8)
        let bad = try Table(image, table.made)
        #expect(throws: SimulationError.self) { try bad.write(2..<4, 3) }
        #expect(bad.engine.hasFailed && bad.storage.snapshot.u64(72) & 2 != 0)
        #expect(bad.storage.log.effects.allSatisfy { $0.range.map { $0.upperBound <= 104 } ?? true })
    }
}

/// An image of a few clusters of 16 KiB, played by hand. Sectors of the layer below are of generation 1.
private final class Table {
    let made: MadeImage
    let storage: SimulatedStorage
    let engine: any WritingEngine

    init(_ commands: String, lowerSectors: Int?) throws {
        var recipe = ImageRecipe()
        (recipe.isExtended, recipe.clusterBits, recipe.size, recipe.isEmpty) = (true, 14, 8 << 14, true)
        let folder = try TestFolder()
        var below = ""
        var lower: ByteImage?
        if let lowerSectors {
            let bytes = ByteImage(count: lowerSectors * sectorSize)
            bytes.write(SectorPattern.bytes(first: 0, count: lowerSectors, generation: 1), at: 0)
            try bytes.save(folder.file("below"))
            (below, lower) = ("-b \(folder.file("below")) -F raw", bytes)
        }
        try Shell.run(
            "cd \(folder.path) && qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on \(below) image \(recipe.size)"
        )
        if !commands.isEmpty { try Shell.run("qemu-io -f qcow2 \(commands) \(folder.file("image"))") }
        let image = try ByteImage(contentsOf: folder.file("image"))
        let content = DiskContent(sectors: recipe.size / sectorSize)
        let reader = ImageContent(of: image, content: content, lower: lower)
        made = MadeImage(recipe: recipe, image: image, content: content, reader: reader, folder: folder)
        storage = SimulatedStorage(image)
        engine = try ProductEngine.open(storage, reader, EngineSetup())
    }

    /// The same with another state of the image.
    init(_ image: ByteImage, _ made: MadeImage) throws {
        self.made = made
        storage = SimulatedStorage(image)
        engine = try ProductEngine.open(storage, made.reader, EngineSetup())
    }

    func operation(_ kind: EngineOperationKind, _ sectors: Range<Int>, _ generation: UInt32 = 0) -> SimulatedOperation {
        SimulatedOperation(
            kind, sectors: sectors, generation: generation, number: 0, onFinish: { _ in }, onResume: { _ in })
    }

    func perform(_ operation: SimulatedOperation) throws {
        operation.run(in: engine)
        guard operation.finishes == 1, operation.status == 0 else {
            throw SimulationError("\(operation.kind): \(operation.status)")
        }
    }

    func write(_ sectors: Range<Int>, _ generation: UInt32) throws {
        try perform(operation(.write, sectors, generation))
    }

    /// Lets the committer do all that it has to do.
    func settle() { for _ in 0..<1000 where engine.needsCommit { _ = engine.commit() } }

    /// The generations of sectors, read by the engine; nil: something else.
    func content(_ sectors: Range<Int>) -> [UInt32?] {
        let read = operation(.read, sectors)
        let end = engine.begin()
        _ = engine.perform(read)
        end()
        return generations(read.data, sectors)
    }

    /// The same, read by QEMU.
    func qemu(_ sectors: Range<Int>) throws -> [UInt32?] {
        let (image, raw) = (made.folder.file("end"), made.folder.file("raw"))
        try storage.snapshot.save(image)
        try Shell.run("qemu-img check -q -f qcow2 \(image) && qemu-img convert -f qcow2 -O raw \(image) \(raw)")
        let all = try ByteImage(contentsOf: raw)
        return generations([UInt8](all.part(sectors.lowerBound * sectorSize, sectors.count * sectorSize)), sectors)
    }

    private func generations(_ data: [UInt8], _ sectors: Range<Int>) -> [UInt32?] {
        data.withUnsafeBytes { bytes in
            sectors.enumerated().map { index, sector in
                bytes.baseAddress.flatMap { SectorPattern.generation($0 + index * sectorSize, sector: sector) }
            }
        }
    }
}
