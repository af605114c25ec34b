// SPDX-License-Identifier: BSD-2-Clause
// Options with Swift types: the schema that the host reads, and the values that it parsed.
import Glibc
import PluginAPI

/// What all options have in common: their entry in the schema.
public protocol OptionSchema: Sendable {
    /// `xbb_option.name`: small letters, digits and `-`.
    var name: StaticString { get }
    /// The entry; what it points to is never freed.
    var entry: xbb_option { get }
}

/// The values of an option of a few words: `enum Mode: String, OptionChoice { case fast, safe }`.
public protocol OptionChoice: CaseIterable, RawRepresentable, Sendable where RawValue == String {}

/// Text that is never logged or shown.
public struct Secret: Sendable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
    /// The text itself.
    public let text: String
    /// Not the text.
    public var description: String { "(secret)" }
    /// Not the text.
    public var debugDescription: String { description }
    /// Without the text.
    public var customMirror: Mirror { Mirror(self, children: []) }
}

/// One option of a plugin, whose value has the type `Value`: `Bool`, `UInt64`, `String`, `Secret` or an ``OptionChoice``.
///
/// Options are listed in ``Plugin`` and read with `opening[option]`.
public struct PluginOption<Value: Sendable>: OptionSchema {
    /// The name, as in `name=value`.
    public let name: StaticString
    private let help: StaticString
    private let type: Int
    private let defaultText: ImmortalText?
    private var range: ClosedRange<UInt64> = 0...0
    private var choices: ImmortalTexts?
    let decode: @Sendable (_ number: UInt64, _ text: String) -> Value?

    private init(
        _ name: StaticString, _ help: StaticString, type: Int, default defaultText: ImmortalText?,
        decode: @escaping @Sendable (UInt64, String) -> Value?
    ) {
        self.name = name
        self.help = help
        self.type = type
        self.defaultText = defaultText
        self.decode = decode
    }

    /// The entry of the schema.
    public var entry: xbb_option {
        var option = unsafe xbb_option()
        unsafe option.name = name.cString
        unsafe option.help = help.cString
        unsafe option.def = defaultText?.cString
        unsafe option.choices = choices?.list
        unsafe option.type = UInt32(type)
        unsafe (option.min, option.max) = (range.lowerBound, range.upperBound)
        return unsafe option
    }
}

extension PluginOption where Value == Bool {
    /// `on` or `off`.
    public static func bool(_ name: StaticString, default value: Bool, help: StaticString) -> Self {
        Self(name, help, type: XBB_OPT_BOOL, default: ImmortalText(value ? "on" : "off")) { number, _ in number != 0 }
    }
}

extension PluginOption where Value == UInt64 {
    /// A whole number. Without a default it must be given.
    public static func count(
        _ name: StaticString, default value: UInt64? = nil, in range: ClosedRange<UInt64>, help: StaticString
    ) -> Self {
        var option = Self(name, help, type: XBB_OPT_UINT, default: value.map { ImmortalText("\($0)") }) { number, _ in
            number
        }
        option.range = range
        return option
    }

    /// Bytes, written with a suffix such as `64K`, in the default too. Without a default it must be given.
    public static func size(
        _ name: StaticString, default value: StaticString? = nil, in range: ClosedRange<UInt64>, help: StaticString
    ) -> Self {
        var option = Self(name, help, type: XBB_OPT_SIZE, default: value.map(ImmortalText.init)) { number, _ in number }
        option.range = range
        return option
    }
}

extension PluginOption where Value == String {
    /// Any text. Without a default it must be given.
    public static func text(_ name: StaticString, default value: StaticString? = nil, help: StaticString) -> Self {
        Self(name, help, type: XBB_OPT_STRING, default: value.map(ImmortalText.init)) { _, text in text }
    }
}

extension PluginOption where Value == Secret {
    /// Text that the host does not show. Without a default it must be given.
    public static func secret(_ name: StaticString, default value: StaticString? = nil, help: StaticString) -> Self {
        Self(name, help, type: XBB_OPT_SECRET, default: value.map(ImmortalText.init)) { _, text in Secret(text: text) }
    }
}

extension PluginOption where Value: OptionChoice {
    /// One of the words of `Value`.
    public static func choice(_ name: StaticString, default value: Value, help: StaticString) -> Self {
        var option = Self(name, help, type: XBB_OPT_ENUM, default: ImmortalText(value.rawValue)) { _, text in
            Value(rawValue: text)
        }
        option.choices = ImmortalTexts(Value.allCases.map { ImmortalText($0.rawValue) })
        return option
    }
}
