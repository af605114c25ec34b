// SPDX-License-Identifier: BSD-2-Clause
// Typed options of plugins: the host parses and checks the text, the plugin gets the values.
import Base
import CLinux
import Glibc
import PluginAPI

/// One option of a plugin's schema (`struct xbb_option`).
public struct PluginOption: Sendable {
    /// The type of its value.
    public enum Kind: Sendable, Equatable {
        /// on or off
        case bool
        /// A number
        case uint
        /// A number of bytes, with a suffix: 64K
        case size
        /// Text
        case string
        /// One of a list
        case choice([String])
        /// Text that is never shown
        case secret
        /// A type that this host does not know.
        case unknown(UInt32)

        /// Its name in `xbbctl plugins`.
        public var word: String {
            switch self {
            case .bool: "bool"
            case .uint: "uint"
            case .size: "size"
            case .string: "string"
            case .choice(let choices): choices.joined(separator: "|")
            case .secret: "secret"
            case .unknown(let type): "type \(type)"
            }
        }
    }
    /// The option's name.
    public let name: String
    /// One line of help.
    public let help: String
    /// The default as text; nil if the option is mandatory.
    public let defaultText: String?
    /// The type of its value.
    public let kind: Kind
    /// Bounds of a number.
    package let bounds: ClosedRange<UInt64>

    init?(_ option: xbb_option) {
        guard let name = unsafe option.name else { return nil }
        self.name = unsafe String(cString: name)
        help = unsafe option.help.map { unsafe String(cString: $0) } ?? ""
        defaultText = unsafe option.def.map { unsafe String(cString: $0) }
        let low = unsafe option.min
        bounds = unsafe option.max > low ? low...option.max : low...UInt64.max
        let type = unsafe option.type
        switch Int(type) {
        case Int(XBB_OPT_BOOL): kind = .bool
        case Int(XBB_OPT_UINT): kind = .uint
        case Int(XBB_OPT_SIZE): kind = .size
        case Int(XBB_OPT_STRING): kind = .string
        case Int(XBB_OPT_SECRET): kind = .secret
        case Int(XBB_OPT_ENUM):
            var choices: [String] = []
            if let list = unsafe option.choices {
                while choices.count < 64, let entry = unsafe list[choices.count] {
                    choices.append(unsafe String(cString: entry))
                }
            }
            kind = .choice(choices)
        default: kind = .unknown(type)
        }
    }

    /// Converts text to the number and the text that the plugin gets.
    func parse(_ text: String) throws(OperationError) -> (number: UInt64, text: String?) {
        func refuse(_ expected: String) -> OperationError {
            let shown = kind == .secret ? "(secret)" : "'\(text)'"
            return OperationError(.option, "option \(name)=\(shown): expected \(expected)")
        }
        switch kind {
        case .bool:
            switch text {
            case "on", "yes", "true", "1": return (1, nil)
            case "off", "no", "false", "0": return (0, nil)
            default: throw refuse("on or off")
            }
        case .uint, .size:
            guard let number = Self.number(text, withSuffix: kind == .size), bounds.contains(number) else {
                throw refuse("a number from \(bounds.lowerBound) to \(bounds.upperBound)")
            }
            return (number, nil)
        case .string, .secret:
            return (0, text)
        case .choice(let choices):
            guard let index = choices.firstIndex(of: text) else { throw refuse(choices.joined(separator: " or ")) }
            return (UInt64(index), text)
        case .unknown:
            throw refuse("an option type that this host knows")
        }
    }

    /// A decimal number; with `withSuffix` it may end in K, M, G or T for powers of 1024.
    public static func number(_ text: String, withSuffix: Bool) -> UInt64? {
        var digits = text[...]
        var shift: UInt64 = 0
        if withSuffix, let last = digits.last, let power = "KMGT".firstIndex(of: Character(last.uppercased())) {
            shift = UInt64("KMGT".distance(from: "KMGT".startIndex, to: power) + 1) * 10
            digits = digits.dropLast()
        }
        guard !digits.isEmpty, digits.allSatisfy({ $0.isASCII && $0.isNumber }), let number = UInt64(digits) else {
            return nil
        }
        let (scaled, overflow) = number.multipliedReportingOverflow(by: 1 << shift)
        return overflow ? nil : scaled
    }
}

/// The values that a plugin gets at open(), in the order of its schema. The texts live as long as this object.
///
/// `@unchecked Sendable`: nothing changes after init().
@safe
package final class PluginOptionValues: @unchecked Sendable {
    package let values: UnsafeMutablePointer<xbb_value>
    package let count: Int

    /// Checks `given` against the schema and fills in the defaults.
    package init(_ schema: [PluginOption], given: [String: String]) throws(OperationError) {
        for name in given.keys.sorted() where !schema.contains(where: { $0.name == name }) {
            let known = schema.map(\.name).joined(separator: ", ")
            throw OperationError(
                .option, "unknown option '\(name)'; this plugin takes: \(known.isEmpty ? "none" : known)")
        }
        var parsed: [(number: UInt64, text: String?)] = []
        for option in schema {
            guard let text = given[option.name] ?? option.defaultText else {
                throw OperationError(.option, "option '\(option.name)' must be given: \(option.help)")
            }
            parsed.append(try option.parse(text))
        }
        count = parsed.count
        unsafe values = .allocate(capacity: max(count, 1))
        for (index, value) in parsed.enumerated() {
            let text = unsafe value.text.map { unsafe strdup($0) } ?? nil
            unsafe (values + index).initialize(to: xbb_value(num: value.number, str: text))
        }
    }

    deinit {
        for index in 0..<count { unsafe free(UnsafeMutablePointer(mutating: values[index].str)) }
        unsafe values.deallocate()
    }
}
