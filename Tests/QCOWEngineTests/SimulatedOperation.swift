// SPDX-License-Identifier: BSD-2-Clause
// A request of the simulated guest.
import Foundation
import ImageCore
import ImageWriting
import QCOWEngine

/// An operation with its data, and with what the engine said about it.
final class SimulatedOperation: EngineOperation, @unchecked Sendable {
    let kind: EngineOperationKind
    let offset: UInt64
    let length: UInt64
    /// What a write stores, or what a read has got.
    private(set) var data: [UInt8]
    /// How often it was finished; 1 is right.
    private(set) var finishes = 0
    private(set) var status: Int32 = 0
    /// How often it was to be performed again.
    private(set) var resumes = 0
    private let lock = NSLock()
    private let onFinish: @Sendable (SimulatedOperation) -> Void
    private let onResume: @Sendable (SimulatedOperation) -> Void
    /// The number in the driver's list.
    let number: Int

    init(
        _ kind: EngineOperationKind, sectors: Range<Int>, generation: UInt32, number: Int,
        onFinish: @escaping @Sendable (SimulatedOperation) -> Void,
        onResume: @escaping @Sendable (SimulatedOperation) -> Void
    ) {
        self.kind = kind
        self.number = number
        offset = UInt64(sectors.lowerBound * sectorSize)
        length = UInt64(sectors.count * sectorSize)
        switch kind {
        case .write:
            data = SectorPattern.bytes(first: sectors.lowerBound, count: sectors.count, generation: generation)
        case .read: data = [UInt8](repeating: 0xee, count: sectors.count * sectorSize)
        default: data = []
        }
        (self.onFinish, self.onResume) = (onFinish, onResume)
    }

    /// The sectors of the disk.
    var sectors: Range<Int> { Int(offset) / sectorSize..<Int(offset + length) / sectorSize }

    func copyData(to target: inout MutableRawSpan, from position: UInt64) {
        target.withUnsafeMutableBytes { target in
            data.withUnsafeBytes { target.copyMemory(from: .init(rebasing: $0[Int(position)...].prefix(target.count))) }
        }
    }

    func takeData(_ source: RawSpan, at position: UInt64) {
        source.withUnsafeBytes { source in
            lock.lock()
            data.withUnsafeMutableBytes {
                UnsafeMutableRawBufferPointer(rebasing: $0[Int(position)...]).copyMemory(from: source)
            }
            lock.unlock()
        }
    }

    /// Fills the data of a read by other means than the engine.
    func fill(_ body: (UnsafeMutableRawBufferPointer) -> Void) { data.withUnsafeMutableBytes(body) }

    func finish(_ status: Int32) {
        lock.lock()
        finishes += 1
        self.status = status
        lock.unlock()
        onFinish(self)
    }

    func resume() {
        lock.lock()
        resumes += 1
        lock.unlock()
        onResume(self)
    }

    /// Does it and all that it waits for, in one thread, by the engine's two functions.
    func run(in engine: any WritingEngine) {
        var calls = 0
        for _ in 0..<100_000 where finishes == 0 {
            if calls <= resumes {
                calls += 1
                let end = engine.begin()
                _ = engine.perform(self)
                end()
            } else {
                _ = engine.commit()
            }
        }
    }
}

/// An operation that `engine` has done, with all that it waited for, in this thread.
func perform(
    _ kind: EngineOperationKind, _ sectors: Range<Int>, generation: UInt32 = 1, _ engine: ImageEngine
) -> SimulatedOperation {
    let operation = SimulatedOperation(
        kind, sectors: sectors, generation: generation, number: 0, onFinish: { _ in }, onResume: { _ in })
    operation.run(in: ProductEngine(engine))
    return operation
}
