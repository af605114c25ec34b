// SPDX-License-Identifier: BSD-2-Clause
// Columns of text for people.

/// Rows of cells below a heading; each column is as wide as its widest cell.
public struct TextTable {
    /// One column.
    public struct Column: Sendable {
        let heading: String
        let isNumeric: Bool

        /// A column of words, aligned left.
        public static func words(_ heading: String) -> Column { Column(heading: heading, isNumeric: false) }
        /// A column of numbers, aligned right.
        public static func numbers(_ heading: String) -> Column { Column(heading: heading, isNumeric: true) }
    }

    private let columns: [Column]
    private var rows: [[String]] = []

    /// An empty table.
    public init(_ columns: [Column]) {
        self.columns = columns
    }

    /// Adds a row. Missing cells are empty; characters that would break the line are made visible.
    public mutating func append(_ cells: [String]) {
        rows.append(
            columns.indices.map { index in index < cells.count ? Self.printable(cells[index]) : "" })
    }

    /// The lines. The heading comes first, unless all headings are empty. No line ends in a space.
    public var lines: [String] {
        let headings = columns.map(\.heading)
        let all = headings.allSatisfy(\.isEmpty) ? rows : [headings] + rows
        let widths = columns.indices.map { index in all.map { $0[index].count }.max() ?? 0 }
        return all.map { row in
            var line = ""
            for (index, cell) in row.enumerated() {
                let space = String(repeating: " ", count: widths[index] - cell.count)
                if index > 0 { line += "  " }
                line += columns[index].isNumeric ? space + cell : cell + space
            }
            while line.last == " " { line.removeLast() }
            return line
        }
    }

    /// Text without control characters: whoever names a file must not control the terminal.
    public static func printable(_ text: String) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar.properties.generalCategory {
            case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .unassigned, .privateUse:
                result += "\\u{" + String(scalar.value, radix: 16) + "}"
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }
}
