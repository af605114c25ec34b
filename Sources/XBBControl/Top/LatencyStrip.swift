// SPDX-License-Identifier: BSD-2-Clause
// Latencies drawn with characters. Pure.
import Support

/// How bars are drawn: terminals that know no UTF-8 have plain letters.
public struct BarStyle: Sendable, Equatable {
    /// From little to much, without nothing.
    let levels: [Character]
    /// A cell of a bar, and one that is not reached.
    let full, empty: Character

    /// Block elements of Unicode.
    public static let blocks = BarStyle(levels: Array("▁▂▃▄▅▆▇█"), full: "█", empty: "·")
    /// ASCII alone.
    public static let plain = BarStyle(levels: Array(".:-=+*#@"), full: "#", empty: ".")

    /// A part of something, from 0 to 1, as one character; a space for nothing at all, and never for a little.
    func level(_ part: Double) -> Character {
        guard part > 0 else { return " " }
        let place = Int((min(part, 1) * Double(levels.count)).rounded(.up))
        return levels[min(max(place, 1), levels.count) - 1]
    }

    /// A bar of `width` cells.
    func bar(_ part: Double, width: Int) -> String {
        let filled = part > 0 ? min(max(Int((min(part, 1) * Double(width)).rounded()), 1), width) : 0
        return String(repeating: full, count: filled) + String(repeating: empty, count: width - filled)
    }
}

/// Latencies as ten cells, each four times as long as the one before: the darker, the more requests took that long.
enum LatencyStrip {
    /// The ends of the cells in ns, 32 us to 2.1 s; the last one has no end.
    static let ends: [UInt64] = (0..<9).map { 1 << UInt64(15 + 2 * $0) }
    static let width = ends.count + 1
    /// Where microseconds, milliseconds and seconds begin.
    static let heading = "us ms    s"

    static func text(_ latencies: [LatencyCount], _ style: BarStyle) -> String {
        var sums = [Double](repeating: 0, count: width)
        for entry in latencies {
            sums[ends.firstIndex { entry.bound <= $0 } ?? ends.count] += Double(entry.count)
        }
        let all = sums.reduce(0, +)
        return String(sums.map { style.level(all > 0 ? $0 / all : 0) })
    }
}
