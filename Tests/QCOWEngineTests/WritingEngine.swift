// SPDX-License-Identifier: BSD-2-Clause
// What the tests need of an engine: the product's and the tests' own have it.
import ImageCore
import ImageWriting
import QCOWEngine

/// Where a range can be read or written at once.
enum DataPlace: Equatable {
    case file(UInt64)
    case zeroes
    case engine
}

/// How far an operation came.
enum OperationProgress {
    case finished
    case waiting
    case committing
}

/// Settings of an engine, by chance.
struct EngineSetup: Sendable {
    var cacheBytes: UInt64 = 1 << 20
    var discards = true
    var reserve = 2...16
    /// Nobody knows whether the writer before closed the image.
    var followsUncleanEnd = false
    /// The writer before has looked through the tables, and nobody else has written since.
    var isVouched = false
    /// The tables are read before the first change.
    var readsAhead = false
}

/// An image that is open for writing.
protocol WritingEngine: AnyObject, Sendable {
    var size: UInt64 { get }
    func perform(_ operation: any EngineOperation) -> OperationProgress
    func commit() -> Bool
    var needsCommit: Bool { get }
    func placeOfRead(_ offset: UInt64, _ length: UInt64) -> DataPlace
    func placeOfWrite(_ offset: UInt64, _ length: UInt64) -> DataPlace
    /// I/O begins; the closure ends it.
    func begin() -> () -> Void
    func close()
    /// Makes the disk so many bytes long.
    func grow(to size: UInt64) throws
    func fail(_ code: Int32)
    var hasFailed: Bool { get }
}

/// Opens an image with one of them.
///
/// The reader knows what lies below, and what deflated clusters have.
typealias EngineOpener = @Sendable (any ImageStorage, ImageContent, EngineSetup) throws -> any WritingEngine
