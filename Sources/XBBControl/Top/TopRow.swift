// SPDX-License-Identifier: BSD-2-Clause
// The activity of disks between two looks. Pure.
import Support

/// One sample of one disk.
public struct DiskSample: Sendable {
    /// The disk's row of `list`.
    public let row: JSON
    /// Its counters; nil if its worker does not answer.
    public let stats: JSON?
    /// When the counters arrived, in ns of CLOCK_MONOTONIC.
    public let time: UInt64

    /// A row of `list`, the answer to `stats`, and when the answer arrived.
    public init(row: JSON, stats: JSON?, time: UInt64) {
        self.row = row
        self.stats = stats
        self.time = time
    }

    var name: String { row["vbd"]?.string ?? "" }
}

/// What one disk did between two samples.
public struct TopRow: Sendable {
    /// The disk's row of `list`.
    let row: JSON
    /// Of what may be shown or compared; rates are per second, latencies in ns, nil where nobody knows.
    let reads, writes, others, readBytes, writeBytes, errors: Double?
    let readP50, readP99, writeP50, writeP99: UInt64?
    /// Requests that were taken from the ring and are not answered.
    let depth: UInt64?
    /// How many requests of all operations took at most `bound` ns and more than the bound before.
    let latencies: [LatencyCount]

    /// Rates and latencies are nil for a disk without a first sample.
    init(_ before: DiskSample?, _ now: DiskSample) {
        row = now.row
        let activity = Activity(before, now)
        reads = activity.rate(["read_requests"])
        writes = activity.rate(["write_requests", "barrier_requests"])
        others = activity.rate(["flush_requests", "discard_requests"])
        readBytes = activity.rate(["read_sectors"]).map { $0 * 512 }
        writeBytes = activity.rate(["write_sectors"]).map { $0 * 512 }
        errors = activity.rate(["reqs_completed_with_error"])
        let (reading, writing) = (activity.latencies("read"), activity.latencies("write"))
        readP50 = LatencyCount.percentile(0.5, of: reading)
        readP99 = LatencyCount.percentile(0.99, of: reading)
        writeP50 = LatencyCount.percentile(0.5, of: writing)
        writeP99 = LatencyCount.percentile(0.99, of: writing)
        depth = activity.depth
        let others = ["flush", "discard"].flatMap { activity.latencies($0) }
        latencies = LatencyCount.merged(reading + writing + others)
    }

    /// One row for each disk of the second look, in its order.
    public static func rows(before: [DiskSample], now: [DiskSample]) -> [TopRow] {
        let earlier = Dictionary(before.map { ($0.name, $0) }) { $1 }
        return now.map { TopRow(earlier[$0.name], $0) }
    }

    func word(_ name: String) -> String? { row[name]?.string }
    var domain: UInt64 { row["domid"]?.unsigned ?? 0 }
    /// Its domain as people call it.
    var domainName: String { word("domain").flatMap { $0.isEmpty ? nil : $0 } ?? "\(domain)" }
    var isPaused: Bool { row["paused"] == .bool(true) }

    /// The object of one disk.
    var json: JSON {
        func rate(_ value: Double?) -> JSON { value.map { .decimal(($0 * 10).rounded() / 10) } ?? .null }
        func number(_ value: UInt64?) -> JSON { value.map { .integer($0) } ?? .null }
        let names = ["vbd", "domid", "domain", "device", "worker", "state", "paused", "format", "path", "trouble"]
        return .object(
            names.map { JSON.Member($0, row[$0] ?? .null) } + [
                ("read_iops", rate(reads)), ("write_iops", rate(writes)), ("other_iops", rate(others)),
                ("read_bytes_per_second", rate(readBytes)), ("write_bytes_per_second", rate(writeBytes)),
                ("errors_per_second", rate(errors)), ("read_p50_ns", number(readP50)), ("read_p99_ns", number(readP99)),
                ("write_p50_ns", number(writeP50)), ("write_p99_ns", number(writeP99)), ("queue_depth", number(depth)),
                ("latency_histogram", .array(latencies.map { .array([.integer($0.bound), .integer($0.count)]) })),
            ])
    }

    /// All of them as one line of JSON.
    public static func json(_ rows: [TopRow]) -> JSON { .object([("vbds", .array(rows.map(\.json)))]) }
}

/// Some requests whose latency is not more than a bound.
struct LatencyCount: Sendable, Equatable {
    /// In ns.
    let bound: UInt64
    var count: UInt64

    /// Pairs of bound and count, as in `stats`.
    static func reading(_ value: JSON?) -> [LatencyCount] {
        (value?.elements ?? []).compactMap { pair in
            let parts = pair.elements
            guard parts.count == 2, let bound = parts[0].unsigned, let count = parts[1].unsigned else { return nil }
            return LatencyCount(bound: bound, count: count)
        }
    }

    /// Each bound once, in order.
    static func merged(_ counts: [LatencyCount]) -> [LatencyCount] {
        var sums: [UInt64: UInt64] = [:]
        for entry in counts { sums[entry.bound, default: 0] &+= entry.count }
        return sums.sorted { $0.key < $1.key }.map { LatencyCount(bound: $0.key, count: $0.value) }
    }

    /// The bound that the given fraction of all did not exceed; nil if there are none.
    static func percentile(_ fraction: Double, of counts: [LatencyCount]) -> UInt64? {
        let all = counts.reduce(0.0) { $0 + Double($1.count) }
        if all == 0 { return nil }
        var seen = 0.0
        for entry in counts {
            seen += Double(entry.count)
            if seen >= all * fraction { return entry.bound }
        }
        return counts.last?.bound
    }
}

/// The activity of one disk between two samples.
private struct Activity {
    private let before: JSON?
    private let now: JSON?
    private let seconds: Double

    init(_ before: DiskSample?, _ now: DiskSample) {
        self.before = before?.stats
        self.now = now.stats
        seconds = before.map { Double(now.time &- $0.time) / 1e9 } ?? 0
    }

    private func total(_ stats: JSON?, _ name: String) -> UInt64? { stats?["totals"]?[name]?.unsigned }

    /// The growth of counters per second. The counters of a new worker start at zero, so all that they show is new.
    func rate(_ names: [String]) -> Double? {
        guard seconds > 0 else { return nil }
        var growth = 0.0
        for name in names {
            guard let now = total(now, name), let before = total(before, name) else { return nil }
            growth += Double(now >= before ? now - before : now)
        }
        return growth / seconds
    }

    /// Requests that were taken from the ring and are not answered yet.
    var depth: UInt64? {
        guard let taken = total(now, "reqs_received"), let answered = total(now, "reqs_completed") else { return nil }
        return taken >= answered ? taken - answered : 0
    }

    /// The latencies of an operation between the samples; none without a first one.
    func latencies(_ operation: String) -> [LatencyCount] {
        guard let before else { return [] }
        func counts(_ stats: JSON?) -> [LatencyCount] {
            LatencyCount.reading(stats?["latency_ns"]?[operation]?["histogram"])
        }
        let old = Dictionary(counts(before).map { ($0.bound, $0.count) }) { $1 }
        return counts(now).compactMap { entry in
            let earlier = old[entry.bound] ?? 0
            let count = entry.count >= earlier ? entry.count - earlier : entry.count
            return count == 0 ? nil : LatencyCount(bound: entry.bound, count: count)
        }
    }
}
