// SPDX-License-Identifier: BSD-2-Clause
// The columns of `xbbctl top`, and which of them a screen has room for. Pure.
import Support

/// A column.
struct TopColumn: Sendable {
    let heading: String
    /// In characters; the first and the last column take what is left.
    var width: Int
    var isNumeric = true
    /// What marks it as the one that rows are sorted by.
    var order: TopOrder?
    /// Columns of a higher number are left out first.
    let rank: Int
    let cell: @Sendable (TopRow, BarStyle) -> String

    /// All columns, in the order of the screen. Those of a rank below 5 fit into 80 characters.
    static let all: [TopColumn] = [
        TopColumn(heading: "DOMAIN", width: 9, isNumeric: false, order: .domain, rank: 0) { row, _ in row.domainName },
        TopColumn(heading: "DISK", width: 5, isNumeric: false, order: .disk, rank: 0) { row, _ in
            row.word("device") ?? ""
        },
        TopColumn(heading: "S", width: 1, isNumeric: false, rank: 1) { row, _ in String(state(row)) },
        TopColumn(heading: "R/s", width: 6, order: .reads, rank: 1) { row, _ in rate(row.reads) },
        TopColumn(heading: "W/s", width: 6, order: .writes, rank: 1) { row, _ in rate(row.writes) },
        TopColumn(heading: "R MB/s", width: 6, order: .readBytes, rank: 2) { row, _ in megabytes(row.readBytes) },
        TopColumn(heading: "W MB/s", width: 6, order: .writeBytes, rank: 2) { row, _ in megabytes(row.writeBytes) },
        TopColumn(heading: "R p50", width: 5, rank: 5) { row, _ in duration(row.readP50) },
        TopColumn(heading: "R p99", width: 5, order: .readLatency, rank: 3) { row, _ in duration(row.readP99) },
        TopColumn(heading: "W p50", width: 5, rank: 5) { row, _ in duration(row.writeP50) },
        TopColumn(heading: "W p99", width: 5, order: .writeLatency, rank: 3) { row, _ in duration(row.writeP99) },
        TopColumn(heading: "QD", width: 4, order: .depth, rank: 3) { row, _ in row.depth.map { "\($0)" } ?? "-" },
        TopColumn(heading: LatencyStrip.heading, width: LatencyStrip.width, isNumeric: false, rank: 4) { row, style in
            LatencyStrip.text(row.latencies, style)
        },
        TopColumn(heading: "ERR/s", width: 5, order: .errors, rank: 4) { row, _ in rate(row.errors) },
        TopColumn(heading: "FORMAT", width: 6, isNumeric: false, order: .format, rank: 6) { row, _ in
            row.word("format") ?? "-"
        },
        TopColumn(heading: "TROUBLE OR PATH", width: 20, isNumeric: false, rank: 7) { row, _ in
            row.word("trouble") ?? row.word("path") ?? ""
        },
    ]

    /// The widest that a domain's name is shown.
    private static let widestDomain = 24

    /// Those that fit into `columns` characters, with their widths.
    static func fitting(_ columns: Int) -> [TopColumn] {
        var chosen = all
        func needed() -> Int { chosen.reduce(chosen.count - 1) { $0 + $1.width } }
        while needed() > columns, let most = chosen.map(\.rank).max(), most > 0 { chosen.removeAll { $0.rank == most } }
        var left = columns - needed()
        guard left > 0, let first = chosen.indices.first, let last = chosen.indices.last else { return chosen }
        let more = min(left, widestDomain - chosen[first].width)
        chosen[first].width += more
        left -= more
        if chosen[last].rank == 7 { chosen[last].width += left }
        return chosen
    }

    // MARK: Cells

    /// '!' where something is wrong, 'P' for a disk that is paused, 'C' for one with a guest, '-' for one without.
    private static func state(_ row: TopRow) -> Character {
        if row.isPaused { return "P" }
        if row.word("trouble") != nil { return "!" }
        return row.word("state") == "connected" ? "C" : "-"
    }

    /// A number of at most six characters.
    static func rate(_ value: Double?) -> String {
        guard let value, value.isFinite else { return "-" }
        switch max(value, 0).rounded() {
        case let whole where whole < 100_000: return "\(Int(whole))"
        case let whole where whole < 99_999_500: return "\(Int((whole / 1000).rounded()))k"
        case let whole where whole < 99_999_500_000: return "\(Int((whole / 1_000_000).rounded()))M"
        default: return "much"
        }
    }

    /// 10^6 bytes, with a tenth where there is room.
    static func megabytes(_ value: Double?) -> String {
        guard let value, value.isFinite else { return "-" }
        let tenths = (max(value, 0) / 100_000).rounded()
        guard tenths < 10_000 else { return rate(tenths / 10) }
        return "\(Int(tenths) / 10).\(Int(tenths) % 10)"
    }

    /// A time of at most five characters.
    static func duration(_ nanoseconds: UInt64?) -> String {
        guard let nanoseconds else { return "-" }
        for (unit, size) in [("ns", 1), ("us", 1000), ("ms", 1_000_000)] as [(String, UInt64)]
        where nanoseconds < 1000 * size {
            let tenths = nanoseconds / (size / 10 == 0 ? 1 : size / 10)
            return size > 1 && tenths < 100 ? "\(tenths / 10).\(tenths % 10)\(unit)" : "\(nanoseconds / size)\(unit)"
        }
        let tenths = nanoseconds / 100_000_000
        if tenths >= 100_000 { return "hours" }
        return tenths < 100 ? "\(tenths / 10).\(tenths % 10)s" : "\(tenths / 10)s"
    }
}
