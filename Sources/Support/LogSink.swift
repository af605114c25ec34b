// SPDX-License-Identifier: BSD-2-Clause
// Where the lines of a process go. Nobody waits for a line to be read: what has no room is counted, and that is told.
import CLinux
import Synchronization

/// A descriptor and, for standard error, the journal behind it. Any thread.
///
/// A reader that stalls must not stop a process that serves disks, so a line is written as a whole or not at all. The
/// number of lines that were lost stands before the next line that there is room for.
public final class LogSink: Sendable {
    private struct State {
        var file: clinux_log
        /// Lines that were not written since the last one that was.
        var lost: UInt64 = 0
    }
    private let state: Mutex<State>
    /// The journal, if lines go there with fields.
    private let journal: Journal?

    /// Standard error, or the journal if it leads there.
    public static let standardError = LogSink(descriptor: 2, journal: Journal.ofStandardError)

    init(descriptor: Int32, journal: Journal?) {
        state = Mutex(State(file: clinux_log(fd: descriptor, own: -1, device: 0, inode: 0)))
        self.journal = journal
    }

    /// Lines go to `descriptor` from now on, which must stay open; what writing there needs is opened now.
    func move(to descriptor: Int32) {
        state.withLock { state in
            state.file.fd = descriptor
            // The structure is the call's while it runs.
            unsafe clinux_log_prepare(&state.file)
        }
    }

    /// Writes a line, if there is room for it.
    func write(_ line: LogLine) {
        state.withLock { state in
            if state.lost > 0 {
                let note = line.saying("\(state.lost) lines were lost: nobody read the log for a while", .warning)
                guard write(note, &state) else {
                    state.lost &+= 1
                    return
                }
                state.lost = 0
            }
            if !write(line, &state) { state.lost &+= 1 }
        }
    }

    private func write(_ line: LogLine, _ state: inout State) -> Bool {
        switch journal?.send(line) {
        case .sent?: return true
        case .busy?: return false
        case .failed?, nil: break
        }
        let bytes = line.bytes
        // Within the closure the bytes are valid, and their number is passed on.
        return unsafe bytes.withUnsafeBytes { unsafe clinux_log_write(&state.file, $0.baseAddress, $0.count) } == 0
    }
}

/// One line of a log, on its way.
struct LogLine {
    let level: LogLevel
    /// What stands in front, "xbb-vbd 1/51712".
    let name: String
    let message: String
    /// Fields for the journal, "NAME=value".
    let fields: [String]
    let showsPriority: Bool

    /// The same with another message.
    func saying(_ message: String, _ level: LogLevel) -> LogLine {
        LogLine(level: level, name: name, message: message, fields: fields, showsPriority: showsPriority)
    }

    /// The text as it stands on standard error.
    var bytes: [UInt8] { [UInt8]("\(showsPriority ? "<\(level.rawValue)>" : "")\(name): \(message)\n".utf8) }
}
