// SPDX-License-Identifier: BSD-2-Clause
// `xbbctl top`: the activity of disks between two samples. Pure.
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

/// The activity of all disks between two samples.
public enum TopReport {
    /// One object for each disk of the second sample, the busiest first; rates and latencies are null for a disk without a
    /// first one.
    public static func json(before: [DiskSample], now: [DiskSample]) -> JSON {
        var earlier: [String: DiskSample] = [:]
        for sample in before { earlier[sample.name] = sample }
        let rows = now.map { row(earlier[$0.name], $0) }
        // Equally busy disks keep their order, so that they stand still on the screen.
        let sorted = rows.enumerated().sorted { left, right in
            let (one, other) = (activity(left.element), activity(right.element))
            return one == other ? left.offset < right.offset : other.lexicographicallyPrecedes(one)
        }
        return .object([("vbds", .array(sorted.map(\.element)))])
    }

    /// What is compared: requests in a second, then those that are waiting.
    private static func activity(_ row: JSON) -> [Double] {
        let rates = ["read_iops", "write_iops", "other_iops"].map { row[$0]?.double ?? 0 }
        return [rates.reduce(0, +), row["queue_depth"]?.double ?? 0]
    }

    private static func row(_ before: DiskSample?, _ now: DiskSample) -> JSON {
        let names = ["vbd", "domid", "device", "worker", "state"]
        let activity = Activity(before, now)
        let rates: [(String, [String], Double)] = [
            ("read_iops", ["read_requests"], 1), ("write_iops", ["write_requests", "barrier_requests"], 1),
            ("other_iops", ["flush_requests", "discard_requests"], 1),
            ("read_bytes_per_second", ["read_sectors"], 512), ("write_bytes_per_second", ["write_sectors"], 512),
            ("errors_per_second", ["reqs_completed_with_error"], 1),
        ]
        var members: [JSON.Member] = names.map { ($0, now.row[$0] ?? .null) }
        for (name, counters, unit) in rates {
            members.append((name, activity.rate(counters).map { .decimal(($0 * unit * 10).rounded() / 10) } ?? .null))
        }
        for operation in ["read", "write"] {
            for (name, fraction) in [("p50", 0.5), ("p99", 0.99)] {
                members.append(
                    ("\(operation)_\(name)_ns", activity.percentile(operation, fraction).map { .integer($0) } ?? .null))
            }
        }
        members.append(("queue_depth", activity.depth.map { .integer($0) } ?? .null))
        return .object(members)
    }

    /// A table for people, of at most `rows` lines with at most `columns` characters; the last one says what was left out.
    public static func lines(_ report: JSON, rows: Int? = nil, columns: Int? = nil) -> [String] {
        var lines = table(report)
        if let rows, lines.count > rows {
            let left = lines.count - max(rows - 1, 1)
            lines = Array(lines.prefix(max(rows - 1, 1))) + ["... and \(left) more"]
        }
        guard let columns else { return lines }
        return lines.map { String($0.prefix(columns)) }
    }

    private static func table(_ report: JSON) -> [String] {
        var table = TextTable([
            .numbers("DOMID"), .words("DEVICE"), .words("WORKER"), .numbers("R/s"), .numbers("W/s"), .numbers("R MB/s"),
            .numbers("W MB/s"), .numbers("R p50"), .numbers("R p99"), .numbers("W p50"), .numbers("W p99"),
            .numbers("QD"), .numbers("ERR/s"),
        ])
        for vbd in report["vbds"]?.elements ?? [] {
            func rate(_ name: String) -> String {
                vbd[name]?.double.map { String(UInt64(clamping($0.rounded()))) } ?? "-"
            }
            func megabytes(_ name: String) -> String {
                vbd[name]?.double.map { value in
                    let tenths = UInt64(clamping((value / 100_000).rounded()))
                    return "\(tenths / 10).\(tenths % 10)"
                } ?? "-"
            }
            func latency(_ name: String) -> String { vbd[name]?.unsigned == nil ? "-" : Reports.duration(vbd[name]) }
            table.append([
                Reports.cell(vbd["domid"]), Reports.cell(vbd["device"]), Reports.cell(vbd["worker"]), rate("read_iops"),
                rate("write_iops"), megabytes("read_bytes_per_second"), megabytes("write_bytes_per_second"),
                latency("read_p50_ns"), latency("read_p99_ns"), latency("write_p50_ns"), latency("write_p99_ns"),
                Reports.cell(vbd["queue_depth"]), rate("errors_per_second"),
            ])
        }
        return table.lines
    }

    private static func clamping(_ value: Double) -> Double { min(max(value, 0), 1e18) }
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

    /// The latency in ns that the given fraction of the requests between the samples did not exceed; nil if there were
    /// none.
    func percentile(_ operation: String, _ fraction: Double) -> UInt64? {
        guard before != nil, let buckets = now?["latency_ns"]?[operation]?["histogram"]?.elements else { return nil }
        var old: [UInt64: UInt64] = [:]
        for bucket in before?["latency_ns"]?[operation]?["histogram"]?.elements ?? [] {
            if let (bound, count) = Self.pair(bucket) { old[bound] = count }
        }
        var counts: [(bound: UInt64, count: UInt64)] = []
        for bucket in buckets {
            guard let (bound, count) = Self.pair(bucket) else { continue }
            let earlier = old[bound] ?? 0
            counts.append((bound, count >= earlier ? count - earlier : count))
        }
        let all = counts.reduce(0.0) { $0 + Double($1.count) }
        if all == 0 { return nil }
        var seen = 0.0
        for (bound, count) in counts {
            seen += Double(count)
            if seen >= all * fraction { return bound }
        }
        return counts.last?.bound
    }

    private static func pair(_ bucket: JSON) -> (UInt64, UInt64)? {
        let parts = bucket.elements
        guard parts.count == 2, let bound = parts[0].unsigned, let count = parts[1].unsigned else { return nil }
        return (bound, count)
    }
}
