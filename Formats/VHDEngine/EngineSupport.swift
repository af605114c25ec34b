// SPDX-License-Identifier: BSD-2-Clause
// What the engine is told, what it says, and what it counts.
import ImageCore
import ImageWriting
import Synchronization

/// How an image is used.
public struct VHDOptions: Sendable {
    /// Nothing is written.
    public var isReadOnly = false
    /// Memory for bitmaps, bytes.
    public var cacheBytes: UInt64 = 16 << 20
    /// Discards of the guest give space back.
    public var discards = true
    /// Blocks that are reserved ahead, at first and at most, of which there are never more than ``reserveBytes``.
    public var reserve: ClosedRange<Int> = 2...64
    /// Bytes of all blocks that are reserved ahead; one block is always possible.
    public var reserveBytes: UInt64 = 128 << 20
    /// A process before this one could not make writes durable, or found the file cut off, and the guest has not left since: nothing is
    /// written.
    public var hasFailed = false
    /// Called once nothing is written any more, from any thread.
    public var whenFailed: (@Sendable () -> Void)?

    /// The defaults.
    public init() {}
}

/// What the operator should know.
public enum VHDEvent: Sendable, Equatable {
    /// A sync failed with this errno: what was written may be lost. Nothing is written any more.
    case failed(Int32)
    /// Somebody has cut the file off to so many bytes. Nothing is written any more.
    case cutOff(UInt64)
    /// Data cannot be read: the errno, the offset of the disk in bytes, and words.
    case unreadable(Int32, at: UInt64, String)
    /// The file has reached the largest size that a VHD can have, or the end of its device: no block can be added.
    case full
}

/// What the engine did.
public final class VHDCounters: Sendable {
    /// Blocks that became the guest's.
    public let allocated = Atomic<UInt64>(0)
    /// Blocks that an unclean end had left without an owner and that were taken.
    public let reclaimed = Atomic<UInt64>(0)
    /// Cycles of the committer with a sync.
    public let commits = Atomic<UInt64>(0)
    /// Operations that waited for another one.
    public let waits = Atomic<UInt64>(0)
    /// Times that a reserve was not there in time.
    public let refills = Atomic<UInt64>(0)

    init() {}
}

/// Sectors that get their bits when what they have is durable.
struct CommitRecord {
    let operation: any EngineOperation
    /// Of the range of the disk that it holds.
    let key: UInt64
    let publications: [Publication]
}

/// Sectors of one block.
struct Publication {
    let block: Int
    let sectors: Range<Int>
}
