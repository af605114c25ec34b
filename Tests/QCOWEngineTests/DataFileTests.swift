// SPDX-License-Identifier: BSD-2-Clause
// Images whose data are in a file of their own: two files, each with its own syncs, and what a kill or a loss of power leaves of both.
import Foundation
import ImageCore
import ImageWriting
import QCOW2
import TestSupport
import Testing

@testable import QCOWEngine

/// Two files with one log, in the order in which they were changed.
private final class TwoFiles: @unchecked Sendable {
    struct Entry {
        let isData: Bool
        let effect: Effect
    }

    private let lock = NSLock()
    private let bases: [ByteImage]
    private var images: [ByteImage]
    private(set) var log: [Entry] = []

    init(image: ByteImage, data: ByteImage) {
        bases = [image.copy(), data.copy()]
        images = [image.copy(), data.copy()]
    }

    var position: Int { lock.withLock { log.count } }
    func image(_ isData: Bool) -> ByteImage { lock.withLock { images[isData ? 1 : 0].copy() } }

    /// One of the two.
    final class File: ImageStorage, @unchecked Sendable {
        private let files: TwoFiles
        private let isData: Bool
        let isGrowable = true

        init(_ files: TwoFiles, isData: Bool) { (self.files, self.isData) = (files, isData) }

        private var bytes: ByteImage { files.images[isData ? 1 : 0] }
        var size: UInt64 { files.lock.withLock { UInt64(bytes.count) } }

        func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
            files.lock.withLock {
                guard offset <= UInt64(bytes.count), buffer.byteCount <= bytes.count - Int(offset) else { return -EIO }
                buffer.withUnsafeMutableBytes { $0.copyMemory(from: bytes.part(Int(offset), $0.count)) }
                return 0
            }
        }

        private func does(_ effect: Effect) -> Int32 {
            files.lock.withLock {
                // Nothing is written behind the end.
                if let range = effect.range, range.upperBound > bytes.count { return -EIO }
                effect.apply(to: bytes)
                files.log.append(Entry(isData: isData, effect: effect))
                return 0
            }
        }

        func write(_ bytes: RawSpan, at offset: UInt64) -> Int32 {
            does(.write(offset: Int(offset), bytes: bytes.withUnsafeBytes { [UInt8]($0) }))
        }
        func sync() -> Int32 { does(.sync(isGuest: false)) }
        func zero(_ offset: UInt64, _ length: UInt64) -> Int32 { does(.zero(offset: Int(offset), length: Int(length))) }
        func setSize(_ size: UInt64) -> Int32 { does(.setSize(Int(size))) }
    }

    /// What a process that is killed after so many effects leaves: the image, the data.
    func killed(at position: Int) -> [ByteImage] {
        let state = bases.map { $0.copy() }
        for entry in log.prefix(position) { entry.effect.apply(to: state[entry.isData ? 1 : 0]) }
        return state
    }

    /// What a loss of power after so many effects may leave: all that was synced in its file, and any sectors of the rest.
    func cut(at position: Int, _ random: inout SplitMix64) -> [ByteImage] {
        let state = bases.map { $0.copy() }
        var pending: [[Effect]] = [[], []]
        for entry in log.prefix(position) {
            let file = entry.isData ? 1 : 0
            guard entry.effect.isSync else {
                pending[file].append(entry.effect)
                continue
            }
            for effect in pending[file] { effect.apply(to: state[file]) }
            pending[file] = []
        }
        for file in 0..<2 {
            // One file may have all of it and the other nothing.
            let percent = random.pick([0, 10, 50, 90, 100] as [UInt64])
            for effect in pending[file] {
                var chances = random
                effect.applySectors(to: state[file]) { chances.chance(percent) }
                random = chances
                if effect.range == nil, random.chance(percent) { effect.apply(to: state[file]) }
            }
        }
        return state
    }
}

/// What each sector may be, by the operations of one guest that waits for each.
private struct SerialModel {
    /// Position in the log when it was answered; the generation; what was flushed.
    struct Step {
        let sectors: Range<Int>
        let generation: UInt32
        let begin: Int
        let end: Int
    }
    var steps: [Step] = []
    /// Positions at which a flush was answered, with the number of steps before.
    var flushes: [(position: Int, steps: Int)] = []
    let sectors: Int

    /// Generations that sectors may have when the log ends at `position`.
    func allowed(_ position: Int, afterPowerCut: Bool) -> [Set<UInt32>] {
        var found = Array(repeating: Set([UInt32(0)]), count: sectors)
        let flushed = flushes.last { $0.position <= position }?.steps ?? 0
        for (index, step) in steps.enumerated() where step.begin < position || step.end <= position {
            for sector in step.sectors {
                let isCertain = afterPowerCut ? index < flushed : step.end <= position
                if isCertain { found[sector] = [] }
                found[sector].insert(step.generation)
            }
        }
        return found
    }
}

@Suite(.serialized) struct DataFileTests {
    private static let sectors = 1041  // 130 clusters and a sector.

    private func made(_ folder: TestFolder, _ options: String) throws -> (ByteImage, ByteImage) {
        try Shell.run(
            """
            cd \(folder.path) && rm -f image data && qemu-img create -q -f qcow2 -o data_file=data,cluster_size=4096,\(options) \
            image \(Self.sectors * 512)
            """)
        return (try ByteImage(contentsOf: folder.file("image")), try ByteImage(contentsOf: folder.file("data")))
    }

    private func open(_ files: TwoFiles) throws -> ImageEngine {
        var options = EngineOptions()
        options.reserve = 2...8
        options.followsUncleanEnd = true
        return try ImageEngine(
            TwoFiles.File(files, isData: false), data: TwoFiles.File(files, isData: true), below: nil, options: options)
    }

    /// Plays a history by the short way where there is one.
    private func play(_ files: TwoFiles, _ engine: ImageEngine, _ random: inout SplitMix64, _ count: Int) throws
        -> SerialModel
    {
        var model = SerialModel(sectors: Self.sectors)
        let data = TwoFiles.File(files, isData: true)
        for number in 1...count {
            let first = Int(random.below(UInt64(Self.sectors)))
            let length = min(1 + Int(random.below(40)), Self.sectors - first)
            let begin = files.position
            if random.onceIn(6) {
                #expect(engine.flush() == 0)
                model.flushes.append((files.position, model.steps.count))
                continue
            }
            let kind: EngineOperationKind = random.pick([
                .write, .write, .write, .zeroes(mayFree: true), .zeroes(mayFree: false), .discard,
            ])
            // A discard leaves parts of clusters as they are.
            var sectors = first..<first + length
            if kind == .discard {
                let last = sectors.upperBound == Self.sectors ? sectors.upperBound : sectors.upperBound & ~7
                sectors = min((first + 7) & ~7, last)..<last
                if sectors.isEmpty { continue }
            }
            let generation = kind == .write ? UInt32(number) : 0
            let (offset, bytes) = (UInt64(sectors.lowerBound * 512), UInt64(sectors.count * 512))
            if kind == .write, case .file(let place) = engine.placeOfWrite(offset, bytes) {
                #expect(place == offset)
                let content = SectorPattern.bytes(
                    first: sectors.lowerBound, count: sectors.count, generation: generation)
                #expect(data.writeData(content.span.bytes, at: place) == 0)
            } else {
                let operation = perform(kind, sectors, generation: generation, engine)
                try #require(operation.status == 0, "\(kind) \(sectors): \(operation.status)")
            }
            model.steps.append(.init(sectors: sectors, generation: generation, begin: begin, end: files.position))
        }
        return model
    }

    private func faults(_ state: [ByteImage], _ allowed: [Set<UInt32>]) throws -> [String] {
        let files = TwoFiles(image: state[0], data: state[1])
        let engine = try open(files)
        let read = perform(.read, 0..<Self.sectors, generation: 0, engine)
        guard read.status == 0 else { return ["cannot be read: \(read.status)"] }
        var found: [String] = []
        read.data.withUnsafeBytes { bytes in
            for sector in 0..<Self.sectors where found.count < 3 {
                guard let base = bytes.baseAddress else { return }
                let generation = SectorPattern.generation(base + sector * 512, sector: sector)
                if let generation, allowed[sector].contains(generation) { continue }
                found.append(
                    "sector \(sector) is \(SectorPattern.describe(base + sector * 512)), and may be \(allowed[sector].sorted())"
                )
            }
        }
        return found
    }

    /// At every effect on both files: kills and losses of power. QEMU judges some.
    @Test(arguments: ["data_file_raw=on", "data_file_raw=off", "data_file_raw=off,preallocation=metadata"])
    func everyMomentOfBothFilesIsWhole(_ options: String) throws {
        let folder = try TestFolder()
        var random = SplitMix64(seed: testSeed("data file \(options)"))
        let (image, data) = try made(folder, options)
        // What stands at places without data must never show: a copy is durable before its entry.
        if options == "data_file_raw=off" { data.write([UInt8](repeating: 0xa5, count: data.count), at: 0) }
        let files = TwoFiles(image: image, data: data)
        let engine = try open(files)
        let model = try play(files, engine, &random, TestLength.states(120, long: 1500))
        let isRaw = options.hasPrefix("data_file_raw=on")
        engine.close()
        let all = files.position
        for position in stride(from: 1, through: all, by: max(1, all / 150)) {
            let killed = try faults(files.killed(at: position), model.allowed(position, afterPowerCut: false))
            try #require(killed == [], "killed after effect \(position) of \(all)")
            let state = files.cut(at: position, &random)
            let found = try faults(state, model.allowed(position, afterPowerCut: true))
            try #require(found == [], "power lost after effect \(position) of \(all)")
            guard position % 12 == 0 else { continue }
            try judge(folder, state, "power lost after \(position)", isRaw: false)
        }
        try judge(folder, files.killed(at: all), "closed", isRaw: isRaw)
    }

    /// QEMU finds no error; a raw data file has what the disk has.
    private func judge(_ folder: TestFolder, _ state: [ByteImage], _ what: String, isRaw: Bool) throws {
        try state[0].save(folder.file("image"))
        try state[1].save(folder.file("data"))
        try Shell.run(
            """
            cd \(folder.path) && { qemu-img check -q -f qcow2 image; status=$?; [ $status = 0 -o $status = 3 ]; } &&
            { [ \(isRaw) = false ] || qemu-img compare -q -f qcow2 -F raw image data; }
            """)
    }

    /// The data come before what refers to them; the raw mark stays, others go.
    @Test func aFlushSyncsTheDataFirst() throws {
        let folder = try TestFolder()
        let (image, data) = try made(folder, "data_file_raw=on")
        #expect(image.u64(88) == 2)
        image.put64(2 | 1 << 40, at: 88)
        let files = TwoFiles(image: image, data: data)
        let engine = try open(files)
        #expect(perform(.write, 0..<3, generation: 1, engine).status == 0)
        #expect(engine.flush() == 0)
        let syncs = files.log.suffix(2)
        #expect(syncs.allSatisfy { $0.effect.isSync } && syncs.map(\.isData) == [true, false])
        engine.close()
        #expect(files.image(false).u64(88) == 2)
        #expect(files.image(true).count == data.count)
    }

    /// An entry that points to another place of the data file is damage, for QEMU too.
    @Test func anEntryHasItsOwnPlace() throws {
        let folder = try TestFolder()
        let (image, data) = try made(folder, "data_file_raw=on")
        let table = Int(image.u64(Int(image.u64(40))) & L2Entry.offsetMask)
        image.put64(L2Entry.copied | 4096 * 7, at: table + 8 * 5)
        let files = TwoFiles(image: image, data: data)
        let engine = try open(files)
        #expect(perform(.read, 40..<48, generation: 0, engine).status == -EIO)
        #expect(perform(.write, 40..<48, generation: 1, engine).status != 0)
        #expect(engine.failure != 0 && files.image(false).u64(72) & QCOWHeader.Incompatible.corrupt != 0)
        #expect(perform(.read, 0..<8, generation: 0, engine).status == 0)
        #expect(files.image(true).isEqual(to: data, 0, data.count), "the data file was written to")
    }

    /// What cannot be written is refused: no file, a short one, snapshots.
    @Test func aDataFileThatDoesNotFitIsRefused() throws {
        let folder = try TestFolder()
        let (image, data) = try made(folder, "data_file_raw=off")
        #expect(throws: ImageError.self) {
            _ = try ImageEngine(SimulatedStorage(image), below: nil, options: EngineOptions())
        }
        let short = data.copy()
        short.resize(data.count - 512)
        do {
            _ = try open(TwoFiles(image: image, data: short))
            Issue.record("a short data file was taken")
        } catch let error as ImageError {
            #expect(error.message.contains("truncate -s \(Self.sectors * 512)"), "\(error.message)")
        }
    }
}
