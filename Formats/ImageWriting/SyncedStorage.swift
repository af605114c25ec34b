// SPDX-License-Identifier: BSD-2-Clause
// R9 for every sync of an image, whoever asks for it.
//
// The kernel tells an error of writing back to one sync of an open file, and not to another that ends at the same time or later
// (fsync(2), "Linux errseq"). So no two syncs of a file run at once, and none ends well after one that failed.
import ImageWriting
import Synchronization

/// The file of an image, whose syncs come one after the other.
///
/// `@unchecked Sendable`: what changes is atomic or under `turn`.
final class SyncedStorage: ImageStorage, @unchecked Sendable {
    private let base: any ImageStorage
    /// Around a sync.
    private let turn = Lock()
    /// Syncs that were begun.
    private let begun = Atomic<UInt64>(0)
    /// What the first sync that failed ended with.
    private let failure = Atomic<Int32>(0)
    /// Called once, when a sync has failed, before that sync ends. Set before the file is shared.
    nonisolated(unsafe) var whenFailed: ((Int32) -> Void)?

    init(_ base: any ImageStorage) { self.base = base }

    var size: UInt64 { base.size }
    var isGrowable: Bool { base.isGrowable }
    var currentSize: UInt64? { base.currentSize }
    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 { base.read(into: &buffer, at: offset) }
    func write(_ bytes: RawSpan, at offset: UInt64) -> Int32 { base.write(bytes, at: offset) }
    func writeData(_ bytes: RawSpan, at offset: UInt64) -> Int32 { base.writeData(bytes, at: offset) }
    func readData(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        base.readData(into: &buffer, at: offset)
    }
    func zero(_ offset: UInt64, _ length: UInt64) -> Int32 { base.zero(offset, length) }
    func setSize(_ size: UInt64) -> Int32 { base.setSize(size) }

    /// Of many that wait, one syncs for all that came before it began.
    func sync() -> Int32 {
        let before = begun.load(ordering: .sequentiallyConsistent)
        return turn.locked {
            let failed = failure.load(ordering: .acquiring)
            if failed != 0 || begun.load(ordering: .relaxed) > before { return failed }
            begun.wrappingAdd(1, ordering: .sequentiallyConsistent)
            let code = base.sync()
            if code != 0 {
                failure.store(code, ordering: .releasing)
                unsafe whenFailed?(code)
            }
            return code
        }
    }
}
