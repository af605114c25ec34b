// SPDX-License-Identifier: BSD-2-Clause
// Which text may go into a line that somebody reads.

extension String {
    /// True with a character that moves a cursor or ends a line: C0, DEL, C1 (U+0080 to U+009F), U+2028 and U+2029.
    public var hasControlCharacters: Bool {
        unicodeScalars.contains { scalar in
            switch scalar.value {
            case 0..<0x20, 0x7f..<0xa0, 0x2028, 0x2029: true
            default: false
            }
        }
    }
}
