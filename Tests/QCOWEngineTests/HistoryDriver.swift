// SPDX-License-Identifier: BSD-2-Clause
// A guest with several queues, whose requests are in flight together; what it may find is kept in a model.
import Foundation
import ImageCore
import ImageWriting
import QCOWEngine
import TestSupport

/// What a history is made of.
struct HistoryShape: Sendable {
    /// Operations in flight at most.
    var depth = 8
    /// The largest request in sectors.
    var largest = 64
    /// In percent of the operations; the others are writes.
    var reads: UInt64 = 15
    var zeroes: UInt64 = 8
    var discards: UInt64 = 10
    var flushes: UInt64 = 5
    /// In percent: requests that lie where others are in flight.
    var overlaps: UInt64 = 10

    /// Guests of different habits.
    static let habits: [HistoryShape] = [
        HistoryShape(),
        // Each write is followed by a flush.
        HistoryShape(depth: 4, largest: 16, flushes: 40),
        // Files come and go.
        HistoryShape(reads: 5, zeroes: 10, discards: 40),
        // All requests meet others.
        HistoryShape(depth: 24, largest: 32, overlaps: 100),
        // Few large ones.
        HistoryShape(depth: 3, largest: 700, reads: 10, flushes: 10),
    ]
}

/// Drives an engine through a history, one step at a time; for one thread.
final class HistoryDriver: @unchecked Sendable {
    private struct Active {
        let operation: SimulatedOperation
        let events: [Int]
        let begin: Int
        /// Writes to a place of the file that are still to be done: offset, and the part of the data.
        var places: [(offset: Int, part: Range<Int>)] = []
        var end: (() -> Void)?
    }

    let engine: any WritingEngine
    let storage: SimulatedStorage
    private(set) var model: SectorModel
    private(set) var faults: [String] = []
    /// Operations that ended with an error.
    private(set) var errors = 0
    private let shape: HistoryShape
    private let discardsZero: Bool
    private let clusterSectors: Int
    private var random: SplitMix64
    private var active: [Int: Active] = [:]
    private var runnable: [Int] = []
    private var io: [Int] = []
    private var number = 0
    private var generation: UInt32
    /// Sectors that the disk has now: the model may have more, for a disk that grows.
    var sectors: Int

    /// - Parameter discardsZero: whole clusters read as zeroes once they were discarded.
    init(
        _ engine: any WritingEngine, _ storage: SimulatedStorage, content: [UInt32], clusterBits: Int,
        discardsZero: Bool, shape: HistoryShape, seed: UInt64, firstGeneration: UInt32 = 1000
    ) {
        (self.engine, self.storage, self.shape, self.discardsZero) = (engine, storage, shape, discardsZero)
        model = SectorModel(content)
        sectors = content.count
        clusterSectors = (1 << clusterBits) / sectorSize
        random = SplitMix64(seed: seed)
        generation = firstGeneration
    }

    /// A generation that was never used.
    var nextGeneration: UInt32 { generation + 1 }

    private func fault(_ words: String) { if faults.count < 10 { faults.append("at \(storage.position): \(words)") } }

    /// So many steps.
    func run(_ steps: Int) { for _ in 0..<steps where faults.isEmpty { step() } }

    private func step() {
        switch random.below(100) {
        case ..<38 where active.count < shape.depth: submit()
        case ..<65 where !io.isEmpty: transfer()
        case ..<80 where !runnable.isEmpty: resume()
        default: if engine.commit() && random.onceIn(2) { _ = engine.commit() }
        }
    }

    /// Does all that is in flight.
    func drain() {
        var rounds = 0
        while !active.isEmpty || engine.needsCommit {
            rounds += 1
            if rounds > 20_000 {
                let stuck = active.values.map { "\($0.operation.kind) at \($0.operation.offset)" }.sorted()
                return fault("stuck: needsCommit \(engine.needsCommit), active: \(stuck.prefix(5))")
            }
            if !io.isEmpty { transfer() } else if !runnable.isEmpty { resume() } else { _ = engine.commit() }
            if !faults.isEmpty { return }
            if engine.hasFailed && active.isEmpty { return }
        }
    }

    // MARK: Steps

    private func submit() {
        let percent = UInt64(random.below(100))
        if percent < shape.flushes { return flush() }
        var range = randomRange()
        let isBusy = active.values.contains { $0.operation.sectors.overlaps(range) }
        if isBusy && !random.chance(shape.overlaps) { range = randomRange() }
        if percent < shape.flushes + shape.reads { return submit(.read, range) }
        if percent < shape.flushes + shape.reads + shape.zeroes {
            return submit(.zeroes(mayFree: random.onceIn(2)), range)
        }
        if percent < shape.flushes + shape.reads + shape.zeroes + shape.discards {
            return submit(.discard, wide(range))
        }
        submit(.write, range)
    }

    private func randomRange() -> Range<Int> {
        let first = random.below(self.sectors)
        let count = random.onceIn(3) ? min(shape.largest, 2 * clusterSectors) : min(16, shape.largest)
        return first..<min(self.sectors, first + 1 + random.below(count))
    }

    /// To the edges of clusters, often.
    private func wide(_ range: Range<Int>) -> Range<Int> {
        if random.onceIn(3) { return range }
        let first = range.lowerBound / clusterSectors * clusterSectors
        let end = (range.upperBound + clusterSectors - 1) / clusterSectors * clusterSectors
        return first..<min(self.sectors, end)
    }

    /// Begins an operation of the guest.
    func submit(_ kind: EngineOperationKind, _ sectors: Range<Int>) {
        number += 1
        if kind == .write { generation += 1 }
        let operation = SimulatedOperation(
            kind, sectors: sectors, generation: generation, number: number,
            onFinish: { [weak self] in self?.finished($0) },
            onResume: { [weak self] in self?.runnable.append($0.number) })
        let begin = model.tick()
        active[number] = Active(operation: operation, events: events(kind, sectors), begin: begin)
        go(number)
    }

    private func events(_ kind: EngineOperationKind, _ sectors: Range<Int>) -> [Int] {
        let position = storage.position
        switch kind {
        case .read: return []
        case .write: return [model.begin(sectors, generation: generation, replaces: true, position: position)]
        case .zeroes: return [model.begin(sectors, generation: 0, replaces: true, position: position)]
        case .discard:
            // The last cluster of the disk is a whole one also where the disk ends in it.
            let isLast = sectors.upperBound == self.sectors
            let first = (sectors.lowerBound + clusterSectors - 1) / clusterSectors * clusterSectors
            let end = isLast ? sectors.upperBound : sectors.upperBound / clusterSectors * clusterSectors
            guard discardsZero, first < end else {
                return [model.begin(sectors, generation: 0, replaces: false, position: position)]
            }
            var found = [model.begin(first..<end, generation: 0, replaces: !isLast, position: position)]
            for rest in [sectors.lowerBound..<first, end..<sectors.upperBound] where !rest.isEmpty {
                found.append(model.begin(rest, generation: 0, replaces: false, position: position))
            }
            return found
        }
    }

    private func go(_ number: Int) {
        guard let operation = active[number]?.operation else { return }
        let end = engine.begin()
        let (offset, length) = (operation.offset, operation.length)
        let place: DataPlace =
            switch operation.kind {
            case .read: engine.placeOfRead(offset, length)
            case .write: engine.placeOfWrite(offset, length)
            default: .engine
            }
        switch place {
        case .file(let start):
            active[number]?.end = end
            // A kill may come between the parts.
            let middle = random.onceIn(4) ? operation.sectors.count / 2 * sectorSize : 0
            if middle > 0 && operation.kind == .write {
                active[number]?.places = [
                    (Int(start), 0..<middle), (Int(start) + middle, middle..<Int(length)),
                ]
                io += [number, number]
            } else {
                active[number]?.places = [(Int(start), 0..<Int(length))]
                io.append(number)
            }
        case .zeroes:
            if operation.kind == .write { fault("a write was told to read zeroes") }
            operation.fill { $0.initializeMemory(as: UInt8.self, repeating: 0) }
            end()
            operation.finish(0)
        case .engine:
            let progress = engine.perform(operation)
            end()
            if case .finished = progress, operation.finishes == 0 { fault("perform says finished and did not finish") }
        }
    }

    private func resume() { go(runnable.remove(at: random.below(runnable.count))) }

    /// One transfer of those that have a place in the file.
    private func transfer() {
        let number = io.remove(at: random.below(io.count))
        guard let state = active[number], let place = state.places.first else { return }
        active[number]?.places.removeFirst()
        let operation = state.operation
        var code: Int32 = 0
        if operation.kind == .read {
            operation.fill { target in
                var span = target.mutableBytes
                code = storage.read(into: &span, at: UInt64(place.offset))
            }
        } else {
            code = operation.data.withUnsafeBytes {
                storage.write(UnsafeRawBufferPointer(rebasing: $0[place.part]).bytes, at: UInt64(place.offset))
            }
        }
        if code == 0, state.places.count > 1 { return }
        if code != 0, state.places.count > 1, let other = io.firstIndex(of: number) { io.remove(at: other) }
        state.end?()
        operation.finish(code)
    }

    /// A flush of the guest.
    func flush() {
        let begin = model.tick()
        let code = storage.guestFlush()
        if code == 0 {
            model.flushed(begin: begin, position: storage.position)
        } else {
            errors += 1
            engine.fail(code)
        }
    }

    private func finished(_ operation: SimulatedOperation) {
        guard operation.finishes == 1, let state = active.removeValue(forKey: operation.number) else {
            return fault("\(operation.kind) at \(operation.offset) was finished \(operation.finishes) times")
        }
        if operation.status != 0 { errors += 1 }
        for event in state.events { model.end(event, failed: operation.status != 0, position: storage.position) }
        if operation.kind == .read, operation.status == 0 { verify(operation, begin: state.begin) }
    }

    private func verify(_ operation: SimulatedOperation, begin: Int) {
        operation.data.withUnsafeBytes { data in
            guard let base = data.baseAddress else { return }
            for (index, sector) in operation.sectors.enumerated() {
                let place = base + index * sectorSize
                let allowed = model.readable(sector, begin: begin)
                guard let found = SectorPattern.generation(place, sector: sector), allowed.contains(found) else {
                    return fault(
                        "read sector \(sector): \(SectorPattern.describe(place)), allowed are \(allowed.sorted())")
                }
            }
        }
    }
}
