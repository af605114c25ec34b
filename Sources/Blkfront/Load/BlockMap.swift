// SPDX-License-Identifier: BSD-2-Clause
// What a load run knows about every block that it may touch.
import Memory

/// For each block: how often it was written, whether its content is known, and who uses it now.
struct BlockMap: ~Copyable, Sendable {
    private static let unknown: UInt32 = 1 << 31
    private static let writer = UInt8.max

    /// Bit 31: the content is unknown. The other bits: the number of the last write; it never decreases, so that a
    /// stale block is never taken for a new one.
    private var generations: FixedArray<UInt32>
    /// Readers in flight, or ``writer``.
    private var users: FixedArray<UInt8>

    init(blocks: Int) {
        generations = FixedArray(zeroed: blocks)
        users = FixedArray(zeroed: blocks)
        for block in 0..<blocks { generations[block] = Self.unknown }
    }

    /// The number of the last write of a block, including one in flight.
    func generation(_ block: Int) -> UInt32 { generations[block] & ~Self.unknown }

    /// True if the block must contain its last write.
    func isKnown(_ block: Int) -> Bool { generations[block] & Self.unknown == 0 }

    /// Marks blocks as used. A writer must be alone, while readers may be many; if that is impossible, returns false
    /// and marks nothing.
    mutating func reserve(_ first: Int, _ count: Int, writing: Bool) -> Bool {
        for block in first..<first + count {
            if writing ? users[block] != 0 : users[block] >= Self.writer - 1 { return false }
        }
        for block in first..<first + count {
            if writing {
                users[block] = Self.writer
                generations[block] = (generation(block) + 1) & ~Self.unknown | Self.unknown
            } else {
                users[block] += 1
            }
        }
        return true
    }

    /// Ends the use. For a write, `known` says that the blocks now have its content.
    mutating func release(_ first: Int, _ count: Int, writing: Bool, known: Bool) {
        for block in first..<first + count {
            if writing {
                users[block] = 0
                if known { generations[block] &= ~Self.unknown }
            } else {
                users[block] -= 1
            }
        }
    }
}
