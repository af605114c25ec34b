// SPDX-License-Identifier: BSD-2-Clause
// Keys as a terminal sends them. Pure.

/// A key.
public enum TerminalKey: Equatable, Sendable {
    case character(Character)
    case enter, escape, backspace
    case up, down, left, right
    case pageUp, pageDown, home, end

    /// The keys in bytes that came at once: an escape sequence is never sent in parts that a person types.
    public static func keys(in bytes: [UInt8]) -> [TerminalKey] {
        var keys: [TerminalKey] = []
        var rest = bytes[...]
        while let byte = rest.popFirst() {
            switch byte {
            case 0x1b: keys.append(escape(&rest))
            case 0x0a, 0x0d: keys.append(.enter)
            case 0x08, 0x7f: keys.append(.backspace)
            case ..<0x20: break
            case ..<0x7f: keys.append(.character(Character(UnicodeScalar(byte))))
            default: break  // names here are ASCII: what is not is not typed for us
            }
        }
        return keys
    }

    private static func escape(_ rest: inout ArraySlice<UInt8>) -> TerminalKey {
        guard let kind = rest.first, kind == UInt8(ascii: "[") || kind == UInt8(ascii: "O") else { return .escape }
        rest.removeFirst()
        var digits: [UInt8] = []
        // ECMA-48: parameters, then one final byte.
        while let byte = rest.popFirst() {
            guard (0x40...0x7e).contains(byte) else {
                digits.append(byte)
                continue
            }
            switch byte {
            case UInt8(ascii: "A"): return .up
            case UInt8(ascii: "B"): return .down
            case UInt8(ascii: "C"): return .right
            case UInt8(ascii: "D"): return .left
            case UInt8(ascii: "H"): return .home
            case UInt8(ascii: "F"): return .end
            case UInt8(ascii: "~"): return numbered(digits)
            default: return .character("\u{0}")
            }
        }
        return .escape
    }

    private static func numbered(_ digits: [UInt8]) -> TerminalKey {
        switch String(decoding: digits, as: UTF8.self) {
        case "1", "7": .home
        case "4", "8": .end
        case "5": .pageUp
        case "6": .pageDown
        default: .character("\u{0}")
        }
    }
}
