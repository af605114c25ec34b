// SPDX-License-Identifier: BSD-2-Clause
// `xbbctl metrics`: the answer of xbbd as text for Prometheus. Pure.
//
// What a worker says is not trusted: numbers are taken from where they are expected and nothing else. Names and values of
// labels are ours, xbbd's or the toolstack's, so that no worker makes series without end.
import Base
public import Support

/// The text of an answer to `metrics`.
public enum MetricsReport {
    /// Powers of two of nanoseconds at which latencies are counted: 2^14 ns to 2^33 ns.
    static let powers = 14...33
    /// For each operation, its label with that of each bound, and with that of no bound.
    private static let bounds: [(finite: [[UInt8]], infinite: [UInt8])] = MetricsFamilies.operations.map { operation in
        func labels(_ bound: String) -> [UInt8] {
            operation.label + [UInt8(ascii: ",")] + MetricsText.label("le", bound)
        }
        let seconds = powers.map { MetricsText.seconds(nanoseconds: 1 << UInt64($0)) }
        return (seconds.map { labels(String(decoding: $0, as: UTF8.self)) }, labels("+Inf"))
    }
    private static let places = Dictionary(
        uniqueKeysWithValues: MetricsFamilies.counterNames.enumerated().map { ($0.element, $0.offset) })

    /// One disk, taken apart once.
    struct Disk {
        let labels: [UInt8]
        let info: [UInt8]
        let starts: UInt64
        /// Nil: the administrator has the storage, so that no worker is to be there.
        let isUp: Bool?
        /// What the worker said; of a disk whose storage is released what holds without one, and null without an answer.
        let counted: JSON
        /// In the order of `MetricsFamilies.counterNames`; nil: the worker does not count this.
        var counters: [UInt64?]

        init(_ row: JSON, domain: String) {
            let vbd = [("domain", domain), ("vdev", row["device"]?.string ?? ""), ("kind", row["kind"]?.string ?? "")]
            labels = MetricsReport.joined(vbd)
            info = MetricsReport.joined([
                ("domid", row["domid"]?.unsigned.map { "\($0)" } ?? ""), ("format", row["format"]?.string ?? ""),
                ("path", row["path"]?.string ?? ""),
            ])
            starts = row["starts"]?.unsigned ?? 0
            let answer = row["counted"] ?? .null
            counters = Array(repeating: nil, count: MetricsFamilies.counterNames.count)
            // One that is of another version may answer something else.
            let said = answer["counters"]?.members ?? []
            let isReleased = said.isEmpty && row["worker"]?.string == "released"
            isUp = isReleased ? nil : !said.isEmpty
            counted = isReleased ? .object([("paused", .bool(true))]) : answer
            for counter in said {
                if let place = MetricsReport.places[counter.name] { counters[place] = counter.value.unsigned }
            }
        }

        subscript(_ counter: String) -> UInt64? { MetricsReport.places[counter].flatMap { counters[$0] } }
    }

    static func joined(_ labels: [(String, String)]) -> [UInt8] {
        Array(labels.map { MetricsText.label($0.0, $0.1) }.joined(separator: [UInt8(ascii: ",")]))
    }

    /// About as much text as a disk has, in bytes.
    private static let bytesForDisk = 20 << 10

    /// The text, ending with a line feed.
    public static func text(_ answer: JSON, _ format: MetricsFormat) -> [UInt8] {
        let rows = answer["vbds"]?.elements ?? []
        let names = domainNames(rows)
        let disks = zip(rows, names).map { Disk($0.0, domain: $0.1) }
        var text = MetricsText(format, capacity: (disks.count + 1) * bytesForDisk)
        text.begin(MetricsFamilies.build)
        text.sample([], MetricsText.label("version", answer["version"]?.string ?? ""), one)
        text.begin(MetricsFamilies.disks)
        text.sample([], [], MetricsText.number(UInt64(disks.count)))
        text.begin(MetricsFamilies.gathering)
        text.sample([], [], MetricsText.seconds(nanoseconds: answer["gathering_ns"]?.unsigned ?? 0))
        // A family without samples is not declared.
        if !disks.isEmpty {
            appendStates(disks, &text)
            appendCounters(disks, &text)
            appendErrors(disks, &text)
            appendLatencies(disks, &text)
        }
        text.end()
        return text.bytes
    }

    private static let one = MetricsText.number(1)
    private static func flag(_ value: Bool) -> [UInt8] { MetricsText.number(value ? 1 : 0) }

    /// The name of each row's domain: its number where it has none, and behind a name that another domain has too.
    static func domainNames(_ rows: [JSON]) -> [String] {
        var owners: [String: UInt64] = [:]
        return rows.map { row in
            let number = row["domid"]?.unsigned ?? 0
            guard let name = row["domain"]?.string, !name.isEmpty else { return "\(number)" }
            let cut = String(name.unicodeScalars.prefix(64))
            let owner = owners[cut] ?? number
            owners[cut] = owner
            return owner == number ? cut : "\(cut)@\(number)"
        }
    }

    // MARK: Families

    private static func appendStates(_ disks: [Disk], _ text: inout MetricsText) {
        text.begin(MetricsFamilies.disk)
        for disk in disks { text.sample(disk.labels, disk.info, one) }
        append(MetricsFamilies.worker, disks, &text) { $0.isUp.map(flag) }
        text.begin(MetricsFamilies.starts)
        for disk in disks { text.sample(disk.labels, [], MetricsText.number(disk.starts)) }
        for (family, name) in [
            (MetricsFamilies.inFlight, "in_flight"), (MetricsFamilies.waiting, "held"),
            (MetricsFamilies.queues, "queues"), (MetricsFamilies.connected, "connected"),
            (MetricsFamilies.paused, "paused"), (MetricsFamilies.stalled, "stalled"),
            (MetricsFamilies.readOnly, "read_only"), (MetricsFamilies.lastError, "last_error_time"),
        ] { append(family, disks, &text) { number($0.counted[name]) } }
        append(MetricsFamilies.size, disks, &text) { disk in
            disk.counted["sectors"]?.unsigned.map { MetricsText.number($0 &* 512) }
        }
        appendLimits(MetricsFamilies.bytesLimit, "bytes", disks, &text)
        appendLimits(MetricsFamilies.requestsLimit, "iops", disks, &text)
    }

    private static func number(_ value: JSON?) -> [UInt8]? {
        if case .bool(let isSet)? = value { return flag(isSet) }
        return value?.unsigned.map { MetricsText.number($0) }
    }

    /// A family of which not every disk has a sample.
    private static func append(
        _ family: MetricFamily, _ disks: [Disk], _ text: inout MetricsText, _ value: (Disk) -> [UInt8]?
    ) {
        var hasBegun = false
        for disk in disks {
            guard let value = value(disk) else { continue }
            if !hasBegun { text.begin(family) }
            hasBegun = true
            text.sample(disk.labels, [], value)
        }
    }

    /// Limits that are set, under the names of virsh's blkdeviotune.
    private static func appendLimits(
        _ family: MetricFamily, _ unit: String, _ disks: [Disk], _ text: inout MetricsText
    ) {
        var hasBegun = false
        for disk in disks {
            for direction in ["total", "read", "write"] {
                guard let limit = disk.counted["limits"]?["\(direction)_\(unit)_sec"]?.unsigned, limit > 0 else {
                    continue
                }
                if !hasBegun { text.begin(family) }
                hasBegun = true
                text.sample(disk.labels, MetricsText.label("direction", direction), MetricsText.number(limit))
            }
        }
    }

    private static func appendCounters(_ disks: [Disk], _ text: inout MetricsText) {
        for family in MetricsFamilies.counters {
            let cells = family.counters.map { (place: Self.places[$0.name], label: $0.label) }
            var hasBegun = false
            for disk in disks {
                for (place, label) in cells {
                    guard let place, let value = disk.counters[place] else { continue }
                    if !hasBegun { text.begin(family.family) }
                    hasBegun = true
                    switch family.text(value) {
                    case .number(let value): text.sample(disk.labels, label, number: value)
                    case .seconds(let value): text.sample(disk.labels, label, value)
                    }
                }
            }
        }
    }

    private static func appendErrors(_ disks: [Disk], _ text: inout MetricsText) {
        var hasBegun = false
        for disk in disks {
            // Operations and numbers that there are: whatever a worker says, the series are these.
            var sums: [[Int32: UInt64]] = Array(repeating: [:], count: MetricsFamilies.operations.count)
            for entry in disk.counted["errors"]?.elements ?? [] {
                let words = entry.elements
                guard words.count == 3, let count = words[2].unsigned, let code = words[1].unsigned,
                    let place = MetricsFamilies.operations.firstIndex(where: { $0.name == words[0].string })
                else { continue }
                sums[place][code < 136 ? Int32(code) : 0, default: 0] &+= count
            }
            for (place, errors) in sums.enumerated() {
                for (code, count) in errors.sorted(by: { $0.key < $1.key }) {
                    if !hasBegun { text.begin(MetricsFamilies.storageErrors) }
                    hasBegun = true
                    let name = code == 0 ? "other" : OperationError.errnoName(code)
                    let label = MetricsText.label("errno", name)
                    text.sample(
                        disk.labels, MetricsFamilies.operations[place].label + [UInt8(ascii: ",")] + label,
                        MetricsText.number(count))
                }
            }
        }
    }

    private static func appendLatencies(_ disks: [Disk], _ text: inout MetricsText) {
        var hasBegun = false
        for disk in disks {
            let first = disk.counted["first_power"]?.unsigned ?? 0
            for (operation, labels) in zip(MetricsFamilies.operations, bounds) {
                guard let latency = disk.counted["latency"]?[operation.name], let sum = disk[operation.sum],
                    let count = latency["count"]?.unsigned, first == UInt64(powers.lowerBound)
                else { continue }
                if !hasBegun { text.begin(MetricsFamilies.latency) }
                hasBegun = true
                let said = latency["buckets"]?.elements ?? []
                let head = text.bucketHead(disk.labels)
                // Cumulative, whatever the worker says.
                var last: UInt64 = 0
                for (index, bound) in labels.finite.enumerated() {
                    let value = index < said.count ? said[index].unsigned ?? 0 : last
                    last = min(max(last, value), count)
                    text.bucket(head, bound, last)
                }
                text.bucket(head, labels.infinite, count)
                text.sample(disk.labels, operation.label, MetricsText.seconds(nanoseconds: sum), part: MetricsText.sum)
                text.sample(disk.labels, operation.label, number: count, part: MetricsText.count)
            }
        }
    }
}
