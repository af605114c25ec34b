// SPDX-License-Identifier: BSD-2-Clause
// The screen of `xbbctl top` and drawn latencies, as text.
import Support
import Testing

@testable import XBBControl

@Suite struct TopTests {
    /// A disk that did `reads` and `writes` in a second, each of 4 KiB.
    private static func row(
        _ domain: Int, _ name: String?, device: String = "xvda", reads: Int = 0, writes: Int = 0,
        latencies: [(bound: UInt64, count: UInt64)] = [], format: String = "raw", trouble: String? = nil,
        isPaused: Bool = false
    ) -> TopRow {
        let row = JSON.object([
            ("vbd", .string("vbd/\(domain)/\(device)")), ("domid", .integer(domain)), ("domain", .text(name)),
            ("device", .string(device)), ("devid", .integer(device == "xvda" ? 51712 : 51728)),
            ("worker", .string("running")), ("state", .string("connected")), ("paused", .bool(isPaused)),
            ("format", .string(format)), ("path", .string("/srv/\(name ?? "disk").img")), ("trouble", .text(trouble)),
        ])
        func stats(_ reads: Int, _ writes: Int, _ latencies: [(bound: UInt64, count: UInt64)]) -> JSON {
            let totals = [
                ("read_requests", reads), ("write_requests", writes), ("read_sectors", reads * 8),
                ("write_sectors", writes * 8), ("reqs_received", reads + writes), ("reqs_completed", reads + writes),
            ]
            let zeroes = ["barrier_requests", "flush_requests", "discard_requests", "reqs_completed_with_error"]
            let histogram = JSON.array(latencies.map { .array([.integer($0.bound), .integer($0.count)]) })
            return .object([
                (
                    "totals",
                    .object(totals.map { ($0.0, .integer($0.1)) } + zeroes.map { ($0, .integer(0)) })
                ), ("latency_ns", .object([("read", .object([("histogram", histogram)]))])),
            ])
        }
        let before = DiskSample(row: row, stats: stats(0, 0, []), time: 0)
        let now = DiskSample(row: row, stats: stats(reads, writes, latencies), time: 1_000_000_000)
        return TopRow(before, now)
    }

    private static let rows = [
        row(1, "web", reads: 10, latencies: [(20_000, 10)]),
        row(
            2, "database", device: "xvdb", reads: 1200, writes: 340,
            latencies: [(100_000, 900), (1_000_000, 290), (3 << 30, 10)],
            format: "qcow2"),
        row(3, nil, isPaused: true), row(4, "mail", trouble: "the image is gone"),
    ]

    private func screen(_ change: (inout TopScreen) -> Void = { _ in }) -> TopScreen {
        var screen = TopScreen(interval: 1, style: .plain)
        screen.take(Self.rows, at: "12:00:00")
        change(&screen)
        return screen
    }

    private func text(_ screen: TopScreen, _ rows: Int = 24, _ columns: Int = 80) -> [String] {
        screen.lines(ScreenSize(rows: rows, columns: columns)).map(\.text)
    }

    @Test("80 columns: the busiest first, rates, latencies, and a strip of how long requests took") func picture() {
        #expect(
            text(screen(), 9).map { $0.last == " " ? String($0.reversed().drop { $0 == " " }.reversed()) : $0 } == [
                "xbbctl top 12:00:00, 4 disks, 1 with trouble, by activity, every 1.0 s",
                "R [###################] 5.0 MB/s 1210/s  W [######..............] 1.4 MB/s 340/s",
                "DOMAIN     DISK  S    R/s    W/s R MB/s W MB/s R p99 W p99   QD us ms    s ERR/s",
                "database   xvdb  C   1200    340    4.9    1.4 1.0ms     -    0  * :     .     0",
                "web        xvda  C     10      0    0.0    0.0  20us     -    0 @              0",
                "3          xvda  P      0      0    0.0    0.0     -     -    0                0",
                "mail       xvda  !      0      0    0.0    0.0     -     -    0                0",
                "", "q quit  h help  s sort  r reverse  / filter  p pause  space now",
            ])
    }

    @Test(
        "whatever the size, as many lines as the terminal has, none too long",
        arguments: [(4, 20), (5, 33), (24, 80), (50, 200), (0, 0)])
    func sizes(_ rows: Int, _ columns: Int) {
        let size = ScreenSize(rows: rows, columns: columns)
        for style in [BarStyle.plain, .blocks] {
            var screen = TopScreen(interval: 0.5, style: style)
            screen.take((0..<100).map { Self.row($0, "\u{4e2d}\u{6587}\u{1b}[2J name", reads: $0) }, at: "12:00:00")
            for key in [.character("?"), .character("x"), .end, .character("/")] as [TerminalKey] {
                let lines = screen.lines(size)
                #expect(lines.count == max(rows, 4))
                for line in lines {
                    let width = line.text.reduce(0) { $0 + CellText.width($1) }
                    #expect(width <= max(columns, 20), "\(line.text)")
                    #expect(!line.text.unicodeScalars.contains { $0.value < 0x20 || $0.value == 0x7f })
                }
                _ = screen.take(key, size)
            }
        }
    }

    @Test("wide terminals show more, narrow ones the most important") func columns() {
        func headings(_ columns: Int) -> [String] { TopColumn.fitting(columns).map(\.heading) }
        #expect(headings(20) == ["DOMAIN", "DISK"])
        #expect(headings(40) == ["DOMAIN", "DISK", "S", "R/s", "W/s"])
        #expect(headings(80).count == 12 && headings(80).contains("us ms    s"))
        #expect(headings(200) == TopColumn.all.map(\.heading))
        #expect(text(screen(), 9, 160)[6].contains("the image is gone"))
    }

    @Test("orders, and the other way round") func orders() {
        func order(_ order: TopOrder, _ isReversed: Bool = false) -> [UInt64] {
            order.sorted(Self.rows, isReversed: isReversed).map(\.domain)
        }
        #expect(order(.activity) == [2, 1, 3, 4] && order(.activity, true) == [3, 4, 1, 2])
        #expect(order(.domain) == [3, 2, 4, 1])
        #expect(order(.disk) == [1, 3, 4, 2] && order(.format) == [2, 1, 3, 4])
        #expect(order(.writes) == [2, 1, 3, 4] && order(.readLatency) == [2, 1, 3, 4])
        for step in TopOrder.allCases { #expect(step.moved(by: 1).moved(by: -1) == step) }
    }

    @Test(
        "filters",
        arguments: [
            ("", [1, 2, 3, 4]), ("data", [2]), ("domain=data", []), ("domain=3", [3]), ("WEB", [1]), ("disk=xvdb", [2]),
            ("format=qcow2 data", [2]), ("format=qcow2 web", []), ("/srv/mail", [4]), ("x=y", []),
        ] as [(String, [UInt64])])
    func filters(_ words: String, _ domains: [UInt64]) {
        #expect(Self.rows.filter(TopFilter(words).matches).map(\.domain) == domains)
    }

    @Test("keys: sort, reverse, filter, pause, help, quit") func keys() {
        let size = ScreenSize(rows: 24, columns: 80)
        var screen = screen()
        func press(_ text: String) -> TopScreen.Wish {
            TerminalKey.keys(in: Array(text.utf8)).map { screen.take($0, size) }.last ?? .nothing
        }
        #expect(press(" ") == .lookNow && press("x") == .nothing)
        _ = press("s")
        #expect(screen.order == .domain && self.text(screen)[2].hasPrefix("DOMAINv "))
        _ = press("r")
        #expect(self.text(screen)[2].hasPrefix("DOMAIN^ ") && self.text(screen)[3].hasPrefix("web "))
        _ = press("/wrong\u{7f}\u{1b}")
        #expect(screen.filter.text == "")
        _ = press("/mai")
        #expect(self.text(screen).last == "only disks with (Enter: take, Esc: leave): mai_")
        _ = press("\r")
        #expect(self.text(screen)[0].contains("1 of 4 disks") && self.text(screen)[3].hasPrefix("mail "))
        #expect(self.text(screen)[0].contains("only 'mai'"))
        _ = press("\u{1b}")
        #expect(self.text(screen)[0].contains("4 disks"))
        _ = press("p")
        screen.take([], at: "12:00:01")
        #expect(self.text(screen)[0].contains("12:00:00") && press(" ") == .nothing)
        _ = press("p")
        screen.take([], at: "12:00:01")
        #expect(self.text(screen)[0].contains("12:00:01, 0 disks"))
        _ = press("h")
        #expect(self.text(screen).contains { $0.contains("Any key goes back") })
        _ = press("a")
        #expect(press("h") == .nothing && press("q") == .quit)
        #expect(press("q") == .quit)
    }

    @Test("what a terminal sends") func terminal() {
        func keys(_ text: String) -> [TerminalKey] { TerminalKey.keys(in: Array(text.utf8)) }
        #expect(
            keys("\u{1b}[A\u{1b}OB\u{1b}[5~\u{1b}[6~\u{1b}[H\u{1b}[4~") == [
                .up, .down, .pageUp, .pageDown, .home, .end,
            ])
        #expect(keys("\u{1b}") == [.escape] && keys("a\u{1b}[1;5Cb") == [.character("a"), .right, .character("b")])
        #expect(
            keys("\u{1b}[") == [.escape] && keys("é\u{1}") == [] && keys("\r\n\u{8}") == [.enter, .enter, .backspace])
    }

    @Test("many disks are scrolled through") func scrolling() {
        let size = ScreenSize(rows: 10, columns: 80)
        var screen = TopScreen(interval: 1, style: .plain)
        screen.take((0..<20).map { Self.row($0, "d\($0)") }, at: "")
        func first() -> Substring { screen.lines(size)[3].text.prefix { $0 != " " } }
        #expect(first() == "d0" && screen.lines(size)[9].text.hasPrefix("14 more  q quit"))
        _ = screen.take(.down, size)
        #expect(first() == "d1")
        _ = screen.take(.pageDown, size)
        #expect(first() == "d7")
        _ = screen.take(.end, size)
        #expect(first() == "d14")
        _ = screen.take(.up, size)
        #expect(first() == "d13")
        // Fewer disks than the place that was scrolled to.
        screen.take([Self.row(1, "one")], at: "")
        #expect(first() == "one")
        _ = screen.take(.home, size)
        #expect(first() == "one")
    }

    @Test("figures fit into their columns") func figures() {
        #expect(
            [0, 99_999.4, 123_456, 99_999_400, 2e9, 1e30, .nan].map { TopColumn.rate($0) } == [
                "0", "99999", "123k", "99999k", "2000M", "much", "-",
            ])
        #expect(
            [0, 49_999, 150_000, 999_900_000, 1e9].map { TopColumn.megabytes($0) } == [
                "0.0", "0.0", "0.2", "999.9", "1000",
            ])
        #expect(
            [0, 999, 1000, 9_960, 123_456, 9_900_000, 999_999_999, 12_345_678_901, 1 << 50].map {
                TopColumn.duration($0)
            } == [
                "0ns", "999ns", "1.0us", "9.9us", "123us", "9.9ms", "999ms", "12s", "hours",
            ])
        #expect(TopColumn.duration(nil) == "-" && TopColumn.rate(nil) == "-")
    }

    @Test("latencies are drawn by powers of two") func histogram() throws {
        let answer = try JSON(
            parsing: """
                {"latency_ns":{"read":{"histogram":[[14335,1],[16383,99],[32767,300],[131071,1]]},
                "write":{"histogram":[]}}}
                """)
        #expect(
            Reports.histogram(answer, columns: 44) == [
                "read", "<  16us        100  24.9% ######", "<  32us        300  74.8% ##################",
                "<  65us          0   0.0%", "< 131us          1   0.2% #",
            ])
        #expect(Reports.histogram(answer, earlier: answer) == ["no request was counted"])
        for text in [
            "null", "{\"latency_ns\":[]}",
            "{\"latency_ns\":{\"x\":{\"histogram\":[[18446744073709551615,18446744073709551615],[0,1],[1]]}}}",
        ] {
            let odd = try JSON(parsing: text)
            for line in Reports.histogram(odd, .blocks, columns: 1) { #expect(line.count < 60) }
        }
    }
}
