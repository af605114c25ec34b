// SPDX-License-Identifier: BSD-2-Clause
// Errors of the storage: what a plugin answered to requests that were valid.
import Base
import Blkif
import Glibc
import Synchronization
import Support

/// What a plugin was asked for when it failed.
public enum StorageOperation: Int, CaseIterable, Sendable {
    /// Reading; also of the blocks around a write.
    case read
    /// Writing, with a barrier or without.
    case write
    /// A flush; also the one of a barrier.
    case flush
    /// A discard.
    case discard
}

/// A plugin request that failed, as the engine tells it.
struct StorageFailure: Equatable {
    var operation: StorageOperation
    /// A positive errno.
    var code: Int32
    /// The first sector of the requests that it was for, and how many sectors of 512 bytes they have.
    var firstSector: UInt64
    var sectorCount: UInt64

    /// "write of 4096 bytes at sector 8".
    var text: String {
        operation == .flush ? "flush" : "\(operation) of \(sectorCount &* 512) bytes at sector \(firstSector)"
    }
}

/// The last error of a disk's storage.
public struct StorageError: Sendable, Equatable {
    /// What was asked for.
    public var operation: StorageOperation
    /// A positive errno.
    public var code: Int32
    /// The first sector of 512 bytes.
    public var firstSector: UInt64
    /// Sectors of 512 bytes.
    public var sectorCount: UInt64
    /// When it happened, in seconds since 1970.
    public var time: UInt64

    /// "write of 4096 bytes at sector 8: No space left on device (ENOSPC)".
    public var text: String {
        let failure = StorageFailure(
            operation: operation, code: code, firstSector: firstSector, sectorCount: sectorCount)
        return "\(failure.text): \(Self.reason(code))"
    }

    /// "No space left on device (ENOSPC)".
    public static func reason(_ code: Int32) -> String { "\(errnoText(code)) (\(OperationError.errnoName(code)))" }
}

/// How often the storage failed in one way.
public struct StorageErrorCount: Sendable, Equatable {
    /// What was asked for.
    public var operation: StorageOperation
    /// A positive errno; 0 for numbers that are none.
    public var code: Int32
    /// Plugin requests.
    public var count: UInt64
}

/// Limits the lines about errors of one disk's storage, of all its queues. Any thread.
package final class StorageErrorLimit: Sendable {
    private let limit = RateLimit()
    private let unlogged = Mutex<UInt64>(0)

    /// Nothing was logged yet.
    package init() {}

    /// Errors that were not logged since the last line, if there may be one now about the last of `count`; nil: not now.
    func admit(_ count: UInt64) -> UInt64? {
        let isAdmitted = limit.admit() != nil
        return unlogged.withLock { unlogged in
            unlogged &+= count
            if !isAdmitted { return nil }
            defer { unlogged = 0 }
            return unlogged &- 1
        }
    }

    /// Errors since the last line, which are told now.
    package func takeUnlogged() -> UInt64 {
        unlogged.withLock { unlogged in
            defer { unlogged = 0 }
            return unlogged
        }
    }
}
