// SPDX-License-Identifier: BSD-2-Clause
// One line for each event, on standard error, where systemd's journal takes it.
import CLinux
import Glibc
import Synchronization

/// How much an event matters; the numbers are those of syslog(3), which the journal reads from the prefix "<n>".
public enum LogLevel: Int, Sendable, Comparable {
    /// Something failed.
    case error = 3
    /// Something is wrong but goes on.
    case warning = 4
    /// What an administrator wants to see.
    case info = 6
    /// What a developer wants to see.
    case debug = 7

    /// The less it matters, the larger.
    public static func < (left: LogLevel, right: LogLevel) -> Bool { left.rawValue < right.rawValue }
}

/// Writes lines to standard error. What a guest, an image or a plugin can cause goes through a ``RateLimit`` first.
public struct Log: Sendable {
    /// Stands before each line: "xbb-vbd 1/51712".
    public let name: String
    /// Events that matter less are dropped.
    public let level: LogLevel
    private let withPriority: Bool

    /// A log whose lines begin with `name`.
    public init(name: String, level: LogLevel = .info) {
        self.name = name
        self.level = level
        withPriority = unsafe getenv("JOURNAL_STREAM") != nil
    }

    /// Writes one line; control characters in it are replaced, so that nobody can forge lines.
    public func write(_ level: LogLevel, _ text: @autoclosure () -> String) {
        if level > self.level { return }
        let prefix = withPriority ? "<\(level.rawValue)>" : ""
        var line = [UInt8]("\(prefix)\(name): ".utf8)
        for byte in text().utf8.prefix(1000) { line.append(byte < 0x20 || byte == 0x7f ? UInt8(ascii: "?") : byte) }
        line.append(UInt8(ascii: "\n"))
        _ = unsafe line.withUnsafeBytes { unsafe Glibc.write(2, $0.baseAddress, $0.count) }
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

/// Lets a few events through at once and then about one each second, and counts the others (XSA-180).
public final class RateLimit: Sendable {
    private struct State {
        var tokens: Double
        var last: UInt64
        var suppressed: UInt64 = 0
    }
    private let burst: Double
    private let perSecond: Double
    private let state: Mutex<State>

    /// At most `burst` events at once and `perSecond` in the long run.
    public init(burst: Double = 10, perSecond: Double = 1) {
        self.burst = burst
        self.perSecond = perSecond
        state = Mutex(State(tokens: burst, last: clinux_monotonic_ns()))
    }

    /// nil if the event is to be dropped; else the number of events dropped since the last one that passed.
    public func admit() -> UInt64? {
        let now = clinux_monotonic_ns()
        return state.withLock { state in
            state.tokens = min(burst, state.tokens + Double(now &- state.last) / 1e9 * perSecond)
            state.last = now
            if state.tokens < 1 {
                state.suppressed &+= 1
                return nil
            }
            state.tokens -= 1
            defer { state.suppressed = 0 }
            return state.suppressed
        }
    }
}
