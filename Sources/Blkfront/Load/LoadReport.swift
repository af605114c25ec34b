// SPDX-License-Identifier: BSD-2-Clause
// The results of a load run.
import Support

/// Results of one kind of operation. Latencies are in nanoseconds, from the first request of an operation to its last
/// response.
public struct OperationReport: Sendable, Equatable {
    /// "read", "write", "barrier", "flush" or "discard"
    public var name: String
    /// Operations that succeeded.
    public var count: UInt64
    /// Their bytes.
    public var bytes: UInt64
    /// Operations that the backend failed.
    public var errors: UInt64
    /// The shortest latency.
    public var minimum: UInt64
    /// The mean latency.
    public var mean: UInt64
    /// The longest latency.
    public var maximum: UInt64
    /// 50 % of the latencies are not longer.
    public var p50: UInt64
    /// 95 % of the latencies are not longer.
    public var p95: UInt64
    /// 99 % of the latencies are not longer.
    public var p99: UInt64
    /// 99.9 % of the latencies are not longer.
    public var p999: UInt64

    init(_ name: String, _ counter: borrowing LoadCounter) {
        self.name = name
        count = counter.latency.count
        bytes = counter.bytes
        errors = counter.errors
        minimum = counter.latency.minimum
        mean = counter.latency.mean
        maximum = counter.latency.maximum
        p50 = counter.latency.percentile(0.5)
        p95 = counter.latency.percentile(0.95)
        p99 = counter.latency.percentile(0.99)
        p999 = counter.latency.percentile(0.999)
    }

    fileprivate func json(seconds: Double) -> JSON {
        .object([
            ("count", .integer(count)), ("errors", .integer(errors)), ("bytes", .integer(bytes)),
            ("iops", .decimal(rate(Double(count), seconds))),
            ("mb_per_s", .decimal(rate(Double(bytes) / 1e6, seconds))),
            (
                "latency_us",
                .object([
                    ("min", .decimal(micro(minimum))), ("mean", .decimal(micro(mean))), ("p50", .decimal(micro(p50))),
                    ("p95", .decimal(micro(p95))), ("p99", .decimal(micro(p99))), ("p99.9", .decimal(micro(p999))),
                    ("max", .decimal(micro(maximum))),
                ])
            ),
        ])
    }

    fileprivate func line(seconds: Double) -> String {
        let iops = rounded(rate(Double(count), seconds), 0)
        let speed = rounded(rate(Double(bytes) / 1e6, seconds), 1)
        let latency = [
            ("min", minimum), ("mean", mean), ("p50", p50), ("p95", p95), ("p99", p99), ("p99.9", p999),
            ("max", maximum),
        ]
        .map { "\($0.0) \(rounded(micro($0.1), 1))" }.joined(separator: "  ")
        let failed = errors == 0 ? "" : "  ERRORS \(errors)"
        return "\(name): \(count) operations, \(iops) IOPS, \(speed) MB/s\(failed)\n    latency in us: \(latency)"
    }
}

/// What the two ends agreed on.
public struct ConnectionReport: Sendable, Equatable {
    /// Rings.
    public var queues: Int
    /// Pages of each ring.
    public var ringPages: Int
    /// The most pages of a read or a write; more than 11 are indirect.
    public var segments: Int
    /// Pages may stay mapped: both ends have said so.
    public var isPersistent: Bool

    /// What `device`, which is connected, has.
    init(_ device: FrontDevice) {
        queues = device.queues.count
        ringPages = device.ringPages
        segments = device.bufferSize / 4096
        isPersistent = device.info.persistent && device.options.offersPersistentGrants
    }

    fileprivate var json: JSON {
        .object([
            ("queues", .integer(Int64(queues))), ("ring_pages", .integer(Int64(ringPages))),
            ("segments", .integer(Int64(segments))), ("persistent", .bool(isPersistent)),
        ])
    }
}

/// The results of a load run.
public struct LoadReport: Sendable {
    /// What was negotiated.
    public var connection: ConnectionReport?
    /// Kinds of operations that occurred.
    public var operations: [OperationReport] = []
    /// Duration of the load in seconds, without filling and final verification.
    public var seconds: Double = 0
    /// Blocks that were read and had the content that was written.
    public var verifiedBlocks: UInt64 = 0
    /// Event channel notifications sent.
    public var notifications: UInt64 = 0
    /// Publications of the ring.
    public var publications: UInt64 = 0
    /// Requests whose segments stood in pages of their own.
    public var indirectRequests: UInt64 = 0
    /// Intervals of ``LoadPlan/pauseThreshold`` or more without any response, in ns, for each queue separately.
    public var pauses: [UInt64] = []
    /// What ended the run early.
    public var failure: LoadFailure?

    /// There was no failure, and the backend failed no operation.
    public var isGood: Bool { failure == nil && operations.allSatisfy { $0.errors == 0 } }
    /// The report of a kind; nil if there was none.
    public func operation(_ name: String) -> OperationReport? { operations.first { $0.name == name } }
    /// All operations per second.
    public var operationsPerSecond: Double {
        rate(Double(operations.reduce(0) { $0 + $1.count }), seconds)
    }

    /// Adds the workers' counters.
    mutating func finish(_ counters: borrowing LoadCounters, nanoseconds: UInt64) {
        seconds = Double(nanoseconds) / 1e9
        operations = [
            OperationReport("read", counters.read), OperationReport("write", counters.write),
            OperationReport("barrier", counters.barrier), OperationReport("flush", counters.flush),
            OperationReport("discard", counters.discard),
        ].filter { $0.count > 0 || $0.errors > 0 }
    }

    /// The report for programs.
    public var json: JSON {
        .object(
            [
                ("ok", .bool(isGood)), ("seconds", .decimal(seconds)), ("iops", .decimal(operationsPerSecond)),
                ("verified_blocks", .integer(verifiedBlocks)), ("notifications", .integer(notifications)),
                ("publications", .integer(publications)), ("indirect_requests", .integer(indirectRequests)),
                ("connection", connection.map(\.json) ?? .null),
                ("pauses_ms", .array(pauses.map { .decimal((micro($0)).rounded() / 1000) })),
                ("failure", failure.map { .string($0.description) } ?? .null),
            ] + operations.map { ($0.name, $0.json(seconds: seconds)) })
    }

    /// The report for people.
    public var text: String {
        var lines = operations.map { $0.line(seconds: seconds) }
        lines.append("time: \(rounded(seconds, 2)) s, \(notifications) notifications for \(publications) publications")
        if verifiedBlocks > 0 { lines.append("verified: \(verifiedBlocks) blocks") }
        if !pauses.isEmpty {
            let sorted = pauses.sorted()
            let (median, longest) = (sorted[sorted.count / 2], sorted[sorted.count - 1])
            lines.append(
                "pauses: \(sorted.count), median \(rounded(micro(median) / 1000, 1)) ms, longest "
                    + "\(rounded(micro(longest) / 1000, 1)) ms")
        }
        if let failure { lines.append("FAILED: \(failure)") }
        return lines.joined(separator: "\n")
    }
}

private func micro(_ nanoseconds: UInt64) -> Double { Double(nanoseconds) / 1000 }

private func rate(_ amount: Double, _ seconds: Double) -> Double { seconds > 0 ? amount / seconds : 0 }

/// A number with a fixed number of decimals, without Foundation.
private func rounded(_ value: Double, _ decimals: Int) -> String {
    var scale = 1.0
    for _ in 0..<decimals { scale *= 10 }
    let scaled = (value * scale).rounded()
    guard scaled.magnitude < 1e18 else { return "\(value)" }
    let whole = Int64(scaled)
    if decimals == 0 { return String(whole) }
    let fraction = String((whole % Int64(scale)).magnitude)
    return "\(whole / Int64(scale))." + String(repeating: "0", count: decimals - fraction.count) + fraction
}
