// SPDX-License-Identifier: BSD-2-Clause
// What xbb.conf says: keys, their values and the rules for them. A key is called as the option of xbbd.
import Support

/// The values that a configuration file gives; nil for those that it does not name.
public struct DaemonConfiguration: Equatable, Sendable {
    /// Where the file is unless an option says otherwise.
    public static let usualPath = "/etc/xbb/xbb.conf"

    /// Where it is remembered as what images were served, unless something else is said.
    public static let usualStateDirectory = "/var/lib/xbb"

    /// Where sockets and locks are.
    public var runDirectory: String?
    /// Where it is remembered as what images were served.
    public var stateDirectory: String?
    /// Who besides root may ask xbbd.
    public var socketGroup: String?
    /// Directory names below "backend".
    public var backends: [String]?
    /// Disks of backend/vbd are served whatever their hotplug script is.
    public var takesAnyScript: Bool?
    /// The worker program.
    public var worker: String?
    /// Workers are told to hand over when xbbd ends.
    public var stopsWorkers: Bool?
    /// Processes stand by in case that workers die.
    public var keepsStandby: Bool?
    /// After so many failures of a worker within ``restartWindow`` seconds it is not started any more.
    public var restartLimit: Int?
    /// See ``restartLimit``.
    public var restartWindow: Int?
    /// What is logged, by workers too.
    public var logLevel: LogLevel?
    /// Where workers look for plugins.
    public var pluginDirectories: [String]?
    /// Where the backing files may be that images name.
    public var backingDirectories: [String]?
    /// Whom workers become.
    public var user: String?
    /// Workers give up their rights.
    public var confines: Bool?
    /// Numbers for workers, by the name of the option.
    public var numbers: [String: Int] = [:]
    /// Tunables that workers begin with, by the name that `xbbctl set` takes.
    public var tunables: [String: Int] = [:]

    /// Numbers that are handed on to workers, and their ranges.
    public static let numberRanges: [String: ClosedRange<Int>] = [
        "max-queues": 1...64, "max-ring-page-order": 0...5, "memory-mib": 1...1024, "poll-us": 0...1_000_000,
    ]

    /// Failures that a VBD may be given.
    public static let restartLimits = 1...1_000_000
    /// Seconds in which failures count together.
    public static let restartWindows = 1...86400

    /// No file.
    public init() {}

    /// Reads a file's text. Throws every problem, one line each.
    public init(parsing text: String, file: String) throws(ControlError) {
        self.init()
        guard text.utf8.count <= ConfigurationText.byteLimit else {
            throw ControlError("\(file): has more than \(ConfigurationText.byteLimit) bytes", status: .configuration)
        }
        var (entries, problems) = ConfigurationText.entries(of: text, file: file)
        var seen: [String: Int] = [:]
        for entry in entries {
            let name = "[\(entry.section)] \(entry.key)"
            if let earlier = seen[name] {
                problems.append(
                    ConfigurationProblem(
                        file: file, line: entry.line, text: "'\(entry.key)' stands in line \(earlier) already"))
                continue
            }
            seen[name] = entry.line
            if let text = take(entry) {
                problems.append(ConfigurationProblem(file: file, line: entry.line, text: text))
            }
        }
        if problems.isEmpty { return }
        problems.sort { $0.line < $1.line }
        throw ControlError(problems.map(\.description).joined(separator: "\n"), status: .configuration)
    }

    /// Takes an entry in; nil, or what is wrong with it.
    private mutating func take(_ entry: ConfigurationEntry) -> String? {
        guard let keys = Self.keys[entry.section] else {
            return "there is no section [\(entry.section)]; there are \(Self.list(Self.sections.map { "[\($0)]" }))"
        }
        guard keys.contains(entry.key) else {
            let elsewhere = Self.sections.first { Self.keys[$0]?.contains(entry.key) == true }
            let hint = elsewhere.map { "it belongs below [\($0)]" } ?? "there are \(Self.list(keys))"
            return "there is no key '\(entry.key)' in [\(entry.section)]; \(hint)"
        }
        let value = entry.value
        switch entry.key {
        case "run-dir": return Self.path(value, &runDirectory)
        case "state-dir": return Self.path(value, &stateDirectory)
        case "socket-group": return Self.name(value, &socketGroup)
        case "backend": return Self.words(value, &backends, "a name such as vbd, qdisk or vbd3", VBDAddress.isKind)
        case "any-script": return Self.flag(value, &takesAnyScript)
        case "program": return Self.path(value, &worker)
        case "stop-workers": return Self.flag(value, &stopsWorkers)
        case "standby": return Self.flag(value, &keepsStandby)
        case "restart-limit": return Self.number(value, Self.restartLimits, &restartLimit)
        case "restart-window": return Self.number(value, Self.restartWindows, &restartWindow)
        case "log-level":
            logLevel = LogLevel(word: value)
            return logLevel == nil ? "'\(value)': expected error, warning, info or debug" : nil
        case "plugin-dir":
            return Self.words(value, &pluginDirectories, "a path that begins with '/'") { $0.hasPrefix("/") }
        case "backing-dir":
            return Self.words(value, &backingDirectories, "a path that begins with '/'") { $0.hasPrefix("/") }
        case "user": return Self.name(value, &user)
        case "confine": return Self.flag(value, &confines)
        case "disable-flush", "no-coalesce-reqs":
            var flag: Bool?
            let problem = Self.flag(value, &flag)
            if let flag { tunables[Self.tunable(entry.key)] = flag ? 1 : 0 }
            return problem
        case "flush-interval": return Self.number(value, 0...1_000_000_000, &tunables[Self.tunable(entry.key)])
        default:
            guard let range = Self.numberRanges[entry.key] else { return "'\(entry.key)' means nothing" }
            return Self.number(value, range, &numbers[entry.key])
        }
    }

    private static let sections = ["xbbd", "worker", "tunables"]
    private static let keys = [
        "xbbd": [
            "run-dir", "state-dir", "socket-group", "backend", "any-script", "stop-workers", "standby",
            "restart-limit", "restart-window", "log-level",
        ],
        "worker": [
            "program", "plugin-dir", "backing-dir", "user", "confine", "max-queues", "max-ring-page-order",
            "memory-mib", "poll-us",
        ],
        "tunables": ["disable-flush", "flush-interval", "no-coalesce-reqs"],
    ]

    // MARK: Values

    private static func tunable(_ key: String) -> String { key.replacing("-", with: "_") }

    private static func list(_ words: [String]) -> String { words.joined(separator: ", ") }

    private static func path(_ text: String, _ value: inout String?) -> String? {
        guard text.hasPrefix("/") else { return "'\(text)': expected a path that begins with '/'" }
        value = text
        return nil
    }

    private static func name(_ text: String, _ value: inout String?) -> String? {
        guard !text.isEmpty, !text.contains(where: { " \t:/,".contains($0) }) else {
            return "'\(text)': expected a name as in /etc/passwd or /etc/group"
        }
        value = text
        return nil
    }

    private static func flag(_ text: String, _ value: inout Bool?) -> String? {
        switch text {
        case "yes": value = true
        case "no": value = false
        default: return "'\(text)': expected yes or no"
        }
        return nil
    }

    private static func number(_ text: String, _ range: ClosedRange<Int>, _ value: inout Int?) -> String? {
        guard let number = Int(text), range.contains(number) else {
            return "'\(text)': expected a number from \(range.lowerBound) to \(range.upperBound)"
        }
        value = number
        return nil
    }

    /// Words between spaces or commas.
    private static func words(
        _ text: String, _ value: inout [String]?, _ expected: String, _ isRight: (String) -> Bool
    ) -> String? {
        let words = text.split { $0 == " " || $0 == "," || $0 == "\t" }.map(String.init)
        if let wrong = words.first(where: { !isRight($0) }) { return "'\(wrong)': expected \(expected)" }
        if words.isEmpty { return "expected at least one: \(expected)" }
        if Set(words).count != words.count { return "'\(text)': something is named twice" }
        value = words
        return nil
    }
}
