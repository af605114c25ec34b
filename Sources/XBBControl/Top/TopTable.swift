// SPDX-License-Identifier: BSD-2-Clause
// `xbbctl top` for a file or a script: a table of all columns.
import CLinux
import Glibc
import Support

/// A table that no screen cuts off.
public enum TopTable {
    /// The local time of day.
    public static var clock: String {
        String(LocalTime.text(.integer(Glibc.time(nil))).suffix(8))
    }

    /// The rows that are shown, in their order.
    public static func chosen(
        _ rows: [TopRow], _ filter: TopFilter, _ order: TopOrder, isReversed: Bool
    ) -> [TopRow] {
        order.sorted(rows.filter(filter.matches), isReversed: isReversed)
    }

    /// A heading and one line for each disk.
    public static func lines(_ rows: [TopRow]) -> [String] {
        var table = TextTable([
            .numbers("DOMID"), .words("DOMAIN"), .words("DEVICE"), .words("WORKER"), .numbers("R/s"), .numbers("W/s"),
            .numbers("R MB/s"), .numbers("W MB/s"), .numbers("R p50"), .numbers("R p99"), .numbers("W p50"),
            .numbers("W p99"), .numbers("QD"), .numbers("ERR/s"),
        ])
        for row in rows {
            func latency(_ value: UInt64?) -> String { value == nil ? "-" : Reports.duration(.integer(value ?? 0)) }
            table.append([
                "\(row.domain)", row.word("domain") ?? "-", row.word("device") ?? "-", row.word("worker") ?? "-",
                TopColumn.rate(row.reads), TopColumn.rate(row.writes), TopColumn.megabytes(row.readBytes),
                TopColumn.megabytes(row.writeBytes), latency(row.readP50), latency(row.readP99), latency(row.writeP50),
                latency(row.writeP99), row.depth.map { "\($0)" } ?? "-", TopColumn.rate(row.errors),
            ])
        }
        return table.lines
    }
}
