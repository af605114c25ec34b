// SPDX-License-Identifier: BSD-2-Clause
// One line for each event: to systemd's journal with fields if standard error goes there, else to standard error.
import Glibc

/// The severity of an event. The numbers are those of syslog(3), which the journal reads from the prefix "<n>".
public enum LogLevel: Int, Sendable, Comparable, CaseIterable {
    /// Something failed.
    case error = 3
    /// Something is wrong, but the program continues.
    case warning = 4
    /// What an administrator wants to see.
    case info = 6
    /// What a developer wants to see.
    case debug = 7

    /// The word on the command line.
    public var word: String { "\(self)" }

    /// The level of a word.
    public init?(word: String) {
        guard let level = Self.allCases.first(where: { $0.word == word }) else { return nil }
        self = level
    }

    /// The less severe, the larger.
    public static func < (left: LogLevel, right: LogLevel) -> Bool { left.rawValue < right.rawValue }
}

/// Writes each line as a whole, so that lines of other processes on the same descriptor do not get mixed in, and never
/// waits: see ``LogSink``. Lines about a disk go through its ``LogLimit``, whoever causes them.
public struct Log: Sendable {
    /// Stands in front of each line: "xbb-vbd 1/51712". Its first word is the program's name.
    public let name: String
    /// Less severe events are dropped.
    public var level: LogLevel
    /// Puts "<n>" in front of lines, for the journal and syslog.
    public var showsPriority: Bool
    private let sink: LogSink
    /// Where lines are also remembered.
    public var history: LogHistory?
    /// Where lines are also kept for those who have no journal.
    public var file: LogFile?
    /// The VBD that lines are about.
    private var vbd: (domain: UInt16, device: UInt32)?
    /// Fields of each line in the journal, "NAME=value".
    private var fields: [String] = []
    /// Which lines are not written because there are too many; nil: none, in programs and places that nobody else can
    /// make write.
    private(set) var limit: LogLimit?

    /// A log whose lines begin with `name`, on standard error or in the journal behind it.
    public init(name: String, level: LogLevel = .info) {
        self.init(name: name, level: level, sink: .standardError)
    }

    init(name: String, level: LogLevel, sink: LogSink) {
        self.name = name
        self.level = level
        self.sink = sink
        showsPriority = unsafe getenv("JOURNAL_STREAM") != nil
    }

    /// The same log for lines about one VBD: in the journal they have the decimal fields XBB_DOMID and XBB_VDEV.
    public func about(domain: UInt16, device: UInt32, limit: LogLimit?) -> Log {
        var log = self
        log.vbd = (domain, device)
        log.fields = ["XBB_DOMID=\(domain)", "XBB_VDEV=\(device)"]
        log.limit = limit
        return log
    }

    /// The same log with a limit.
    public func limited(by limit: LogLimit) -> Log {
        var log = self
        log.limit = limit
        return log
    }

    /// Writes one line of at most 1000 bytes, if its place in the code may write now. Control characters are replaced, so
    /// that nobody can forge lines.
    public func write(
        _ level: LogLevel, _ text: @autoclosure () -> String, file: StaticString = #fileID, line: UInt = #line
    ) {
        if level > self.level { return }
        guard let limit else { return put(level, text()) }
        guard let dropped = limit.admit(level, LogLimit.Place(file, line)) else { return }
        put(level, text(), dropped > 0 ? " (\(dropped) more like this were not logged)" : "")
    }

    /// Says how many lines were dropped, if that is due: see ``LogLimit/takeDropped(now:isLast:)``.
    public func tellDropped(isLast: Bool = false) {
        guard let dropped = limit?.takeDropped(isLast: isLast) else { return }
        put(.warning, "\(dropped) more lines were not logged: the guest, the image or the plugin caused too many")
    }

    /// When ``tellDropped(isLast:)`` has something to say, in ns of the monotonic clock; `UInt64.max` if never.
    public var tellingDeadline: UInt64 { limit?.deadline ?? .max }

    private func put(_ level: LogLevel, _ text: String, _ suffix: String = "") {
        let message = String(decoding: text.utf8.prefix(1000), as: UTF8.self).withoutControlCharacters + suffix
        history?.add(level, message, vbd)
        file?.add(level, message)
        sink.write(
            LogLine(level: level, name: name, message: message, fields: fields, showsPriority: showsPriority))
    }

    /// Writes an error.
    public func error(_ text: @autoclosure () -> String, file: StaticString = #fileID, line: UInt = #line) {
        write(.error, text(), file: file, line: line)
    }
    /// Writes a warning.
    public func warning(_ text: @autoclosure () -> String, file: StaticString = #fileID, line: UInt = #line) {
        write(.warning, text(), file: file, line: line)
    }
    /// Writes an event.
    public func info(_ text: @autoclosure () -> String, file: StaticString = #fileID, line: UInt = #line) {
        write(.info, text(), file: file, line: line)
    }
    /// Writes a detail.
    public func debug(_ text: @autoclosure () -> String, file: StaticString = #fileID, line: UInt = #line) {
        write(.debug, text(), file: file, line: line)
    }
}
