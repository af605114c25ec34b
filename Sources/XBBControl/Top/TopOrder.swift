// SPDX-License-Identifier: BSD-2-Clause
// Which disks `xbbctl top` shows, and in which order. Pure.

/// What rows are sorted by.
public enum TopOrder: String, CaseIterable, Sendable {
    case activity, domain, disk, format, reads, writes
    case readBytes = "read-bytes"
    case writeBytes = "write-bytes"
    case readLatency = "read-latency"
    case writeLatency = "write-latency"
    case depth, errors

    /// The next one, or the one before.
    func moved(by step: Int) -> TopOrder {
        let all = Self.allCases
        let place = all.firstIndex(of: self) ?? 0
        return all[(place + step + all.count) % all.count]
    }

    /// Names rise, numbers fall, unless it is reversed. Equal rows keep their order, so that they stand still on the screen.
    func sorted(_ rows: [TopRow], isReversed: Bool = false) -> [TopRow] {
        let keyed = rows.enumerated().map { (place: $0.offset, key: key($0.element), row: $0.element) }
        return keyed.sorted { left, right in
            let order = isReversed ? right.key.compared(to: left.key) : left.key.compared(to: right.key)
            return order == 0 ? left.place < right.place : order < 0
        }.map(\.row)
    }

    /// What is compared: words first, then numbers, of which the larger comes first.
    private struct Key {
        var words: [String] = []
        var numbers: [Double] = []

        func compared(to other: Key) -> Int {
            for (one, another) in zip(words, other.words) where one != another { return one < another ? -1 : 1 }
            for (one, another) in zip(numbers, other.numbers) where one != another { return one > another ? -1 : 1 }
            return 0
        }
    }

    private func key(_ row: TopRow) -> Key {
        // A disk of which nothing is known comes behind one that does nothing.
        func number(_ value: Double?) -> Key { Key(numbers: [value ?? -1]) }
        switch self {
        case .activity:
            let all = [row.reads, row.writes, row.others].reduce(0) { $0 + ($1 ?? 0) }
            return Key(numbers: [all, Double(row.depth ?? 0)])
        case .domain: return Key(words: [row.domainName])
        // xvdb comes before xvdaa, as in a listing by number.
        case .disk: return Key(numbers: [-(row.row["devid"]?.double ?? 0)])
        case .format: return Key(words: [row.word("format") ?? ""])
        case .reads: return number(row.reads)
        case .writes: return number(row.writes)
        case .readBytes: return number(row.readBytes)
        case .writeBytes: return number(row.writeBytes)
        case .readLatency: return number(row.readP99.map(Double.init))
        case .writeLatency: return number(row.writeP99.map(Double.init))
        case .depth: return number(row.depth.map(Double.init))
        case .errors: return number(row.errors)
        }
    }
}

/// Words that a row must have, as `web format=qcow2`.
public struct TopFilter: Sendable, Equatable {
    /// As it was typed.
    public let text: String
    private let words: [(key: String?, value: String)]

    /// Any text is a filter; an empty one lets all rows through.
    public init(_ text: String) {
        self.text = text
        words = text.lowercased().split(separator: " ").map { word in
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 2, Self.keys.contains(parts[0]) else { return (nil, String(word)) }
            return (parts[0], parts[1])
        }
    }

    /// What may stand before '='.
    static let keys = ["domain", "disk", "format"]

    /// The same text.
    public static func == (left: TopFilter, right: TopFilter) -> Bool { left.text == right.text }

    /// `key=value` is the whole domain (by name or number), disk or format; another word is a part of one of them or of the path.
    func matches(_ row: TopRow) -> Bool {
        let domain = [row.domainName.lowercased(), "\(row.domain)"]
        let disk = row.word("device")?.lowercased() ?? ""
        let format = row.word("format")?.lowercased() ?? ""
        return words.allSatisfy { key, value in
            switch key {
            case "domain": domain.contains(value)
            case "disk": disk == value
            case "format": format == value
            default: (domain + [disk, format, row.word("path")?.lowercased() ?? ""]).contains { $0.contains(value) }
            }
        }
    }
}
