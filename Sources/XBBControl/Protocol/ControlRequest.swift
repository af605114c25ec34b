// SPDX-License-Identifier: BSD-2-Clause
// The requests of xbbctl to xbbd, one line each. The answer is one line of JSON: {"error":"text"} if the request
// failed.
import Base
import Settings

/// Why something failed, for the user.
public struct ControlError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What failed, where, and what to do about it.
    public let description: String
    /// The exit status for the program.
    public let status: ControlStatus

    /// An error with a text for the user.
    public init(_ description: String, status: ControlStatus = .failed) {
        self.description = description
        self.status = status
    }
}

/// Exit statuses of xbbctl and xbbd; the numbers above 1 are those of sysexits.h.
public enum ControlStatus: Int32, Sendable {
    /// The request failed.
    case failed = 1
    /// Wrong usage.
    case usage = 64
    /// xbbd or XenStore cannot be reached.
    case unreachable = 69
    /// The other side did not respond in time; the request may be repeated.
    case timedOut = 75
    /// The configuration file cannot be used.
    case configuration = 78
}

/// What a pause does to the storage. Its word stands behind the seconds of a request.
public enum PauseKind: String, Sendable, CaseIterable {
    /// It stays open; this one needs no word.
    case plain = ""
    /// It is closed.
    case releases = "release"
    /// It is closed as long as the client is connected, and the disk is paused after that if it was before.
    case holds = "hold"

    /// Those that are said, as in "release | hold".
    static var words: String { allCases.map(\.rawValue).filter { !$0.isEmpty }.joined(separator: " | ") }

    /// The kind of the words behind the seconds; nil: they are none.
    init?(words: ArraySlice<String>) {
        guard words.count < 2, let kind = Self(rawValue: words.first ?? "") else { return nil }
        self = kind
    }
}

/// A request to xbbd.
public enum ControlRequest: Equatable, Sendable {
    /// Asks whether xbbd is there.
    case ping
    /// All VBDs.
    case list
    /// All plugins.
    case plugins
    /// The last lines of xbbd's log, about one VBD or all.
    case log(VBDReference?)
    /// Whether a VBD has a worker; there need not be such a VBD.
    case worker(VBDReference)
    /// The number of the domain of this name: printable ASCII without spaces.
    case domain(String)
    /// All VBDs, with the counters of those whose workers answer at once.
    case top
    /// All VBDs, with what their workers count for monitoring.
    case metrics
    /// Events from a place on, or all that are kept. With `waits` the answer comes when there is one, or after some seconds.
    case events(EventCursor?, waits: Bool)
    /// In which state the events say that one VBD is; there need not be such a VBD.
    case state(VBDReference)
    /// One VBD.
    case show(VBDReference)
    /// The counters of one VBD.
    case stats(VBDReference)
    /// Ends a pause of one VBD, and tries again what waits for space. If it `restores`, it ends only that its storage was released
    /// with ``PauseKind/holds``.
    case resume(VBDReference, restores: Bool = false)
    /// Lets one VBD take no requests for so many seconds at most. Answered when that is so, and its storage is as the kind says.
    case pause(VBDReference, seconds: String, PauseKind)
    /// Gives one VBD other storage, within so many seconds, if nothing has changed since `condition`. Answered when it is served
    /// from there.
    case swap(VBDReference, seconds: String, ExchangeTarget, condition: ExchangeCondition? = nil)
    /// Changes the size of one VBD, to so many bytes; nil: to what its storage has by now. Without `force` it only grows.
    case resize(VBDReference, bytes: UInt64?, force: Bool)
    /// What is allocated in the topmost image of one VBD, from a byte on.
    case extents(VBDReference, offset: UInt64)
    /// Changes settings of one VBD, all or none; at least one.
    case set(VBDReference, [TunableSetting])
    /// Lets new workers take over from those of one VBD or of all.
    case upgrade(VBDReference?)

    /// The members of the socket's group may not ask for it: it opens files as root, or stops a guest.
    var isForRoot: Bool {
        switch self {
        case .pause, .swap, .resize: true
        case .ping, .list, .plugins, .log, .worker, .domain, .top, .metrics, .events, .state, .show, .stats, .resume,
            .extents, .set, .upgrade:
            false
        }
    }

    /// The longest line of a request, in bytes.
    public static let longestLine = 16384

    /// Reads a line.
    public init(parsing line: [UInt8]) throws(ControlError) {
        guard line.allSatisfy({ (0x20...0x7e).contains($0) }) else {
            throw ControlError("a request is printable ASCII")
        }
        let words = String(decoding: line, as: UTF8.self).split(separator: " ").map(String.init)
        switch (words.first, words.count) {
        case ("ping", 1): self = .ping
        case ("list", 1): self = .list
        case ("plugins", 1): self = .plugins
        case ("log", 1): self = .log(nil)
        case ("log", 2): self = .log(try Self.reference(words[1]))
        case ("worker", 2): self = .worker(try Self.reference(words[1]))
        case ("domain", 2): self = .domain(words[1])
        case ("top", 1): self = .top
        case ("metrics", 1): self = .metrics
        case ("events", 1): self = .events(nil, waits: false)
        case ("events", 2): self = .events(try Self.cursor(words[1]), waits: false)
        case ("events", 3) where words[2] == "wait": self = .events(try Self.cursor(words[1]), waits: true)
        case ("state", 2): self = .state(try Self.reference(words[1]))
        case ("show", 2): self = .show(try Self.reference(words[1]))
        case ("stats", 2): self = .stats(try Self.reference(words[1]))
        case ("pause", 3...):
            guard let kind = PauseKind(words: words[3...]) else { throw Self.unknown }
            self = .pause(try Self.reference(words[1]), seconds: words[2], kind)
        case ("swap", 7):
            self = .swap(
                try Self.reference(words[1]), seconds: words[2], try ExchangeTarget(parsing: Array(words[3...])))
        case ("swap", 9):
            self = .swap(
                try Self.reference(words[1]), seconds: words[2], try ExchangeTarget(parsing: Array(words[3..<7])),
                condition: try ExchangeCondition(parsing: words[7], words[8]))
        case ("resize", 3): self = .resize(try Self.reference(words[1]), bytes: try Self.bytes(words[2]), force: false)
        case ("resize", 4) where words[3] == "force":
            self = .resize(try Self.reference(words[1]), bytes: try Self.bytes(words[2]), force: true)
        case ("extents", 3):
            self = .extents(try Self.reference(words[1]), offset: try Self.bytes(words[2]) ?? 0)
        case ("resume", 2): self = .resume(try Self.reference(words[1]))
        case ("resume", 3) where words[2] == "held":
            self = .resume(try Self.reference(words[1]), restores: true)
        case ("upgrade", 1): self = .upgrade(nil)
        case ("upgrade", 2): self = .upgrade(try Self.reference(words[1]))
        case ("set", let count) where count >= 4 && count % 2 == 0:
            let changes = stride(from: 2, to: count, by: 2).map {
                TunableSetting(key: words[$0], value: words[$0 + 1])
            }
            self = .set(try Self.reference(words[1]), changes)
        default: throw Self.unknown
        }
    }

    /// What is no request.
    private static var unknown: ControlError {
        ControlError(
            "expected one of: ping, list, plugins, top, log [VBD], worker VBD, domain NAME, metrics, "
                + "events [[EPOCH:]SEQ [wait]], state VBD, show VBD, stats VBD, pause VBD SECONDS [\(PauseKind.words)], "
                + "resume VBD [held], "
                + "resize VBD BYTES [force], extents VBD OFFSET, swap VBD SECONDS STORAGE [worker PID | release NAME], "
                + "set VBD KEY VALUE [KEY VALUE]..., upgrade [VBD]"
        )
    }

    private static func cursor(_ text: String) throws(ControlError) -> EventCursor {
        guard let cursor = EventCursor(parsing: text) else {
            throw ControlError("'\(text)' is no place among events: expected SEQ or EPOCH:SEQ", status: .usage)
        }
        return cursor
    }

    private static func bytes(_ text: String) throws(ControlError) -> UInt64? {
        if text == "-" { return nil }
        guard let number = DecimalText.number(text) else { throw ControlError("'\(text)' is no number of bytes") }
        return number
    }

    private static func reference(_ text: String) throws(ControlError) -> VBDReference {
        guard let reference = VBDReference(parsing: text) else {
            throw ControlError("'\(text)' is no VBD: expected DOMID/DEVID or KIND/DOMID/DEVID, such as vbd/1/51712")
        }
        return reference
    }

    /// The line, without its line end.
    public var line: String {
        switch self {
        case .ping: "ping"
        case .list: "list"
        case .plugins: "plugins"
        case .log(let vbd): vbd.map { "log \($0)" } ?? "log"
        case .worker(let vbd): "worker \(vbd)"
        case .domain(let name): "domain \(name)"
        case .top: "top"
        case .metrics: "metrics"
        case .events(let cursor, let waits): "events" + (cursor.map { " \($0)" } ?? "") + (waits ? " wait" : "")
        case .state(let vbd): "state \(vbd)"
        case .show(let vbd): "show \(vbd)"
        case .stats(let vbd): "stats \(vbd)"
        case .resume(let vbd, let restores): "resume \(vbd)\(restores ? " held" : "")"
        case .extents(let vbd, let offset): "extents \(vbd) \(offset)"
        case .resize(let vbd, let bytes, let force):
            "resize \(vbd) \(bytes.map { "\($0)" } ?? "-")\(force ? " force" : "")"
        case .pause(let vbd, let seconds, let kind):
            "pause \(vbd) \(seconds)" + (kind == .plain ? "" : " \(kind.rawValue)")
        case .swap(let vbd, let seconds, let storage, let condition):
            "swap \(vbd) \(seconds) \(storage.text)\(condition.map { " \($0.text)" } ?? "")"
        case .upgrade(let vbd): vbd.map { "upgrade \($0)" } ?? "upgrade"
        case .set(let vbd, let changes): "set \(vbd) \(Self.words(changes))"
        }
    }

    /// The line for the VBD's worker; nil if xbbd answers the request itself.
    var workerLine: String? {
        switch self {
        case .ping, .list, .plugins, .log, .worker, .domain, .top, .metrics, .events, .state, .upgrade, .pause, .resume,
            .swap:
            nil
        case .show: "show"
        case .stats: "stats"
        case .extents(_, let offset): "extents \(offset)"
        case .resize(_, let bytes, let force): "resize \(bytes.map { "\($0)" } ?? "-")\(force ? " force" : "")"
        case .set(_, let changes): "set \(Self.words(changes))"
        }
    }

    private static func words(_ changes: [TunableSetting]) -> String {
        changes.map { "\($0.key) \($0.value)" }.joined(separator: " ")
    }
}

/// A setting and its value, as "KEY=VALUE".
public struct TunableSetting: Equatable, Sendable {
    /// The setting.
    public let key: String
    /// Its value.
    public let value: String

    /// Reads "KEY=VALUE": the key of lower-case letters, digits, '-' and '_', the value of printable ASCII without
    /// spaces.
    public init(parsing text: String) throws(ControlError) {
        let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty, text.utf8.count <= 256,
            parts[0].utf8.allSatisfy({
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0)
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) || $0 == UInt8(ascii: "_")
                    || $0 == UInt8(ascii: "-")
            }), parts[1].utf8.allSatisfy({ (0x21...0x7e).contains($0) })
        else {
            throw ControlError(
                "'\(text)' is no setting: expected KEY=VALUE with '=' between, such as flush-interval=10",
                status: .usage)
        }
        key = String(parts[0])
        value = String(parts[1])
    }

    init(key: String, value: String) {
        self.key = key
        self.value = value
    }

    /// Reads several, each checked; none may be named twice.
    public static func all(parsing texts: [String]) throws(ControlError) -> [TunableSetting] {
        var settings: [TunableSetting] = []
        for text in texts {
            let setting = try TunableSetting(parsing: text).checked()
            if settings.contains(where: { $0.key == setting.key }) {
                throw ControlError("'\(text)': this setting is named twice", status: .usage)
            }
            settings.append(setting)
        }
        return settings
    }

    /// The same setting in the words that workers of all versions understand. Throws if there is no such setting or
    /// value.
    public func checked() throws(ControlError) -> TunableSetting {
        do throws(OperationError) {
            let setting = try SettingsSchema.changing(key)
            let value = try setting.parse(value)
            return TunableSetting(key: setting.oldName, value: value.number.map { "\($0)" } ?? value.description)
        } catch {
            throw ControlError(error.description, status: .usage)
        }
    }
}
