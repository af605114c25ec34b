// SPDX-License-Identifier: BSD-2-Clause
// What an administrator sees of disks at work: xbbctl top and xbbctl log.
import PluginHost
import CLinux
import Glibc
import Support
import Testing

@testable import XBBControl

@Suite struct OperationTests {
    private func sample(_ name: String, second: Double, _ stats: String?) throws -> DiskSample {
        let parts = name.split(separator: "/")
        let row = JSON.object([
            ("vbd", .string(name)), ("domid", .number(String(parts[1]))), ("device", .string("xvda")),
            ("worker", .string("running")), ("state", .string("connected")),
        ])
        let value: JSON? = if let stats { try JSON(parsing: stats) } else { nil }
        return DiskSample(row: row, stats: value, time: UInt64(second * 1e9))
    }

    private func stats(reads: Int, writes: Int, received: Int, _ histogram: String) -> String {
        """
        {"totals":{"read_requests":\(reads),"write_requests":\(writes),"barrier_requests":0,"flush_requests":2,
        "discard_requests":0,"read_sectors":\(reads * 8),"write_sectors":\(writes * 8),"reqs_completed_with_error":0,
        "reqs_received":\(received),"reqs_completed":\(reads + writes)},
        "latency_ns":{"read":{"histogram":\(histogram)},"write":{"histogram":[]}}}
        """
    }

    @Test("rates and latencies are those between two looks") func between() throws {
        let before = try sample(
            "vbd/1/51712", second: 1, stats(reads: 1000, writes: 10, received: 1010, "[[1000,900],[9000000,100]]"))
        let now = try sample(
            "vbd/1/51712", second: 3,
            stats(reads: 3000, writes: 30, received: 3042, "[[1000,900],[200000,2000],[9000000,100]]"))
        let rows = TopRow.rows(before: [before], now: [now])
        let disk = try #require(TopRow.json(rows)["vbds"]?.elements.first)
        #expect(disk["read_iops"] == .number("1000.0") && disk["write_iops"] == .number("10.0"))
        #expect(disk["other_iops"] == .number("0.0"))
        #expect(disk["read_bytes_per_second"] == .number("4096000.0"))
        // The slow reads were before the first look.
        #expect(disk["read_p50_ns"]?.unsigned == 200_000 && disk["read_p99_ns"]?.unsigned == 200_000)
        #expect(disk["write_p50_ns"] == .null)
        #expect(disk["queue_depth"]?.unsigned == 12)
        #expect(
            TopTable.lines(rows) == [
                "DOMID  DOMAIN  DEVICE  WORKER    R/s  W/s  R MB/s  W MB/s    R p50    R p99  W p50  W p99  QD  ERR/s",
                "    1  -       xvda    running  1000   10     4.1     0.0  200.0us  200.0us      -      -  12      0",
            ])
        #expect(disk["latency_histogram"] == .array([.array([.integer(200_000), .integer(2000)])]))
    }

    @Test("a new disk, a silent worker and a new worker have their lines") func unusual() throws {
        let before = [
            try sample("vbd/1/51712", second: 1, stats(reads: 500, writes: 0, received: 500, "[]")),
            try sample("vbd/2/51712", second: 1, nil),
        ]
        let now = [
            try sample("vbd/1/51712", second: 2, stats(reads: 40, writes: 0, received: 40, "[]")),
            try sample("vbd/2/51712", second: 2, nil),
            try sample("vbd/3/51712", second: 2, stats(reads: 1, writes: 0, received: 1, "[]")),
        ]
        let disks = TopRow.json(TopRow.rows(before: before, now: now))["vbds"]?.elements ?? []
        #expect(disks.map { $0["read_iops"] } == [.number("40.0"), .null, .null])
        #expect(disks.map { $0["queue_depth"] } == [.number("0"), .null, .number("0")])
    }

    @Test("xbbd remembers its log, and that of each disk") func log() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "exit 2")
        for device in [51712, 51728] as [UInt32] { _ = try lab.makeNode(1, device) }
        try lab.startDaemon()
        try eventually("it is given up") { try lab.row("vbd/1/51712")?["worker"]?.string == "failed" }
        let (all, exit) = try lab.control(["log"])
        #expect(exit == .clean)
        #expect(all.contains(" vbd/1/51728: worker ") && all.contains(" error: vbd/1/51712: worker "))
        let (one, _) = try lab.control(["log", "1", "xvda"])
        #expect(one.contains("given up until the VBD is made anew") && !one.contains("51728"))
        let (json, _) = try lab.control(["log", "1", "xvda", "--json"])
        let events = try JSON(parsing: json)["events"]?.elements ?? []
        #expect(events.allSatisfy { $0["devid"]?.unsigned == 51712 && $0["domid"]?.unsigned == 1 } && events.count >= 3)
        let (last, _) = try lab.control(["log", "--lines", "1"])
        #expect(last.split(separator: "\n").count == 1)
    }

    @Test("journalctl is asked for our fields") func journal() {
        #expect(
            JournalCommand.arguments(domain: 1, device: 51712, lines: 5, follows: true, json: false) == [
                "journalctl", "--lines=5", "--follow", "--no-hostname", "XBB_DOMID=1", "XBB_VDEV=51712",
            ])
        #expect(
            JournalCommand.arguments(domain: nil, device: nil, lines: 5, follows: false, json: true) == [
                "journalctl", "--lines=5", "--output=json", "SYSLOG_IDENTIFIER=xbbd", "+", "SYSLOG_IDENTIFIER=xbb-vbd",
            ])
    }
}
