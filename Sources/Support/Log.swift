// SPDX-License-Identifier: BSD-2-Clause
// One line for each event, on standard error, where systemd's journal takes it.
import Glibc

/// How much an event matters; the numbers are those of syslog(3), which the journal reads from the prefix "<n>".
public enum LogLevel: Int, Sendable, Comparable, CaseIterable {
    /// Something failed.
    case error = 3
    /// Something is wrong but goes on.
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

    /// The less it matters, the larger.
    public static func < (left: LogLevel, right: LogLevel) -> Bool { left.rawValue < right.rawValue }
}

/// Writes each line with one write(2), so that lines of other processes on the same descriptor are not mixed up.
/// What a guest, an image or a plugin can cause goes through a ``RateLimit`` first.
public struct Log: Sendable {
    /// Stands before each line: "xbb-vbd 1/51712".
    public let name: String
    /// Events that matter less are dropped.
    public let level: LogLevel
    /// Puts "<n>" in front, which the journal and syslog read.
    public var showsPriority: Bool
    /// Where lines go.
    let descriptor: Int32

    /// A log whose lines begin with `name`, on standard error.
    public init(name: String, level: LogLevel = .info, descriptor: Int32 = 2) {
        self.name = name
        self.level = level
        self.descriptor = descriptor
        showsPriority = unsafe getenv("JOURNAL_STREAM") != nil
    }

    /// Writes one line of at most 1000 bytes; control characters in it are replaced, so that nobody can forge lines.
    public func write(_ level: LogLevel, _ text: @autoclosure () -> String) {
        if level > self.level { return }
        var line = [UInt8]("\(showsPriority ? "<\(level.rawValue)>" : "")\(name): ".utf8)
        for byte in text().utf8.prefix(1000) { line.append(byte < 0x20 || byte == 0x7f ? UInt8(ascii: "?") : byte) }
        line.append(UInt8(ascii: "\n"))
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
