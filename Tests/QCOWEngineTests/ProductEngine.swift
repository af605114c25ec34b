// SPDX-License-Identifier: BSD-2-Clause
// The engine of the product, as the tests drive it.
import ImageCore
import ImageWriting
import QCOWEngine

/// `ImageEngine` behind the tests' protocol.
final class ProductEngine: WritingEngine, @unchecked Sendable {
    let engine: ImageEngine

    init(_ engine: ImageEngine) { self.engine = engine }

    /// Opens an image with the product's engine.
    static let open: EngineOpener = { storage, reader, setup in
        var options = EngineOptions()
        options.cacheBytes = setup.cacheBytes
        options.discards = setup.discards
        options.reserve = setup.reserve
        options.followsUncleanEnd = setup.followsUncleanEnd
        options.isVouched = setup.isVouched
        let below: (any LowerLayer)? = reader.lower.map(SimulatedLayer.init)
        let engine = try ImageEngine(storage, below: below, options: options) { buffer, start, place, _ in
            reader.expand(&buffer, start, Int(place), in: storage)
        }
        if setup.readsAhead { engine.readTablesAhead() }
        return ProductEngine(engine)
    }

    var size: UInt64 { engine.size }
    var needsCommit: Bool { engine.needsCommit }
    var hasFailed: Bool { engine.failure != 0 }
    func commit() -> Bool { engine.commit() }
    func close() { engine.close() }
    func grow(to size: UInt64) throws { try engine.grow(to: size) }
    func fail(_ code: Int32) { engine.fail(code) }

    func perform(_ operation: any EngineOperation) -> OperationProgress {
        switch engine.perform(operation) {
        case .finished: .finished
        case .waiting: .waiting
        case .committing: .committing
        }
    }

    func placeOfRead(_ offset: UInt64, _ length: UInt64) -> DataPlace { place(engine.placeOfRead(offset, length)) }
    func placeOfWrite(_ offset: UInt64, _ length: UInt64) -> DataPlace { place(engine.placeOfWrite(offset, length)) }

    private func place(_ place: Place) -> DataPlace {
        switch place {
        case .file(let offset): .file(offset)
        case .zeroes: .zeroes
        case .engine: .engine
        }
    }

    func begin() -> () -> Void {
        let token = engine.begin()
        return { [engine] in engine.end(token) }
    }
}
