// SPDX-License-Identifier: BSD-2-Clause
// Text of a server or a URI as a message may show it: nobody forges a line or moves a cursor by it.

enum ShownText {
    /// Characters of foreign text that a message has at most.
    static let most = 200

    /// The beginning of a text, with '?' in the place of each control character.
    static func of(_ bytes: some Collection<UInt8>) -> String {
        // A character has four bytes at most: more are never looked at.
        let text = String(decoding: bytes.prefix(most * 4), as: UTF8.self)
        var shown = String.UnicodeScalarView()
        for scalar in text.unicodeScalars.prefix(most) { shown.append(isHarmless(scalar) ? scalar : "?") }
        return String(shown) + (text.unicodeScalars.count > most || bytes.count > most * 4 ? "..." : "")
    }

    /// No control character, no end of a line, and nothing that turns the direction of writing.
    private static func isHarmless(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0..<0x20, 0x7f..<0xa0, 0x2028, 0x2029, 0x202a...0x202e, 0x2066...0x2069: false
        default: true
        }
    }
}
