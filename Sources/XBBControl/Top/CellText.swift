// SPDX-License-Identifier: BSD-2-Clause
// Text in cells of a terminal. Pure.

/// How much room text takes on a terminal.
enum CellText {
    /// Cells that a character takes: two for those of East Asian scripts and pictures.
    static func width(_ character: Character) -> Int {
        guard let scalar = character.unicodeScalars.first else { return 0 }
        switch scalar.value {
        case 0x1100...0x115f, 0x2e80...0xa4cf, 0xac00...0xd7a3, 0xf900...0xfaff, 0xfe30...0xfe6f, 0xff00...0xff60,
            0xffe0...0xffe6, 0x1f300...0x1faff, 0x20000...0x3fffd:
            return 2
        default: return 1
        }
    }

    /// Exactly `width` cells, with spaces in front of a number and behind words; text that is longer is cut.
    static func padded(_ text: String, _ width: Int, isNumeric: Bool = false) -> String {
        let (cut, used) = fitting(text, width)
        let space = String(repeating: " ", count: max(width - used, 0))
        return isNumeric ? space + cut : cut + space
    }

    /// At most `width` cells, and how many those are.
    static func fitting(_ text: String, _ width: Int) -> (text: String, width: Int) {
        var (result, used) = ("", 0)
        for character in text {
            let more = Self.width(character)
            if used + more > width { break }
            result.append(character)
            used += more
        }
        return (result, used)
    }
}
