// SPDX-License-Identifier: BSD-2-Clause
// What xbbd has to say, one line for each event, on standard error.
import Glibc

/// How much an event matters; the numbers are those of syslog(3).
public enum ControlLogLevel: Int, Sendable, CaseIterable {
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
}

/// Writes each line with one write(2), so that lines of workers on the same descriptor are not mixed up.
public struct ControlLog: Sendable {
    /// Stands before each line.
    public let name: String
    /// Events that matter less are dropped.
    public let level: ControlLogLevel
    /// Puts "<n>" in front, which the journal and syslog read.
    public var showsPriority: Bool
    /// Where lines go.
    let descriptor: Int32

    /// A log on standard error.
    public init(name: String, level: ControlLogLevel = .info, descriptor: Int32 = 2) {
        self.name = name
        self.level = level
        self.descriptor = descriptor
        showsPriority = unsafe getenv("JOURNAL_STREAM") != nil
    }

    /// Writes one line of at most 1000 bytes; control characters are replaced.
    public func write(_ level: ControlLogLevel, _ text: @autoclosure () -> String) {
        if level.rawValue > self.level.rawValue { return }
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
