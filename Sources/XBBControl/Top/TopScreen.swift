// SPDX-License-Identifier: BSD-2-Clause
// The screen of `xbbctl top`: what is shown of disks, in a terminal of any size, and what keys do. Pure.

/// One line of the screen.
public struct ScreenLine: Equatable, Sendable {
    /// Without control characters, and not longer than the screen is wide.
    public let text: String
    /// Shown inverse.
    public var isInverse = false
}

/// The size of a terminal in characters.
public struct ScreenSize: Equatable, Sendable {
    let rows, columns: Int

    /// What is too small to show anything counts as 4 rows of 20 columns.
    public init(rows: Int, columns: Int) {
        self.rows = min(max(rows, 4), 1000)
        self.columns = min(max(columns, 20), 1000)
    }
}

/// What is shown, and how.
public struct TopScreen: Sendable {
    /// What a key asks for beside another picture.
    public enum Wish: Equatable, Sendable {
        case nothing, lookNow, quit
    }

    /// What disks are sorted by.
    public var order = TopOrder.activity
    /// The other way round.
    public var isReversed = false
    /// Which disks are shown.
    public var filter = TopFilter("")
    /// The picture is kept as it is.
    private(set) var isPaused = false
    private(set) var showsHelp = false
    /// A filter that is being typed.
    private(set) var input: String?
    /// Rows that are above the screen.
    private var first = 0
    private let interval: Double
    private let style: BarStyle
    private var rows: [TopRow] = []
    private var time = ""
    /// Why there is nothing new.
    private var problem: String?
    /// The most bytes in a second that were seen: the end of the bars.
    private var peak = 1.0

    /// Nothing is known yet; it is looked every `interval` seconds.
    public init(interval: Double, style: BarStyle) {
        self.interval = interval
        self.style = style
    }

    /// Shows another look, of a local time.
    public mutating func take(_ rows: [TopRow], at time: String) {
        guard !isPaused else { return }
        (self.rows, self.time, problem) = (rows, time, nil)
        let sums = Self.sums(rows)
        peak = max(peak, sums.readBytes, sums.writeBytes)
    }

    /// There is nothing new: what is known stays, and why is said.
    public mutating func take(problem: String) { self.problem = problem }

    // MARK: Keys

    /// Does what a key asks for.
    public mutating func take(_ key: TerminalKey, _ size: ScreenSize) -> Wish {
        if let input { return type(key, input) }
        if showsHelp {
            showsHelp = false
            return key == .character("q") ? .quit : .nothing
        }
        switch key {
        case .character("q"): return .quit
        case .character("h"), .character("?"): showsHelp = true
        case .character("s"), .character(">"), .right: order = order.moved(by: 1)
        case .character("S"), .character("<"), .left: order = order.moved(by: -1)
        case .character("r"): isReversed.toggle()
        case .character("/"): input = filter.text
        case .character("p"): isPaused.toggle()
        case .character(" "): return isPaused ? .nothing : .lookNow
        case .escape: filter = TopFilter("")
        case .character("j"), .down: scroll(1, size)
        case .character("k"), .up: scroll(-1, size)
        case .pageDown: scroll(size.rows - Self.frame, size)
        case .pageUp: scroll(Self.frame - size.rows, size)
        case .home: first = 0
        case .end: scroll(rows.count, size)
        default: break
        }
        return .nothing
    }

    private mutating func type(_ key: TerminalKey, _ text: String) -> Wish {
        switch key {
        case .enter:
            filter = TopFilter(text)
            (input, first) = (nil, 0)
        case .escape: input = nil
        case .backspace: input = String(text.dropLast())
        case .character(let letter) where letter != "\u{0}": input = String((text + String(letter)).prefix(200))
        default: break
        }
        return .nothing
    }

    private mutating func scroll(_ step: Int, _ size: ScreenSize) {
        first = min(max(first + step, 0), max(shown.count - (size.rows - Self.frame), 0))
    }

    // MARK: The picture

    /// Lines that are no disks: two of sums, the heading, and the keys.
    private static let frame = 4

    private var shown: [TopRow] { order.sorted(rows.filter(filter.matches), isReversed: isReversed) }

    /// As many lines as the terminal has.
    public func lines(_ size: ScreenSize) -> [ScreenLine] {
        if showsHelp { return padded(Self.help.map { ScreenLine(text: $0) }, size) }
        let shown = shown
        let columns = TopColumn.fitting(size.columns)
        let room = size.rows - Self.frame
        let start = min(first, max(shown.count - room, 0))
        var lines = [ScreenLine(text: status(shown.count)), ScreenLine(text: bars(size.columns))]
        lines.append(ScreenLine(text: heading(columns), isInverse: true))
        for row in shown[start...].prefix(room) {
            lines.append(
                ScreenLine(
                    text: columns.map { column in
                        let text = TextTable.printable(column.cell(row, style))
                        return CellText.padded(text, column.width, isNumeric: column.isNumeric)
                    }.joined(separator: " ")))
        }
        while lines.count < size.rows - 1 { lines.append(ScreenLine(text: "")) }
        let hidden = shown.count - min(room, shown.count - start)
        lines.append(ScreenLine(text: footer(hidden: hidden)))
        return padded(lines, size)
    }

    private func padded(_ lines: [ScreenLine], _ size: ScreenSize) -> [ScreenLine] {
        let empty = Array(repeating: ScreenLine(text: ""), count: max(size.rows - lines.count, 0))
        return (lines.prefix(size.rows) + empty).map { line in
            let text =
                line.isInverse
                ? CellText.padded(line.text, size.columns) : CellText.fitting(line.text, size.columns).text
            return ScreenLine(text: text, isInverse: line.isInverse)
        }
    }

    private func status(_ count: Int) -> String {
        if let problem { return TextTable.printable("xbbctl top: \(problem)") }
        let troubles = rows.count { $0.word("trouble") != nil }
        let all = rows.count == 1 ? "1 disk" : "\(rows.count) disks"
        var parts = ["xbbctl top \(time)", count == rows.count ? all : "\(count) of \(all)"]
        if !filter.text.isEmpty { parts.append("only '\(filter.text)'") }
        if troubles > 0 { parts.append("\(troubles) with trouble") }
        parts.append("by \(order.rawValue)\(isReversed ? " reversed" : "")")
        parts.append(isPaused ? "paused" : "every \(interval) s")
        return TextTable.printable(parts.joined(separator: ", "))
    }

    private static func sums(_ rows: [TopRow]) -> (reads: Double, writes: Double, readBytes: Double, writeBytes: Double)
    {
        rows.reduce((0, 0, 0, 0)) { sum, row in
            (
                sum.0 + (row.reads ?? 0), sum.1 + (row.writes ?? 0), sum.2 + (row.readBytes ?? 0),
                sum.3 + (row.writeBytes ?? 0)
            )
        }
    }

    /// What all disks read and write in a second, beside the most that was seen.
    private func bars(_ columns: Int) -> String {
        let sums = Self.sums(rows)
        func part(_ name: String, _ bytes: Double, _ requests: Double) -> String {
            let text = " \(TopColumn.megabytes(bytes)) MB/s \(TopColumn.rate(requests))/s"
            let width = max((columns - 2) / 2 - text.count - name.count - 3, 4)
            return CellText.padded("\(name) [\(style.bar(bytes / peak, width: width))]\(text)", (columns - 2) / 2)
        }
        return part("R", sums.readBytes, sums.reads) + "  " + part("W", sums.writeBytes, sums.writes)
    }

    private func heading(_ columns: [TopColumn]) -> String {
        columns.map { column in
            // The column that rows are sorted by is marked, where the mark has room.
            let isMarked = column.order == order && column.heading.count < column.width
            let mark = isMarked ? (isReversed ? "^" : "v") : ""
            return CellText.padded(column.heading + mark, column.width, isNumeric: column.isNumeric)
        }.joined(separator: " ")
    }

    private func footer(hidden: Int) -> String {
        if let input { return "only disks with (Enter: take, Esc: leave): \(input)_" }
        let more = hidden > 0 ? "\(hidden) more  " : ""
        return more + "q quit  h help  s sort  r reverse  / filter  p pause  space now"
    }

    private static let help = [
        "xbbctl top: what disks do between two looks",
        "",
        "  q            quit",
        "  space        look now",
        "  p            keep the picture, and go on",
        "  s  >  right  sort by what comes next",
        "  S  <  left   sort by what comes before",
        "  r            the other way round",
        "  /            only disks with these words: a part of domain, disk, format",
        "               or path; domain=web, disk=xvda, format=qcow2: all of it",
        "  Esc          all disks again",
        "  up, down, page up, page down, home, end",
        "",
        "  S            C connected, - no guest, P paused, ! trouble (xbbctl list)",
        "  us ms    s   how long requests took: the first cell is up to 33 us,",
        "               each further one four times as long, the last one more than 2 s",
        "  R p99        99 of 100 reads did not take longer",
        "  QD           requests that are not answered yet",
        "",
        "Any key goes back.",
    ]
}
