// SPDX-License-Identifier: BSD-2-Clause
// The counters of a worker, and the conditions that end a run.
import Blkif
import CLinux
import Synchronization

/// The kinds of operations with separate counters.
enum LoadKind: UInt8, BitwiseCopyable, Sendable, CaseIterable {
    case read, write, barrier, flush, discard

    init(_ operation: BlockOperation) {
        switch operation {
        case .read: self = .read
        case .write: self = .write
        case .writeBarrier: self = .barrier
        case .flush: self = .flush
        case .discard: self = .discard
        }
    }

    var operation: BlockOperation {
        switch self {
        case .read: .read
        case .write: .write
        case .barrier: .writeBarrier
        case .flush: .flush
        case .discard: .discard
        }
    }
}

/// Counters of one kind of operation.
struct LoadCounter: ~Copyable, Sendable {
    var latency = LatencyHistogram()
    var bytes: UInt64 = 0
    var errors: UInt64 = 0

    mutating func add(_ other: borrowing LoadCounter) {
        latency.add(other.latency)
        bytes += other.bytes
        errors += other.errors
    }

    @inline(__always)
    mutating func count(failed: Bool, nanoseconds: UInt64, bytes: UInt64) {
        if failed {
            errors += 1
        } else {
            latency.record(nanoseconds)
            self.bytes += bytes
        }
    }
}

/// The counters of all kinds.
struct LoadCounters: ~Copyable, Sendable {
    var read = LoadCounter()
    var write = LoadCounter()
    var barrier = LoadCounter()
    var flush = LoadCounter()
    var discard = LoadCounter()

    @inline(__always)
    mutating func count(_ kind: LoadKind, failed: Bool, nanoseconds: UInt64, bytes: UInt64) {
        switch kind {
        case .read: read.count(failed: failed, nanoseconds: nanoseconds, bytes: bytes)
        case .write: write.count(failed: failed, nanoseconds: nanoseconds, bytes: bytes)
        case .barrier: barrier.count(failed: failed, nanoseconds: nanoseconds, bytes: bytes)
        case .flush: flush.count(failed: failed, nanoseconds: nanoseconds, bytes: bytes)
        case .discard: discard.count(failed: failed, nanoseconds: nanoseconds, bytes: bytes)
        }
    }

    mutating func add(_ other: borrowing LoadCounters) {
        read.add(other.read)
        write.add(other.write)
        barrier.add(other.barrier)
        flush.add(other.flush)
        discard.add(other.discard)
    }
}

/// Why a load run failed.
public enum LoadFailure: Error, Sendable, Equatable, CustomStringConvertible {
    /// The device died, closed, or did not answer.
    case device(BlkfrontError)
    /// A block did not have the content that was written.
    case verify(VerifyFault)
    /// A sector contained something impossible.
    case history(HistoryFault)

    /// One line for people.
    public var description: String {
        switch self {
        case .device(let error): "\(error)"
        case .verify(let fault): "verification failed: \(fault)"
        case .history(let fault): "verification failed: \(fault)"
        }
    }
}

/// The clock of a run, shared by its workers.
final class LoadStop: Sendable {
    private let stopped = Atomic<Bool>(false)
    private let start = Atomic<UInt64>(0)
    private let end = Atomic<UInt64>(0)
    private let duration: UInt64?

    init(duration: UInt64?) {
        self.duration = duration
    }

    /// A worker failed, or the user stopped the run.
    @inline(__always)
    var isSet: Bool { stopped.load(ordering: .relaxed) }

    func set() { stopped.store(true, ordering: .relaxed) }

    /// The first worker that calls this starts the load.
    func begin() {
        _ = start.compareExchange(expected: 0, desired: clinux_monotonic_ns(), ordering: .acquiringAndReleasing)
    }

    @inline(__always)
    func isOver(_ now: UInt64) -> Bool {
        guard let duration else { return false }
        return now &- start.load(ordering: .relaxed) >= duration
    }

    /// The last worker that calls this ends the load.
    func loadEnds() { end.store(clinux_monotonic_ns(), ordering: .releasing) }

    /// Duration of the load in nanoseconds, without filling and final verification.
    var elapsed: UInt64 {
        let start = start.load(ordering: .acquiring)
        let end = end.load(ordering: .acquiring)
        if start == 0 { return 0 }
        return (end == 0 ? clinux_monotonic_ns() : end) &- start
    }
}
