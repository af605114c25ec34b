// SPDX-License-Identifier: BSD-2-Clause
// Counters and latency histograms of a queue: one thread writes, any thread reads.
import Blkif
import CRing
import Memory

/// A counter of a queue. The first nine carry the names that the seed's sysctls have.
public enum QueueCounter: Int, CaseIterable, Sendable {
    /// Requests taken from the ring.
    case reqs_received
    /// Responses that the frontend can see.
    case reqs_completed
    /// Responses written, seen or not.
    case reqs_queued_for_completion
    /// Responses with a status other than okay.
    case reqs_completed_with_error
    /// Reqlists sent because the next request did not fit into them.
    case forced_dispatch
    /// Reqlists sent because the ring was empty.
    case normal_dispatch
    /// All reqlists sent.
    case total_dispatch
    /// Times that no memory was free for a reqlist.
    case kva_shortages
    /// Times that no request or reqlist was free.
    case request_shortages
    /// Requests that joined a reqlist that was already begun.
    case requests_merged
    /// Requests by operation.
    case read_requests, write_requests, flush_requests, discard_requests, barrier_requests
    /// Sectors of 512 bytes by direction.
    case read_sectors, write_sectors, discard_sectors
    /// Requests that broke a rule of the protocol.
    case rejected_requests
    /// Grant copies that failed.
    case grant_errors
    /// Reqlists that were done again request by request.
    case reqlists_split
    /// Plugin requests submitted and completed.
    case plugin_requests, plugin_errors
    /// Times that the plugin took fewer requests than it was offered.
    case plugin_busy
    /// Calls of the plugin that broke the ABI's rules.
    case plugin_violations
    /// Events sent and received.
    case notifications_sent, events_received
    /// Grant copy calls and operations, with those that mapped pages spared.
    case grant_copy_calls, grant_copy_operations
    /// Times that the queue's thread went to sleep.
    case sleeps
    /// Requests of an earlier process that were done again, and those that were answered with an error instead.
    case replayed_requests, poisoned_requests
    /// Requests that waited because there was no space (`on-enospc`).
    case held_requests
    /// Requests whose segments stood in pages of their own, and these pages.
    case indirect_requests, indirect_pages
    /// Requests that waited on the ring for a limit of the disk, and how long the queue waited with them.
    case throttled_requests, throttled_microseconds
    /// Of the grant copies, those that were none, because the page was mapped (`persistent-grants`).
    case mapped_copies
    /// Pages that were mapped to stay so, those of them that were unmapped, and those for which either failed.
    case grants_mapped, grants_unmapped, grant_map_errors
    /// Plugin requests that wrote zeroes without sending them (`detect-zeroes`).
    case zero_writes
    /// Nanoseconds that the requests of each latency class took, all together; they begin anew after 2^64.
    case read_ns, write_ns, flush_ns, discard_ns

    /// A sum of times, which may be any number.
    var isSum: Bool {
        switch self {
        case .read_ns, .write_ns, .flush_ns, .discard_ns: true
        default: false
        }
    }
}

/// Operations whose latency is kept apart.
public enum LatencyClass: Int, CaseIterable, Sendable {
    /// Read requests.
    case read
    /// Writes and barriers.
    case write
    /// Flushes.
    case flush
    /// Discards.
    case discard
}

/// The cells that a queue's thread adds to. A view without an owner, so that the hot path counts no references.
///
/// Unchecked, because it has a pointer: it is made once and handed to the queue's thread, which alone writes, with single
/// stores of 64 bits that any thread may read. The ``QueueStatistics`` live longer than the thread.
@safe
struct StatisticsCells: @unchecked Sendable {
    fileprivate let cells: UnsafeMutablePointer<UInt64>

    /// Adds to a counter; queue thread only.
    @inline(__always)
    func add(_ counter: QueueCounter, _ value: UInt64 = 1) {
        let cell = unsafe cells + counter.rawValue
        unsafe cring_store64_relaxed(cell, cring_load64_relaxed(cell) &+ value)
    }

    /// Counts an error of the storage; queue thread only.
    func count(_ operation: StorageOperation, error code: Int32) {
        let cell = unsafe cells + StatisticsLayout.index(operation, code)
        unsafe cring_store64_relaxed(cell, cring_load64_relaxed(cell) &+ 1)
    }

    /// Counts a latency in ns; queue thread only.
    @inline(__always)
    func record(_ latency: LatencyClass, nanoseconds: UInt64) {
        let cell = unsafe cells + StatisticsLayout.index(latency, LatencyHistogram.bucket(of: nanoseconds))
        unsafe cring_store64_relaxed(cell, cring_load64_relaxed(cell) &+ 1)
    }
}

extension StatisticsCells {
    /// Counts a request that was done well: `sectors` of 512 bytes in `nanoseconds`; queue thread only.
    @inline(__always)
    func count(_ operation: BlockOperation, _ sectors: UInt64, nanoseconds: UInt64) {
        let cells: (requests: QueueCounter, sectors: QueueCounter, latency: LatencyClass, time: QueueCounter)
        switch operation {
        case .read: cells = (.read_requests, .read_sectors, .read, .read_ns)
        case .write: cells = (.write_requests, .write_sectors, .write, .write_ns)
        case .writeBarrier: cells = (.barrier_requests, .write_sectors, .write, .write_ns)
        case .flush: cells = (.flush_requests, .write_sectors, .flush, .flush_ns)
        case .discard: cells = (.discard_requests, .discard_sectors, .discard, .discard_ns)
        }
        add(cells.requests)
        add(cells.sectors, sectors)
        add(cells.time, nanoseconds)
        record(cells.latency, nanoseconds: nanoseconds)
    }
}

/// Counters and histograms in plain memory. The queue's thread adds; others read values that may be a moment old.
///
/// The memory is this object's own, or that of a ``StatisticsArea``, which a successor of the process finds again.
@safe
public final class QueueStatistics: Sendable {
    /// Constant; the cells behind it are accessed by atomic loads and stores.
    nonisolated(unsafe) private let base: UnsafeMutablePointer<UInt64>
    /// Whose memory it is; nil: ours.
    private let area: StatisticsArea?

    /// All zero, and gone with the process.
    public init() {
        unsafe base = .allocate(capacity: StatisticsLayout.cellCount)
        unsafe base.initialize(repeating: 0, count: StatisticsLayout.cellCount)
        area = nil
    }

    /// The cells of a queue in `area`, which has ``StatisticsLayout/cellCount`` of them at `base`.
    @unsafe init(_ base: UnsafeMutablePointer<UInt64>, of area: StatisticsArea) {
        unsafe self.base = unsafe base
        self.area = area
    }

    deinit {
        if area == nil { unsafe base.deallocate() }
    }

    /// The cells, valid while this object lives.
    var cells: StatisticsCells { unsafe StatisticsCells(cells: base) }

    /// The value of a counter; any thread.
    public func value(_ counter: QueueCounter) -> UInt64 {
        unsafe cring_load64_relaxed(base + counter.rawValue)
    }

    /// A copy of a histogram; any thread.
    public func histogram(_ latency: LatencyClass) -> LatencyHistogram {
        var copy = LatencyHistogram()
        for bucket in 0..<LatencyHistogram.bucketCount {
            copy.counts[bucket] = unsafe cring_load64_relaxed(base + StatisticsLayout.index(latency, bucket))
        }
        return copy
    }

    // MARK: Errors of the storage

    /// How often each operation failed in each way, those that never did left out; any thread.
    public var errors: [StorageErrorCount] {
        var found: [StorageErrorCount] = []
        for operation in StorageOperation.allCases {
            for code in 0..<Int32(StatisticsLayout.errnoCount) {
                let count = unsafe cring_load64_relaxed(base + StatisticsLayout.index(operation, code))
                if count > 0 { found.append(StorageErrorCount(operation: operation, code: code, count: count)) }
            }
        }
        return found
    }

    /// Notes the last error; queue thread only. `time` is in seconds since 1970.
    func setLast(_ failure: StorageFailure, time: UInt64) {
        let cell = unsafe base + StatisticsLayout.lastErrorCell
        let number = unsafe cring_load64_relaxed(cell) | 1
        // Odd while the others change, so that nobody takes half of it for an error.
        unsafe cring_store64_release(cell, number)
        SharedPages.fullFence()
        let values = [
            UInt64(failure.operation.rawValue), UInt64(UInt32(bitPattern: failure.code)), failure.firstSector,
            failure.sectorCount, time,
        ]
        for (index, value) in values.enumerated() { unsafe cring_store64_relaxed(cell + 1 + index, value) }
        unsafe cring_store64_release(cell, number &+ 1)
    }

    /// The last error; nil where there was none. Any thread.
    public var lastError: StorageError? {
        for _ in 0..<100 {
            let cell = unsafe base + StatisticsLayout.lastErrorCell
            let number = unsafe cring_load64_acquire(cell)
            if number == 0 { return nil }
            let values = (1...5).map { unsafe cring_load64_acquire(cell + $0) }
            guard number & 1 == 0, unsafe cring_load64_relaxed(cell) == number else { continue }
            guard let operation = StorageOperation(rawValue: Int(truncatingIfNeeded: values[0])),
                let code = Int32(exactly: values[1]), code > 0
            else { return nil }
            return StorageError(
                operation: operation, code: code, firstSector: values[2], sectorCount: values[3], time: values[4])
        }
        return nil
    }
}
