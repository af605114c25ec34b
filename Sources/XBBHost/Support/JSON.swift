// SPDX-License-Identifier: BSD-2-Clause
// Machine output.

/// A JSON value (RFC 8259), written on one line. Objects keep their order.
public indirect enum JSON: Sendable, Equatable {
    /// An object.
    case object([(String, JSON)])
    /// An array.
    case array([JSON])
    /// A string.
    case string(String)
    /// A whole number.
    case number(UInt64)
    /// A negative or positive whole number.
    case signed(Int64)
    /// true or false.
    case bool(Bool)
    /// null.
    case null

    /// Equal if the text is equal.
    public static func == (left: JSON, right: JSON) -> Bool { left.text == right.text }

    /// The text, without line breaks.
    public var text: String {
        var output = ""
        append(to: &output)
        return output
    }

    private func append(to output: inout String) {
        switch self {
        case .object(let members):
            output += "{"
            for (index, member) in members.enumerated() {
                if index > 0 { output += "," }
                Self.quote(member.0, &output)
                output += ":"
                member.1.append(to: &output)
            }
            output += "}"
        case .array(let values):
            output += "["
            for (index, value) in values.enumerated() {
                if index > 0 { output += "," }
                value.append(to: &output)
            }
            output += "]"
        case .string(let text): Self.quote(text, &output)
        case .number(let value): output += String(value)
        case .signed(let value): output += String(value)
        case .bool(let value): output += value ? "true" : "false"
        case .null: output += "null"
        }
    }

    private static func quote(_ text: String, _ output: inout String) {
        output += "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": output += "\\\""
            case "\\": output += "\\\\"
            case "\n": output += "\\n"
            case "\t": output += "\\t"
            case "\r": output += "\\r"
            case _ where scalar.value < 0x20 || scalar.value == 0x7f:
                let digits = String(scalar.value, radix: 16)
                output += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: output.unicodeScalars.append(scalar)
            }
        }
        output += "\""
    }
}
