// SPDX-License-Identifier: BSD-2-Clause
// The last lines of a log, for machines without a journal.
import CLinux
import Glibc
import Synchronization

/// Remembers the last lines of a log. Any thread.
public final class LogHistory: Sendable {
    /// A line.
    public struct Line: Sendable {
        /// Seconds since 1970.
        public let time: Double
        /// Its severity.
        public let level: LogLevel
        /// Its text.
        public let text: String
        /// The frontend's domain and the device's number, if it is about a VBD.
        public let vbd: (domain: UInt16, device: UInt32)?

        /// A line of any log.
        public init(time: Double, level: LogLevel, text: String, vbd: (domain: UInt16, device: UInt32)?) {
            self.time = time
            self.level = level
            self.text = text
            self.vbd = vbd
        }
    }

    private struct Ring {
        var lines: [Line] = []
        var next = 0
    }
    private let limit: Int
    private let ring = Mutex(Ring())

    /// Lines of a worker that has no file for them.
    public static let workerLimit = 128

    /// Keeps the last `limit` lines.
    public init(limit: Int = 512) {
        self.limit = max(limit, 1)
    }

    func add(_ level: LogLevel, _ text: String, _ vbd: (domain: UInt16, device: UInt32)?) {
        remember(Line(time: wallClockSeconds(), level: level, text: text, vbd: vbd))
    }

    /// Takes a line of another log.
    public func remember(_ line: Line) {
        ring.withLock { ring in
            if ring.lines.count < limit {
                ring.lines.append(line)
            } else {
                ring.lines[ring.next] = line
                ring.next = (ring.next + 1) % limit
            }
        }
    }

    /// All of them, oldest first.
    public var lines: [Line] {
        ring.withLock { Array($0.lines[$0.next...] + $0.lines[..<$0.next]) }
    }
}
