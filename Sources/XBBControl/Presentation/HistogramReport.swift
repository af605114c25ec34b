// SPDX-License-Identifier: BSD-2-Clause
// Latencies of a disk, drawn. Pure.
import Support

extension Reports {
    /// One line for each power of two of nanoseconds between the fastest and the slowest request of an operation, with a bar; bars
    /// are as long as `columns` have room for. With the `earlier` answer, requests since then alone.
    public static func histogram(
        _ answer: JSON, earlier: JSON? = nil, _ style: BarStyle = .plain, columns: Int = 80
    ) -> [String] {
        var lines: [String] = []
        for operation in answer["latency_ns"]?.members ?? [] {
            let old = Dictionary(
                LatencyCount.reading(earlier?["latency_ns"]?[operation.name]?["histogram"]).map { ($0.bound, $0.count) }
            ) { $1 }
            let counts = LatencyCount.reading(operation.value["histogram"]).map { entry in
                let before = old[entry.bound] ?? 0
                return LatencyCount(
                    bound: entry.bound, count: entry.count >= before ? entry.count - before : entry.count)
            }
            let drawn = drawn(counts, style, columns)
            if drawn.isEmpty { continue }
            if !lines.isEmpty { lines.append("") }
            lines.append(TextTable.printable(operation.name))
            lines += drawn
        }
        return lines.isEmpty ? ["no request was counted"] : lines
    }

    private static func drawn(_ counts: [LatencyCount], _ style: BarStyle, _ columns: Int) -> [String] {
        // The power of two below which a latency is.
        var sums: [Int: UInt64] = [:]
        for entry in counts where entry.count > 0 {
            sums[64 - entry.bound.leadingZeroBitCount, default: 0] &+= entry.count
        }
        guard let least = sums.keys.min(), let most = sums.keys.max(), let largest = sums.values.max() else {
            return []
        }
        let all = sums.values.reduce(0.0) { $0 + Double($1) }
        return (least...most).map { power in
            let count = sums[power] ?? 0
            let below = power < 64 ? TopColumn.duration(1 << UInt64(power)) : "more"
            let share = "\(Int((Double(count) * 1000 / all).rounded()))"
            let percent = "\(share.dropLast().isEmpty ? "0" : share.dropLast()).\(share.suffix(1))%"
            let head = "< \(right(below, 5)) \(right("\(count)", 10)) \(right(percent, 6)) "
            let width = max(columns - head.count, 8)
            let filled = count == 0 ? 0 : max(Int((Double(count) / Double(largest) * Double(width)).rounded()), 1)
            let line = head + String(repeating: style.full, count: filled)
            return count == 0 ? String(head.dropLast()) : line
        }
    }

    /// With spaces in front; nothing is cut off.
    private static func right(_ text: String, _ width: Int) -> String {
        String(repeating: " ", count: max(width - text.count, 0)) + text
    }
}
