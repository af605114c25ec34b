// SPDX-License-Identifier: BSD-2-Clause
// What `xbbctl metrics` makes of xbbd's answer.
import BlockQueue
import Base
import Glibc
import Support
import Testing

@testable import XBBControl

@Suite struct MetricsTests {
    /// A disk as a worker and xbbd tell of it.
    private static func row(
        _ domain: UInt64, _ name: String?, device: String = "xvda", counted: JSON? = nil, path: String = "/srv/a.img",
        worker: String = "running"
    ) -> JSON {
        .object([
            ("vbd", .string("vbd/\(domain)/51712")), ("kind", .string("vbd")), ("domid", .integer(domain)),
            ("devid", .integer(51712)), ("device", .string(device)), ("domain", .text(name)),
            ("worker", .string(worker)), ("starts", .integer(2)), ("silent", .bool(false)),
            ("format", .string("raw")), ("path", .string(path)), ("counted", counted ?? Self.counted()),
        ])
    }

    private static func counted(_ more: [JSON.Member] = []) -> JSON {
        let counters = QueueCounter.allCases.enumerated().map { JSON.Member("\($0.element)", .integer($0.offset + 1)) }
        let latency = JSON.object([("count", .integer(7)), ("buckets", .array((0..<20).map { .integer(min($0, 7)) }))])
        let members: [JSON.Member] = [
            ("counters", .object(counters)), ("first_power", .integer(14)),
            ("latency", .object([("read", latency)])),
            ("errors", .array([.array([.string("write"), .integer(ENOSPC), .integer(3)])])),
            ("last_error_time", .integer(1_790_000_000)), ("in_flight", .integer(4)), ("held", .integer(0)),
            ("queues", .integer(1)), ("connected", .bool(true)), ("paused", .bool(false)), ("stalled", .bool(false)),
            ("sectors", .integer(2048)), ("read_only", .bool(false)),
        ]
        return .object(members.filter { member in !more.contains { $0.name == member.name } } + more)
    }

    private static func text(_ rows: [JSON], _ format: MetricsFormat) -> String {
        let answer = JSON.object([
            ("version", .string("1.2.3")), ("vbds", .array(rows)), ("gathering_ns", .integer(1_500_000)),
        ])
        return String(decoding: MetricsReport.text(answer, format), as: UTF8.self)
    }

    private static func lines(_ text: String) -> [String] { text.split(separator: "\n").map(String.init) }

    @Test("each counter of a worker has a metric") func counters() {
        let printed = Set(MetricsFamilies.counterNames)
        for counter in QueueCounter.allCases {
            #expect(printed.contains("\(counter)"), "add \(counter) to MetricsFamilies.counters")
        }
        #expect(MetricsFamilies.counterNames.count == printed.count, "one is printed twice")
    }

    @Test("a disk whose storage is released is paused, and not down") func released() {
        let rows = [
            Self.row(1, "web", counted: .null, worker: "released"), Self.row(2, "mail", counted: .null),
            Self.row(3, "db"),
        ]
        let lines = Self.lines(Self.text(rows, .openmetrics))
        func samples(_ name: String) -> [String] { lines.filter { $0.hasPrefix(name + "{") } }
        #expect(samples("xbb_worker_up").map { $0.suffix(1) } == ["0", "1"])
        #expect(samples("xbb_worker_up").allSatisfy { !$0.contains("web") })
        #expect(samples("xbb_paused").contains { $0.contains("web") && $0.hasSuffix("} 1") })
        #expect(!samples("xbb_paused").contains { $0.contains("mail") })
    }

    @Test("the values under their names") func values() {
        let text = Self.lines(Self.text([Self.row(1, "web"), Self.row(2, nil, device: "xvdb")], .openmetrics))
        let web = #"domain="web",vdev="xvda",kind="vbd""#
        func value(_ counter: QueueCounter) -> UInt64 { UInt64(counter.rawValue) + 1 }
        for line in [
            #"xbb_build_info{version="1.2.3"} 1"#, "xbb_disks 2", "xbb_gathering_duration_seconds 0.0015",
            "xbb_disk_info{\(web),domid=\"1\",format=\"raw\",path=\"/srv/a.img\"} 1", "xbb_worker_up{\(web)} 1",
            "xbb_worker_starts_total{\(web)} 2", "xbb_requests_in_flight{\(web)} 4", "xbb_connected{\(web)} 1",
            "xbb_size_bytes{\(web)} 1048576", "xbb_last_error_timestamp_seconds{\(web)} 1790000000",
            "xbb_storage_errors_total{\(web),operation=\"write\",errno=\"ENOSPC\"} 3",
            "xbb_requests_total{\(web),operation=\"read\"} \(value(.read_requests))",
            "xbb_read_bytes_total{\(web)} \(value(.read_sectors) * 512)",
            "xbb_request_duration_seconds_bucket{\(web),operation=\"read\",le=\"0.000016384\"} 0",
            "xbb_request_duration_seconds_bucket{\(web),operation=\"read\",le=\"8.589934592\"} 7",
            "xbb_request_duration_seconds_bucket{\(web),operation=\"read\",le=\"+Inf\"} 7",
            "xbb_request_duration_seconds_sum{\(web),operation=\"read\"} 0.0000000\(value(.read_ns))",
            "xbb_request_duration_seconds_count{\(web),operation=\"read\"} 7",
            #"xbb_connected{domain="2",vdev="xvdb",kind="vbd"} 1"#, "# TYPE xbb_read_bytes counter",
            "# UNIT xbb_read_bytes bytes",
        ] { #expect(text.contains(line), "\(line)") }
        #expect(text.last == "# EOF")
        #expect(!text.contains { $0.hasPrefix("xbb_limit") })
    }

    @Test("limits are told where they are set") func limits() {
        let limits = JSON.object([("total_bytes_sec", .integer(1_000_000)), ("read_iops_sec", .integer(0))])
        let text = Self.lines(
            Self.text([Self.row(1, "a", counted: Self.counted([("limits", limits)]))], .prometheus))
        let told = text.filter { $0.hasPrefix("xbb_limit") }
        #expect(
            told == [
                #"xbb_limit_bytes_per_second{domain="a",vdev="xvda",kind="vbd",direction="total"} 1000000"#
            ])
    }

    @Test("the older format declares counters by their whole name, and has no end") func prometheus() {
        let text = Self.lines(Self.text([Self.row(1, "web")], .prometheus))
        #expect(text.contains("# TYPE xbb_requests_total counter") && text.contains("# TYPE xbb_disk_info gauge"))
        #expect(!text.contains { $0.hasPrefix("# EOF") || $0.hasPrefix("# UNIT") })
        func samples(_ text: [String]) -> [String] { text.filter { !$0.hasPrefix("#") } }
        #expect(samples(text) == samples(Self.lines(Self.text([Self.row(1, "web")], .openmetrics))))
    }

    /// Runs a program on a text.
    private func run(_ command: String, on text: String) throws -> (text: String, exit: WorkerExit) {
        let lab = try DaemonLab()
        lab.put("metrics", text)
        let program = try Program(["/bin/sh", "-c", "exec 2>&1 <\(lab.root)/metrics; \(command)"], capture: true)
        return (program.text(), program.wait())
    }

    private static let some: [JSON] = [
        row(1, "web"), row(2, "a \"b\"\\\nc"), row(3, nil, counted: JSON.null), row(4, "web", path: "/p\n\"q\\"),
    ]

    @Test(
        "promtool has nothing to say", .enabled(if: access("/usr/bin/promtool", X_OK) == 0),
        arguments: [some, [], [row(3, nil, counted: JSON.null)]])
    func promtool(_ rows: [JSON]) throws {
        let said = try run("exec promtool check metrics", on: Self.text(rows, .prometheus))
        #expect(said.text == "" && said.exit == .clean, "\(said)")
    }

    @Test("a strict reader of OpenMetrics takes it", arguments: [some, [], [row(3, nil, counted: JSON.null)]])
    func strict(_ rows: [JSON]) throws {
        let script =
            "import sys\ntry:\n from prometheus_client.openmetrics import parser\nexcept ImportError: sys.exit(0)\n"
            + "list(parser.text_fd_to_metric_families(sys.stdin))"
        let said = try run("exec python3 -c '\(script)'", on: Self.text(rows, .openmetrics))
        #expect(said.text == "" && said.exit == .clean, "\(said)")
    }

    @Test("two domains of one name have series of their own") func twins() {
        let rows = [Self.row(1, "web"), Self.row(1, "web", device: "xvdb"), Self.row(7, "web"), Self.row(8, "")]
        #expect(MetricsReport.domainNames(rows) == ["web", "web", "web@7", "8"])
    }

    @Test("whatever a worker says, names and labels are ours and histograms rise") func hostile() {
        let noise: [JSON] = [
            .null, .string("x"), .array([]), .object([]), .integer(-1), .number("1e999"), .integer(UInt64.max),
            .array([.array([.string("read"), .integer(UInt64.max), .integer(UInt64.max)]), .array([.null])]),
            .object([
                ("read", .object([("count", .integer(UInt64.max)), ("buckets", .array([.integer(9), .integer(1)]))]))
            ]),
            .object([("evil{}", .integer(1)), ("reqs_received", .string("\n")), ("read_ns", .integer(UInt64.max))]),
        ]
        let names = Self.counted().members.map(\.name) + ["limits"]
        let known = Set(Self.lines(Self.text([Self.row(1, "web")], .openmetrics)).map(Self.series))
        for name in names {
            for value in noise {
                let text = Self.text([Self.row(1, "web", counted: Self.counted([(name, value)]))], .openmetrics)
                var last: UInt64 = 0
                for line in Self.lines(text) {
                    let isNew = !known.contains(Self.series(line)) && !line.hasPrefix("#")
                    #expect(
                        !isNew || line.hasPrefix("xbb_storage_errors") || line.hasPrefix("xbb_limit"),
                        "\(name): \(line)")
                    guard line.hasPrefix("xbb_request_duration_seconds_bucket") else { continue }
                    let value = line.split(separator: " ").last.flatMap { UInt64($0) } ?? 0
                    if line.contains("le=\"0.000016384\"") { last = 0 }
                    #expect(value >= last, "\(line)")
                    last = value
                }
            }
        }
        #expect(Self.text([.null, .integer(1)], .openmetrics).hasSuffix("# EOF\n"))
    }

    /// Name and labels of a sample.
    private static func series(_ line: String) -> String {
        line.lastIndex(of: " ").map { String(line[..<$0]) } ?? line
    }

    @Test("labels: quotes, lines, control characters, and no more than 256 bytes") func labels() {
        func label(_ value: String) -> String { String(decoding: MetricsText.label("a", value), as: UTF8.self) }
        #expect(label("x") == #"a="x""#)
        #expect(label("a\"b\\c\nd\u{1b}\u{7f}\u{9b}\u{2028}é") == #"a="a\"b\\c\nd????é""#)
        #expect(label(String(repeating: "é", count: 1000)).utf8.count == 4 + 256)
    }

    @Test("nanoseconds as seconds") func seconds() {
        func text(_ value: UInt64) -> String {
            String(decoding: MetricsText.seconds(nanoseconds: value), as: UTF8.self)
        }
        #expect(
            [0, 1, 1 << 14, 1_500_000_000, 10_000_000_000, .max].map(text) == [
                "0.0", "0.000000001", "0.000016384", "1.5", "10.0", "18446744073.709551615",
            ])
    }
}
