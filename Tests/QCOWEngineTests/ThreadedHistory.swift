// SPDX-License-Identifier: BSD-2-Clause
// Queues as threads: each owns some sectors, all share clusters.
import Foundation
import ImageCore
import ImageWriting
import QCOWEngine
import TestSupport

/// A number of threads that write, read and discard, and one that commits.
final class ThreadedHistory: @unchecked Sendable {
    private let made: MadeImage
    private let storage: SimulatedStorage
    private let engine: any WritingEngine
    private let seed: UInt64
    private let queues = 4
    private let lock = NSLock()
    private var faults: [String] = []
    /// All that each sector was to have, and how many of it were answered.
    private var wanted: [[UInt32]]
    private var answered: [Int]
    private var isDone = false

    init(_ made: MadeImage, opener: EngineOpener, seed: UInt64) throws {
        (self.made, self.seed) = (made, seed)
        storage = SimulatedStorage(made.image, isGrowable: !made.recipe.isDevice, isRecording: false)
        var random = SplitMix64(seed: seed)
        engine = try opener(storage, made.reader, HistoryMaker.setup(&random))
        wanted = made.content.generations.map { [$0] }
        answered = [Int](repeating: 1, count: wanted.count)
    }

    private func locked<T>(_ body: () -> T) -> T {
        lock.lock()
        defer { lock.unlock() }
        return body()
    }

    private func fault(_ words: String) { locked { if faults.count < 5 { faults.append(words) } } }

    /// What went wrong.
    func run(operations: Int) throws -> [String] {
        let group = DispatchGroup()
        let threads = (0..<queues).map { queue in
            Thread { [self] in
                work(queue, operations)
                group.leave()
            }
        }
        let committer = Thread { [self] in
            while !locked({ isDone }) { if !engine.commit() { usleep(50) } }
            group.leave()
        }
        for _ in 0...queues { group.enter() }
        for thread in threads + [committer] { thread.stackSize = 8 << 20 }
        for thread in threads { thread.start() }
        committer.start()
        let deadline = Date(timeIntervalSinceNow: 240)
        while threads.contains(where: { !$0.isFinished }) {
            if Date() > deadline { return ["the queues hang: \(locked { faults })"] }
            usleep(1000)
            kill()
        }
        locked { isDone = true }
        group.wait()
        var rounds = 0
        while engine.needsCommit, rounds < 10_000 {
            _ = engine.commit()
            rounds += 1
        }
        engine.close()
        return locked { faults } + judge() + storage.complaints
    }

    private func judge() -> [String] {
        let end = storage.snapshot
        let structure = StructureCheck.report(end)
        var found = structure.corruptions
        if structure.leaks > 0 { found.append("\(structure.leaks) leaks after closing") }
        guard let read = made.reader.read(end) else { return found + ["no image"] }
        found += read.foreign.prefix(3).map { "sector \($0.sector) has \($0.what)" }
        for sector in wanted.indices where read.generations[sector] != wanted[sector].last && found.count < 8 {
            found.append("sector \(sector) has \(read.generations[sector]) and not \(wanted[sector].last ?? 0)")
        }
        return found
    }

    /// What the file has at a moment, as if all threads were killed: what was answered before is there, and nothing that came
    /// later than the moment.
    private func kill() {
        let before = locked { answered }
        let image = storage.snapshot
        let after = locked { wanted }
        let corruptions = StructureCheck.report(image).corruptions
        if let first = corruptions.first { return fault("killed: \(first)") }
        guard let read = made.reader.read(image) else { return fault("killed: no image") }
        if let first = read.foreign.first { return fault("killed: sector \(first.sector) has \(first.what)") }
        for sector in after.indices {
            let allowed = after[sector][(before[sector] - 1)...]
            if !allowed.contains(read.generations[sector]) {
                return fault("killed: sector \(sector) has \(read.generations[sector]), allowed are \(allowed)")
            }
        }
    }

    /// Runs of two sectors go round the queues.
    private func work(_ queue: Int, _ operations: Int) {
        var random = SplitMix64(seed: seed ^ UInt64(queue + 1) &* 0x1234_5678_9abc)
        let runs = wanted.count / 2
        for number in 0..<operations {
            if !locked({ faults.isEmpty }) { return }
            let run = random.below(max(1, runs / queues)) * queues + queue
            guard run < runs else { continue }
            let sectors = run * 2..<run * 2 + 1 + random.below(2)
            let generation = UInt32(1000 + queue * 1_000_000 + number)
            switch random.below(10) {
            case 0..<6: change(.write, sectors, generation)
            case 6: change(.zeroes(mayFree: random.onceIn(2)), sectors, 0)
            case 7:
                let code = storage.guestFlush()
                if code != 0 { fault("flush: \(code)") }
            default: read(sectors)
            }
        }
    }

    private func change(_ kind: EngineOperationKind, _ sectors: Range<Int>, _ generation: UInt32) {
        locked { for sector in sectors { wanted[sector].append(generation) } }
        let operation = run(kind, sectors, generation)
        if operation.status != 0 { return fault("\(kind) at sector \(sectors.lowerBound): \(operation.status)") }
        locked { for sector in sectors { answered[sector] = wanted[sector].count } }
    }

    private func read(_ sectors: Range<Int>) {
        let operation = run(.read, sectors, 0)
        let expected = locked { sectors.map { wanted[$0].last ?? 0 } }
        operation.fill { data in
            guard let base = data.baseAddress else { return }
            for (index, sector) in sectors.enumerated() {
                let place = base + index * sectorSize
                if SectorPattern.generation(place, sector: sector) != expected[index] {
                    fault("read sector \(sector): \(SectorPattern.describe(place)), not \(expected[index])")
                }
            }
        }
    }

    /// Does an operation and waits for its end.
    private func run(_ kind: EngineOperationKind, _ sectors: Range<Int>, _ generation: UInt32) -> SimulatedOperation {
        let signal = DispatchSemaphore(value: 0)
        let operation = SimulatedOperation(
            kind, sectors: sectors, generation: generation, number: 0, onFinish: { _ in signal.signal() },
            onResume: { _ in signal.signal() })
        while true {
            let end = engine.begin()
            switch place(operation) {
            case .file(let offset):
                transfer(operation, offset)
                end()
                return operation
            case .zeroes:
                operation.fill { $0.initializeMemory(as: UInt8.self, repeating: 0) }
                end()
                return operation
            case .engine:
                let progress = engine.perform(operation)
                end()
                signal.wait()
                if progress != .waiting { return operation }
            }
        }
    }

    private func place(_ operation: SimulatedOperation) -> DataPlace {
        switch operation.kind {
        case .read: engine.placeOfRead(operation.offset, operation.length)
        case .write: engine.placeOfWrite(operation.offset, operation.length)
        default: .engine
        }
    }

    private func transfer(_ operation: SimulatedOperation, _ offset: UInt64) {
        var code: Int32 = 0
        if operation.kind == .read {
            operation.fill { target in
                var span = target.mutableBytes
                code = storage.read(into: &span, at: offset)
            }
        } else {
            code = operation.data.withUnsafeBytes { storage.write($0.bytes, at: offset) }
        }
        if code != 0 { fault("transfer at \(offset): \(code)") }
    }
}
