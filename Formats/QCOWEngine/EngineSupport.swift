// SPDX-License-Identifier: BSD-2-Clause
// What the engine is told, what it says, and what it counts.
import QCOW2
import Synchronization

/// How an image is written.
public struct EngineOptions: Sendable {
    /// Memory for L2 tables, bytes.
    public var cacheBytes: UInt64 = 16 << 20
    /// Discards of the guest give clusters back, and holes are punched for them.
    public var discards = true
    /// The writer before may not have closed the image: the scan begins at once, not with the first allocation.
    public var followsUncleanEnd = false
    /// A writer of this kind has looked through all tables of the image since when nobody else could write to it. Changes of any other
    /// image wait for that, as its tables may say anything.
    public var isVouched = false
    /// Called once all tables were looked through, from the thread that commits.
    public var whenVouched: (@Sendable () -> Void)?
    /// A process before this one could not make writes durable, or found damage, and the guest has not left since: nothing is written.
    public var hasFailed = false
    /// Called once nothing is written any more, from any thread.
    public var whenFailed: (@Sendable () -> Void)?
    /// Clusters that are reserved ahead, at first and at most.
    public var reserve: ClosedRange<Int> = 16...1024

    /// The defaults.
    public init() {}
}

/// What the operator should know.
public enum EngineEvent: Sendable, Equatable {
    /// Damage was seen: what. Nothing is written any more.
    case damaged(String)
    /// A sync failed with this errno: what was written may be lost. Nothing is written any more.
    case failed(Int32)
    /// The tables cannot be looked through, and why: changes end with an error until they can.
    case notLookedThrough(String)
    /// Data cannot be read, at this offset of the disk in bytes.
    case unreadable(ReadFault, at: UInt64)
    /// The refcounts of an image that was not closed were written anew; so many counts and flags were wrong.
    case rebuilt(changes: UInt64)
    /// So many clusters that had no owner, as after an unclean end, were given back.
    case reclaimed(clusters: UInt64, bytes: UInt64)
    /// So many dirty bitmaps are not kept up, and count no more.
    case bitmapsEnded(UInt32)
}

/// What the engine did.
public final class EngineCounters: Sendable {
    /// Clusters that became the guest's.
    public let allocated = Atomic<UInt64>(0)
    /// Clusters that were copied.
    public let copied = Atomic<UInt64>(0)
    /// Clusters that were given back.
    public let freed = Atomic<UInt64>(0)
    /// Cycles of the committer with a sync.
    public let commits = Atomic<UInt64>(0)
    /// Clusters without an owner that the scan gave back.
    public let reclaimed = Atomic<UInt64>(0)
    /// Operations that waited for another one.
    public let waits = Atomic<UInt64>(0)
    /// Times that a reserve was not there in time.
    public let refills = Atomic<UInt64>(0)

    init() {}
}
