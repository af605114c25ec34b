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

/// Writes each line with one write(2), so that lines of other processes on the same descriptor do not get mixed in.
/// Events that a guest, an image or a plugin can cause must go through a ``RateLimit`` first.
public struct Log: Sendable {
    /// Stands in front of each line: "xbb-vbd 1/51712". Its first word is the program's name.
    public let name: String
    /// Less severe events are dropped.
    public var level: LogLevel
    /// Puts "<n>" in front of lines, for the journal and syslog.
    public var showsPriority: Bool
    /// Where lines go.
    let descriptor: Int32
    /// The journal, if lines go there with fields.
    let journal: Journal?
    /// Where lines are also remembered.
    public var history: LogHistory?
    /// The VBD that lines are about.
    private var vbd: (domain: UInt16, device: UInt32)?
    /// Fields of each line in the journal, "NAME=value".
    var fields: [String] = []

    /// A log whose lines begin with `name`, on standard error or in the journal behind it.
    public init(name: String, level: LogLevel = .info, descriptor: Int32 = 2) {
        self.init(
            name: name, level: level, descriptor: descriptor, journal: descriptor == 2 ? Journal.ofStandardError : nil)
    }

    init(name: String, level: LogLevel, descriptor: Int32, journal: Journal?) {
        self.name = name
        self.level = level
        self.descriptor = descriptor
        self.journal = journal
        showsPriority = unsafe getenv("JOURNAL_STREAM") != nil
    }

    /// The same log for lines about one VBD: in the journal they have the decimal fields XBB_DOMID and XBB_VDEV.
    public func about(domain: UInt16, device: UInt32) -> Log {
        var log = self
        log.vbd = (domain, device)
        log.fields = ["XBB_DOMID=\(domain)", "XBB_VDEV=\(device)"]
        return log
    }

    /// Writes one line of at most 1000 bytes. Control characters are replaced, so that nobody can forge lines.
    public func write(_ level: LogLevel, _ text: @autoclosure () -> String) {
        if level > self.level { return }
        let bytes = text().utf8.prefix(1000).map { $0 < 0x20 || $0 == 0x7f ? UInt8(ascii: "?") : $0 }
        let message = String(decoding: bytes, as: UTF8.self)
        history?.add(level, message, vbd)
        if let journal {
            let parts = name.split(separator: " ", maxSplits: 1)
            let about = parts.count == 2 ? "\(parts[1]): " : ""
            let program = parts.first ?? "xbb"
            if journal.send(level, program: program, message: (about + message)[...], fields: fields) { return }
        }
        let line = [UInt8]("\(showsPriority ? "<\(level.rawValue)>" : "")\(name): \(message)\n".utf8)
        _ = unsafe line.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
    }

    /// Writes an error.
    public func error(_ text: @autoclosure () -> String) { write(.error, text()) }
    /// Writes a warning.
    public func warning(_ text: @autoclosure () -> String) { write(.warning, text()) }
    /// Writes an event.
    public func info(_ text: @autoclosure () -> String) { write(.info, text()) }
    /// Writes a detail.
    public func debug(_ text: @autoclosure () -> String) { write(.debug, text()) }
}
