// SPDX-License-Identifier: BSD-2-Clause
// What is declared of a setting. Everything that reads, checks, prints or explains a setting goes by its declaration.

/// What a number counts.
public enum SettingUnit: String, Sendable {
    /// A plain number.
    case none = ""
    /// Microseconds.
    case microseconds
    /// Seconds.
    case seconds
    /// 2^20 bytes.
    case mebibytes = "MiB"
    /// Bytes; K, M, G or T behind a number is a power of 1024.
    case bytes
    /// The same in each second.
    case bytesPerSecond = "bytes/s"
    /// Requests of a guest in each second.
    case requestsPerSecond = "requests/s"
}

/// Which texts are a value.
public struct TextRule: Sendable {
    /// Completes "expected ...".
    public let expected: String
    /// All values, where there are few; else empty.
    public let choices: [String]
    /// Relative values of a command line begin in the working directory.
    public let isPath: Bool
    /// True for a value.
    public let accepts: @Sendable (String) -> Bool

    /// Texts that `accepts` takes; `expected` says which those are.
    public init(expected: String, isPath: Bool = false, accepts: @escaping @Sendable (String) -> Bool) {
        self.expected = expected
        self.isPath = isPath
        self.accepts = accepts
        choices = []
    }

    /// One of several words.
    public init(choices: [String]) {
        self.choices = choices
        expected =
            choices.count < 2
            ? choices.joined() : choices.dropLast().joined(separator: ", ") + " or \(choices[choices.count - 1])"
        isPath = false
        accepts = { choices.contains($0) }
    }

    /// An absolute path.
    public static let path = TextRule(expected: "a path that begins with '/'", isPath: true) { $0.hasPrefix("/") }

    /// A user or a group.
    public static let account = TextRule(expected: "a name as in /etc/passwd or /etc/group") { text in
        !text.isEmpty && !text.contains { " \t:/,".contains($0) }
    }

    /// "none", or the first and the last number of a range of users, of at least 1000 each.
    public static let userNumbers = TextRule(expected: "none or two numbers from 1000, such as 64000-64999") {
        $0 == "none" || range($0) != nil
    }

    /// The range that ``userNumbers`` takes.
    public static func range(_ text: String) -> ClosedRange<UInt32>? {
        let ends = text.split(separator: "-", omittingEmptySubsequences: false).map { UInt32($0) }
        guard ends.count == 2, let first = ends[0], let last = ends[1], first >= 1000, first <= last, last < .max
        else { return nil }
        return first...last
    }

    /// "auto", "none", or an absolute path.
    public static let controlGroup = TextRule(expected: "auto, none or a path that begins with '/'") {
        $0 == "auto" || $0 == "none" || $0.hasPrefix("/") && !$0.contains("/..") && $0.utf8.count > 1
    }

    /// A name that can stand below "backend" in XenStore: a letter, then letters, digits, '-' and '_', at most 32.
    public static let backendKind = TextRule(expected: "a name such as vbd, qdisk or vbd3") { text in
        let bytes = text.utf8
        func isLetter(_ byte: UInt8) -> Bool { (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20) }
        guard let first = bytes.first, bytes.count <= 32, isLetter(first) else { return false }
        return bytes.allSatisfy {
            isLetter($0) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) || $0 == UInt8(ascii: "-")
                || $0 == UInt8(ascii: "_")
        }
    }
}

/// What values a setting has.
public enum SettingType: Sendable {
    /// On or off.
    case flag
    /// A whole number in a range.
    case number(ClosedRange<Int>, SettingUnit)
    /// One text.
    case text(TextRule)
    /// Several texts, each once.
    case list(TextRule)
}

/// Whose a setting is.
public enum SettingScope: Sendable {
    /// xbbd's own.
    case daemon
    /// Every worker has the same.
    case worker
    /// Differs from disk to disk where a disk's target says so.
    case disk
    /// Said at one start of a program and nowhere else.
    case invocation
}

/// The sections of xbb.conf.
public enum ConfigurationSection: String, CaseIterable, Sendable {
    /// xbbd.
    case xbbd
    /// What all workers are told.
    case worker
    /// What disks begin with.
    case tunables
}

/// How a worker is told a setting on its command line.
public enum WorkerForm: Sendable {
    /// It is not.
    case none
    /// `--name VALUE`, for each element of a list; of a flag `--name` or `--no-name`.
    case option
    /// `--tunable old_name=NUMBER`, as workers of all versions understand it; a text only where it is not the usual one.
    case tunable
}

/// One setting, whatever its type in Swift.
public struct SettingDeclaration: Sendable {
    /// Small letters, digits and '-'; unique.
    public let name: String
    /// What values it has.
    public let type: SettingType
    /// One line: a noun phrase or a command, without range, default and full stop.
    public let help: String
    /// The same for `--no-name`, of a flag that is usually on.
    public let offHelp: String
    /// Stands for the value in usage texts; empty for a flag.
    public let placeholder: String
    /// The value that counts where none is given; nil where that is no fixed value.
    public let usual: SettingValue?
    /// What counts where none is given, in words; empty for what ``usual`` says.
    public let otherwise: String
    /// A value for the file that is shipped, where there is no ``usual`` one.
    public let example: String
    /// Whose it is.
    public let scope: SettingScope
    /// Where it stands in xbb.conf; nil: nowhere.
    public let section: ConfigurationSection?
    /// How workers are told.
    public let workerForm: WorkerForm
    /// `xbbctl set` takes it while a disk is served.
    public let changesWhileServed: Bool
    /// The option of xbbd; nearly always the name.
    public let daemonOption: String

    /// The name as programs of the seed spelled it, which is still taken, and spoken between programs: "poll_us".
    public var oldName: String {
        String(decoding: name.utf8.map { $0 == UInt8(ascii: "-") ? UInt8(ascii: "_") : $0 }, as: UTF8.self)
    }
}

/// A type of Swift that is the value of a setting.
public protocol SettingRepresentable: Sendable, Equatable {
    /// Nil where the value is of another type.
    init?(_ value: SettingValue)
    /// The value.
    var settingValue: SettingValue { get }
}

extension Bool: SettingRepresentable {
    /// A flag.
    public init?(_ value: SettingValue) {
        guard case .flag(let flag) = value else { return nil }
        self = flag
    }
    /// A flag.
    public var settingValue: SettingValue { .flag(self) }
}

extension Int: SettingRepresentable {
    /// A number.
    public init?(_ value: SettingValue) {
        guard case .number(let number) = value else { return nil }
        self = number
    }
    /// A number.
    public var settingValue: SettingValue { .number(self) }
}

extension String: SettingRepresentable {
    /// A text.
    public init?(_ value: SettingValue) {
        guard case .text(let text) = value else { return nil }
        self = text
    }
    /// A text.
    public var settingValue: SettingValue { .text(self) }
}

extension [String]: SettingRepresentable {
    /// A list.
    public init?(_ value: SettingValue) {
        guard case .list(let list) = value else { return nil }
        self = list
    }
    /// A list.
    public var settingValue: SettingValue { .list(self) }
}

/// A setting whose value is a `Value`.
public struct Setting<Value: SettingRepresentable>: Sendable {
    /// What is declared.
    public let declaration: SettingDeclaration
    /// See ``SettingDeclaration/usual``.
    public let usual: Value?

    private init(
        _ name: String, _ type: SettingType, _ help: String, offHelp: String = "", placeholder: String, usual: Value?,
        otherwise: String, example: String, scope: SettingScope, section: ConfigurationSection?, workerForm: WorkerForm,
        changesWhileServed: Bool, daemonOption: String?
    ) {
        self.usual = usual
        declaration = SettingDeclaration(
            name: name, type: type, help: help, offHelp: offHelp, placeholder: placeholder, usual: usual?.settingValue,
            otherwise: otherwise, example: example, scope: scope, section: section, workerForm: workerForm,
            changesWhileServed: changesWhileServed, daemonOption: daemonOption ?? name)
    }
}

extension Setting<Bool> {
    /// Declares a flag.
    public init(
        flag name: String, _ help: String, off offHelp: String = "", usual: Bool = false,
        scope: SettingScope = .invocation,
        section: ConfigurationSection? = nil, workerForm: WorkerForm = .none, changesWhileServed: Bool = false
    ) {
        self.init(
            name, .flag, help, offHelp: offHelp, placeholder: "", usual: usual, otherwise: "", example: "",
            scope: scope,
            section: section, workerForm: workerForm, changesWhileServed: changesWhileServed, daemonOption: nil)
    }
}

extension Setting<Int> {
    /// Declares a number; without a `usual` one it may be absent.
    public init(
        number name: String, _ help: String, _ range: ClosedRange<Int>, _ unit: SettingUnit = .none,
        placeholder: String = "N", usual: Int? = nil, otherwise: String = "", example: String = "",
        scope: SettingScope = .invocation, section: ConfigurationSection? = nil, workerForm: WorkerForm = .none,
        changesWhileServed: Bool = false
    ) {
        self.init(
            name, .number(range, unit), help, placeholder: placeholder, usual: usual, otherwise: otherwise,
            example: example, scope: scope, section: section, workerForm: workerForm,
            changesWhileServed: changesWhileServed,
            daemonOption: nil)
    }
}

extension Setting<String> {
    /// Declares a text.
    public init(
        text name: String, _ help: String, _ placeholder: String, _ rule: TextRule, usual: String? = nil,
        otherwise: String = "", example: String = "", scope: SettingScope = .invocation,
        section: ConfigurationSection? = nil, workerForm: WorkerForm = .none, changesWhileServed: Bool = false,
        daemonOption: String? = nil
    ) {
        self.init(
            name, .text(rule), help, placeholder: placeholder, usual: usual, otherwise: otherwise, example: example,
            scope: scope, section: section, workerForm: workerForm, changesWhileServed: changesWhileServed,
            daemonOption: daemonOption)
    }
}

extension Setting<[String]> {
    /// Declares a list.
    public init(
        list name: String, _ help: String, _ placeholder: String, _ rule: TextRule, usual: [String]? = nil,
        otherwise: String = "", example: String = "", scope: SettingScope = .invocation,
        section: ConfigurationSection? = nil, workerForm: WorkerForm = .none
    ) {
        self.init(
            name, .list(rule), help, placeholder: placeholder, usual: usual, otherwise: otherwise, example: example,
            scope: scope, section: section, workerForm: workerForm, changesWhileServed: false, daemonOption: nil)
    }
}
