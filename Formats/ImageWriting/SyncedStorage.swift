// SPDX-License-Identifier: BSD-2-Clause
// Every sync of an image, whoever asks for it (rule R9 of docs/qcow.md).
//
// The kernel tells an error of writing back to one sync of an open file, and not to another that ends at the same time or later
// (fsync(2), "Linux errseq"). So no two syncs of a file run at once, and none ends well after one that failed.
import Glibc
import ImageCore
import Synchronization

/// The file of an image, whose syncs come one after the other.
///
/// `@unchecked Sendable`: what changes is atomic or under `turn`.
package final class SyncedStorage: ImageStorage, @unchecked Sendable {
    private let base: any ImageStorage
    /// Around a sync.
    private let turn = Mutex(())
    /// Syncs that were begun.
    private let begun = Atomic<UInt64>(0)
    /// A sync has failed.
    private let hasFailed = Atomic<Bool>(false)
    /// Called once, when a sync has failed, before that sync ends. Set before the file is shared.
    nonisolated(unsafe) package var whenFailed: ((Int32) -> Void)?

    /// All but its syncs are those of `base`.
    package init(_ base: any ImageStorage) { self.base = base }

    package var size: UInt64 { base.size }
    package var isGrowable: Bool { base.isGrowable }
    package var cutOffSize: UInt64? { base.cutOffSize }
    package func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        base.read(into: &buffer, at: offset)
    }
    package func write(_ bytes: RawSpan, at offset: UInt64) -> Int32 { base.write(bytes, at: offset) }
    package func writeData(_ bytes: RawSpan, at offset: UInt64) -> Int32 { base.writeData(bytes, at: offset) }
    package func readData(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        base.readData(into: &buffer, at: offset)
    }
    package func extend(_ bytes: RawSpan, at offset: UInt64) -> Int32 { base.extend(bytes, at: offset) }
    package func zero(_ offset: UInt64, _ length: UInt64) -> Int32 { base.zero(offset, length) }
    package func setSize(_ size: UInt64) -> Int32 { base.setSize(size) }

    /// Of many that wait, one syncs for all that came before it began. -EIO after one that failed.
    package func sync() -> Int32 {
        let before = begun.load(ordering: .sequentiallyConsistent)
        return turn.withLock { _ in
            if hasFailed.load(ordering: .acquiring) { return -EIO }
            if begun.load(ordering: .relaxed) > before { return 0 }
            begun.wrappingAdd(1, ordering: .sequentiallyConsistent)
            let code = base.sync()
            if code != 0 {
                hasFailed.store(true, ordering: .releasing)
                unsafe whenFailed?(code)
            }
            return code
        }
    }
}
