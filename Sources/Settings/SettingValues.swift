// SPDX-License-Identifier: BSD-2-Clause
// Values that were given for settings, with typed access.
public import Base

/// A value of a setting.
public enum SettingValue: Equatable, Sendable, CustomStringConvertible {
    /// On or off.
    case flag(Bool)
    /// A number in the setting's unit.
    case number(Int)
    /// A text.
    case text(String)
    /// Several texts in their order.
    case list([String])

    /// As it stands in xbb.conf.
    public var description: String {
        switch self {
        case .flag(let flag): flag ? "yes" : "no"
        case .number(let number): String(number)
        case .text(let text): text
        case .list(let list): list.joined(separator: " ")
        }
    }

    /// As a number: 1 and 0 for a flag; nil for texts.
    public var number: Int? {
        switch self {
        case .flag(let flag): flag ? 1 : 0
        case .number(let number): number
        case .text, .list: nil
        }
    }
}

/// The values that a file, a command line or a request gives.
public struct SettingValues: Equatable, Sendable {
    private var values: [String: SettingValue] = [:]

    /// Nothing is given.
    public init() {}

    /// What was given; nil: nothing.
    public subscript<Value>(setting: Setting<Value>) -> Value? {
        get { values[setting.declaration.name].flatMap(Value.init) }
        set { values[setting.declaration.name] = newValue?.settingValue }
    }

    /// What was given; nil: nothing.
    public subscript(declaration: SettingDeclaration) -> SettingValue? {
        get { values[declaration.name] }
        set { values[declaration.name] = newValue }
    }

    /// What was given, else what is usual.
    public func value(of setting: Setting<Bool>) -> Bool { self[setting] ?? setting.usual ?? false }

    /// What was given, else what is usual.
    public func value(of setting: Setting<Int>) -> Int { self[setting] ?? setting.usual ?? 0 }

    /// What was given, else what is usual.
    public func value(of setting: Setting<String>) -> String { self[setting] ?? setting.usual ?? "" }

    /// What was given, else what is usual.
    public func value(of setting: Setting<[String]>) -> [String] { self[setting] ?? setting.usual ?? [] }

    /// The most queues of a frontend: what was given, else one for each of `processors`, at most
    /// ``SettingsSchema/mostUsualQueues``.
    public func queueLimit(processors: Int = onlineProcessors()) -> Int {
        self[SettingsSchema.maxQueues] ?? min(max(processors, 1), SettingsSchema.mostUsualQueues)
    }

    /// What was given here, and for the rest what was given in `lower`.
    public func over(_ lower: SettingValues) -> SettingValues {
        var result = lower
        result.values.merge(values) { _, own in own }
        return result
    }

    /// Takes one occurrence of an option: a further element of a list, or the value that counts from now on.
    public mutating func add(_ value: SettingValue, to declaration: SettingDeclaration) {
        if case .list(let more) = value, case .list(let before) = values[declaration.name] {
            values[declaration.name] = .list(before + more)
        } else {
            values[declaration.name] = value
        }
    }
}
