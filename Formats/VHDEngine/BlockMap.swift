// SPDX-License-Identifier: BSD-2-Clause
// Where each block of a disk stands, in memory: what a queue looks up for each request.
import Synchronization
import VHD

/// A block of the disk.
struct BlockEntry: Equatable {
    /// The sector of the file where its bitmap begins in the lower half; above it, what is known of the bitmap.
    let raw: UInt64

    /// What is known of a block's bitmap. It only ever gets fuller.
    enum Filling: UInt64 {
        /// It was not read yet.
        case unknown = 0
        /// Some sectors are not the block's own.
        case partial = 1
        /// All are.
        case full = 2
    }

    init(raw: UInt64) { self.raw = raw }
    init(sector: UInt32, _ filling: Filling) { raw = filling.rawValue << 32 | UInt64(sector) }

    static let none = BlockEntry(sector: VHDImage.noBlock, .unknown)

    var sector: UInt32 { UInt32(truncatingIfNeeded: raw) }
    var isThere: Bool { sector != VHDImage.noBlock }
    var isFull: Bool { raw >> 32 == Filling.full.rawValue }
    var isPartial: Bool { raw >> 32 == Filling.partial.rawValue }
    /// Where the bitmap begins, bytes of the file.
    var place: UInt64 { UInt64(sector) << 9 }
}

/// All blocks of a disk. Any thread.
///
/// `@unchecked Sendable`: the memory never moves, and what is in it is atomic.
@safe
final class BlockMap: @unchecked Sendable {
    private let entries: UnsafeMutablePointer<Atomic<UInt64>>
    let count: Int

    init(_ table: [UInt32]) {
        count = table.count
        unsafe entries = .allocate(capacity: max(count, 1))
        for (index, sector) in table.enumerated() {
            unsafe (entries + index).initialize(to: Atomic(BlockEntry(sector: sector, .unknown).raw))
        }
    }

    deinit { unsafe entries.deallocate() }

    @inline(__always)
    subscript(block: Int) -> BlockEntry {
        get {
            guard block >= 0, block < count else { return .none }
            return BlockEntry(raw: unsafe entries[block].load(ordering: .acquiring))
        }
        set {
            guard block >= 0, block < count else { return }
            unsafe entries[block].store(newValue.raw, ordering: .releasing)
        }
    }
}
