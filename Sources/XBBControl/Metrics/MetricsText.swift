// SPDX-License-Identifier: BSD-2-Clause
// The two text formats of Prometheus. Pure.
import Base

/// A format of metrics.
public enum MetricsFormat: String, CaseIterable, Sendable {
    /// OpenMetrics 1.0: ends with "# EOF", counters are declared without "_total".
    case openmetrics
    /// Prometheus' text format 0.0.4, which node_exporter and promtool read.
    case prometheus

    /// The media type.
    public var contentType: String {
        switch self {
        case .openmetrics: "application/openmetrics-text; version=1.0.0; charset=utf-8"
        case .prometheus: "text/plain; version=0.0.4; charset=utf-8"
        }
    }
}

/// A metric family: what is the same for all disks.
struct MetricFamily {
    enum Kind: String {
        case counter
        case gauge
        case histogram
        case info
    }

    /// Without "_total" or "_info".
    let name: String
    let kind: Kind
    /// The unit that the name ends with; nil for a number of things.
    let unit: String?
    /// A sentence of plain letters.
    let help: String

    init(_ name: String, _ kind: Kind, unit: String? = nil, _ help: String) {
        self.name = name
        self.kind = kind
        self.unit = unit
        self.help = help
    }

    /// What stands behind the name in samples of one value.
    var suffix: String {
        switch kind {
        case .counter: "_total"
        case .info: "_info"
        case .gauge, .histogram: ""
        }
    }
}

/// Text that grows.
struct MetricsText {
    let format: MetricsFormat
    private(set) var bytes: [UInt8] = []
    private var name: [UInt8] = []

    /// Text of about `capacity` bytes.
    init(_ format: MetricsFormat, capacity: Int = 0) {
        self.format = format
        bytes.reserveCapacity(capacity)
    }

    /// Begins a family; its samples follow.
    mutating func begin(_ family: MetricFamily) {
        let whole = family.name + family.suffix
        name = Array(whole.utf8)
        let declared = format == .openmetrics ? family.name : whole
        let kind = format == .prometheus && family.kind == .info ? MetricFamily.Kind.gauge : family.kind
        bytes += "# HELP \(declared) \(family.help)\n# TYPE \(declared) \(kind.rawValue)\n".utf8
        if format == .openmetrics, let unit = family.unit { bytes += "# UNIT \(declared) \(unit)\n".utf8 }
    }

    /// A sample; `labels` and `more` are what ``label(_:_:)`` makes, or empty; `part` is
    /// ``sum`` or ``count``, of a histogram.
    mutating func sample(_ labels: [UInt8], _ more: [UInt8], _ value: [UInt8], part: [UInt8] = []) {
        beginSample(labels, more, part)
        bytes += value
        bytes.append(UInt8(ascii: "\n"))
    }

    /// The same with a whole number: there are tens of thousands of them, and nothing is allocated for one.
    mutating func sample(_ labels: [UInt8], _ more: [UInt8], number: UInt64, part: [UInt8] = []) {
        beginSample(labels, more, part)
        end(with: number)
    }

    /// What samples of a histogram's buckets begin with; only "le" and the value differ.
    func bucketHead(_ labels: [UInt8]) -> [UInt8] {
        name + Self.bucket + [UInt8(ascii: "{")] + labels + [UInt8(ascii: ",")]
    }

    /// A bucket, with a head from ``bucketHead(_:)``.
    mutating func bucket(_ head: [UInt8], _ bound: [UInt8], _ count: UInt64) {
        bytes += head
        bytes += bound
        bytes.append(UInt8(ascii: "}"))
        bytes.append(UInt8(ascii: " "))
        end(with: count)
    }

    private mutating func end(with number: UInt64) {
        var digits = 1
        var left = number
        while left >= 10 {
            left /= 10
            digits += 1
        }
        // The line feed stands behind the digits, which are written from the last one on.
        bytes.append(contentsOf: repeatElement(UInt8(ascii: "\n"), count: digits + 1))
        var place = bytes.count - 1
        left = number
        repeat {
            place -= 1
            bytes[place] = UInt8(ascii: "0") + UInt8(truncatingIfNeeded: left % 10)
            left /= 10
        } while left > 0
    }

    private mutating func beginSample(_ labels: [UInt8], _ more: [UInt8], _ part: [UInt8]) {
        bytes += name
        bytes += part
        if !labels.isEmpty || !more.isEmpty {
            bytes.append(UInt8(ascii: "{"))
            bytes += labels
            if !labels.isEmpty && !more.isEmpty { bytes.append(UInt8(ascii: ",")) }
            bytes += more
            bytes.append(UInt8(ascii: "}"))
        }
        bytes.append(UInt8(ascii: " "))
    }

    private static let bucket = Array("_bucket".utf8)
    static let sum = Array("_sum".utf8)
    static let count = Array("_count".utf8)

    /// Ends the text.
    mutating func end() {
        if format == .openmetrics { bytes += "# EOF\n".utf8 }
    }

    /// `name="value"`, where the value may be any text: at most 256 bytes of it are taken.
    static func label(_ name: String, _ value: String) -> [UInt8] {
        var bytes = Array(name.utf8) + [UInt8(ascii: "="), UInt8(ascii: "\"")]
        var taken = 0
        for scalar in value.unicodeScalars {
            let text = String(scalar)
            taken += text.utf8.count
            if taken > 256 { break }
            switch scalar {
            case "\\": bytes += "\\\\".utf8
            case "\"": bytes += "\\\"".utf8
            case "\n": bytes += "\\n".utf8
            case _ where text.hasControlCharacters: bytes.append(UInt8(ascii: "?"))
            default: bytes += text.utf8
            }
        }
        bytes.append(UInt8(ascii: "\""))
        return bytes
    }

    static func number(_ value: UInt64) -> [UInt8] { Array(String(value).utf8) }

    /// Nanoseconds as seconds, exact.
    static func seconds(nanoseconds: UInt64) -> [UInt8] {
        let whole = String(nanoseconds / 1_000_000_000)
        let part = nanoseconds % 1_000_000_000
        if part == 0 { return Array("\(whole).0".utf8) }
        var digits = Array(String(1_000_000_000 + part).utf8.dropFirst())
        while digits.last == UInt8(ascii: "0") { digits.removeLast() }
        return Array(whole.utf8) + [UInt8(ascii: ".")] + digits
    }
}
