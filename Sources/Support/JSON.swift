// SPDX-License-Identifier: BSD-2-Clause
// A JSON value and its text. Objects keep their order and numbers their digits, so a value that was read can be passed
// on unchanged.
import Base

/// A JSON value (RFC 8259).
public enum JSON: Sendable {
    /// One member of an object.
    public typealias Member = (name: String, value: JSON)

    /// An object, members in order.
    case object([Member])
    /// An array.
    case array([JSON])
    /// A string.
    case string(String)
    /// A number, as its digits.
    case number(String)
    /// true or false.
    case bool(Bool)
    /// null.
    case null

    /// A whole number.
    public static func integer(_ value: some BinaryInteger) -> JSON { .number(String(value)) }

    /// A number; null if it is not finite.
    public static func decimal(_ value: Double) -> JSON { value.isFinite ? .number("\(value)") : .null }

    /// A string, or null.
    public static func text(_ value: String?) -> JSON { value.map { .string($0) } ?? .null }

    /// The first member of that name; nil if there is none or this is not an object.
    public subscript(_ name: String) -> JSON? {
        members.first { $0.name == name }?.value
    }

    /// The members of an object; none of anything else.
    public var members: [Member] {
        guard case .object(let members) = self else { return [] }
        return members
    }

    /// The elements of an array; none of anything else.
    public var elements: [JSON] {
        guard case .array(let elements) = self else { return [] }
        return elements
    }

    /// The string, if this is one.
    public var string: String? {
        guard case .string(let text) = self else { return nil }
        return text
    }

    /// The whole number, if this is one that fits.
    public var unsigned: UInt64? {
        guard case .number(let digits) = self else { return nil }
        return UInt64(digits)
    }

    /// The number, if this is one.
    public var double: Double? {
        guard case .number(let digits) = self else { return nil }
        return Double(digits)
    }

    /// The text on one line.
    public var serialized: String {
        var output = ""
        output.reserveCapacity(1024)
        append(to: &output)
        return output
    }

    private func append(to output: inout String) {
        switch self {
        case .object(let members):
            output += "{"
            for (index, member) in members.enumerated() {
                if index > 0 { output += "," }
                Self.quote(member.name, &output)
                output += ":"
                member.value.append(to: &output)
            }
            output += "}"
        case .array(let elements):
            output += "["
            for (index, element) in elements.enumerated() {
                if index > 0 { output += "," }
                element.append(to: &output)
            }
            output += "]"
        case .string(let text): Self.quote(text, &output)
        case .number(let digits): output += digits
        case .bool(let value): output += value ? "true" : "false"
        case .null: output += "null"
        }
    }

    private static func quote(_ text: String, _ output: inout String) {
        output += "\""
        // Nearly all texts stand for themselves.
        let isPlain = text.utf8.allSatisfy {
            $0 >= 0x20 && $0 < 0x7f && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\")
        }
        if isPlain {
            output += text
            output += "\""
            return
        }
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": output += "\\\""
            case "\\": output += "\\\\"
            case "\n": output += "\\n"
            case "\t": output += "\\t"
            case "\r": output += "\\r"
            case _ where String(scalar).hasControlCharacters:
                let digits = String(scalar.value, radix: 16)
                output += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: output.unicodeScalars.append(scalar)
            }
        }
        output += "\""
    }
}

extension JSON: Equatable {
    /// Equal if kind, order, names and digits are.
    public static func == (left: JSON, right: JSON) -> Bool {
        switch (left, right) {
        case (.object(let left), .object(let right)):
            left.count == right.count && zip(left, right).allSatisfy { $0.name == $1.name && $0.value == $1.value }
        case (.array(let left), .array(let right)): left == right
        case (.string(let left), .string(let right)), (.number(let left), .number(let right)): left == right
        case (.bool(let left), .bool(let right)): left == right
        case (.null, .null): true
        default: false
        }
    }
}
