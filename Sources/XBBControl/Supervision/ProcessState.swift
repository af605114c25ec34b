// SPDX-License-Identifier: BSD-2-Clause
// What a process is doing, as /proc/PID/stat has it.
import Base

/// The state of a process's first thread (proc_pid_stat(5), field 3).
enum ProcessState: Equatable, Sendable {
    /// A signal has stopped it.
    case stopped
    /// A debugger has stopped it.
    case traced
    /// It waits for a device or a server, and nothing can end it before.
    case waitsForKernel
    /// It runs, or wants to.
    case runs
    /// It sleeps.
    case sleeps

    /// Reads the letter.
    init?(letter: Character) {
        switch letter {
        case "T": self = .stopped
        case "t": self = .traced
        case "D": self = .waitsForKernel
        case "R": self = .runs
        case "S", "I": self = .sleeps
        default: return nil
        }
    }

    /// That of a process; nil if there is none, or its state is another one.
    init?(of process: Int32) {
        let bytes = SmallFile.contents("/proc/\(process)/stat", limit: 4096) ?? []
        let text = String(decoding: bytes, as: UTF8.self)
        // The name in front may contain anything.
        guard let end = text.lastIndex(of: ")"),
            let letter = text[text.index(after: end)...].split(separator: " ").first?.first
        else { return nil }
        self.init(letter: letter)
    }

    /// How often the first thread of a process was put on a processor (sched-stats.rst, /proc/PID/task/TID/schedstat, field 3);
    /// nil where the kernel does not count that, or there is no such process.
    static func runs(of process: Int32) -> UInt64? {
        let bytes = SmallFile.contents("/proc/\(process)/task/\(process)/schedstat", limit: 128) ?? []
        let fields = String(decoding: bytes, as: UTF8.self).split { $0 == " " || $0 == "\n" }
        // Where nothing is counted, all three are 0.
        guard fields.count == 3, let runs = DecimalText.number(fields[2]), runs > 0 else { return nil }
        return runs
    }

    /// It does nothing until somebody lets it go on.
    var isStopped: Bool { self == .stopped || self == .traced }

    /// For operators.
    var text: String {
        switch self {
        case .stopped: "it is stopped by a signal"
        case .traced: "it is stopped by a debugger"
        case .waitsForKernel: "it waits in the kernel for a device or a server"
        case .runs: "it is busy"
        case .sleeps: "it sleeps"
        }
    }
}
