// SPDX-License-Identifier: BSD-2-Clause
// A process that is tracked by its pidfd: a child of this process, or a worker that an earlier xbbd started.
import Base
import CLinux
import Glibc
import Support

/// Identifies a process across restarts of xbbd, by its number and start time.
struct ProcessIdentity: Equatable {
    /// The process's number.
    let process: Int32
    /// When it started, in clock ticks since boot (proc(5), /proc/PID/stat, starttime). No two processes with the same
    /// number have the same start time.
    let startTicks: UInt64

    /// "4711 123456".
    var note: String { "\(process) \(startTicks)\n" }

    init(process: Int32, startTicks: UInt64) {
        self.process = process
        self.startTicks = startTicks
    }

    /// Reads ``note``.
    init?(note: String) {
        let parts = note.split { $0 == " " || $0 == "\n" }
        guard parts.count == 2, let process = DecimalText.number(parts[0]), let ticks = DecimalText.number(parts[1]),
            process > 0, process <= UInt64(Int32.max)
        else { return nil }
        self.init(process: Int32(process), startTicks: ticks)
    }

    /// The identity of a running process; nil if there is none with that number.
    init?(running process: Int32) {
        let raw = unsafe clinux_open("/proc/\(process)/stat", O_RDONLY | O_CLOEXEC, 0)
        guard raw >= 0 else { return nil }
        let file = Descriptor(owning: raw)
        guard case .bytes(let bytes) = file.readAvailable(limit: 4096) else { return nil }
        self.init(process: process, stat: String(decoding: bytes, as: UTF8.self))
    }

    /// Field 22 of /proc/PID/stat. The name in field 2 may contain anything, so fields are counted from its last ')'.
    init?(process: Int32, stat: String) {
        guard let end = stat.lastIndex(of: ")") else { return nil }
        let fields = stat[stat.index(after: end)...].split(separator: " ")
        guard fields.count > 19, let ticks = DecimalText.number(fields[19]) else { return nil }
        self.init(process: process, startTicks: ticks)
    }
}

/// A process and its pidfd.
final class WorkerProcess {
    /// Readable once the process has ended.
    let pidfd: Descriptor
    /// Its number.
    let process: Int32
    /// Its number and start time; nil if the system did not tell.
    let identity: ProcessIdentity?
    /// It has ended and left a core.
    private(set) var hasDumpedCore = false
    /// True for a process of an earlier xbbd, false for a child of this process.
    let isAdopted: Bool

    private init(pidfd: Descriptor, process: Int32, identity: ProcessIdentity?, isAdopted: Bool) {
        self.pidfd = pidfd
        self.process = process
        self.identity = identity
        self.isAdopted = isAdopted
    }

    /// Starts a program with clinux_spawn(): `kept` becomes its descriptor 3, `second` its descriptor 4, `third`
    /// its descriptor 5, `output` its standard output.
    static func spawn(
        _ arguments: [String], output: Descriptor? = nil, kept: Descriptor? = nil, second: Descriptor? = nil,
        third: Descriptor? = nil
    ) throws(OperationError) -> WorkerProcess {
        guard let program = arguments.first else { throw OperationError(EINVAL, "start a process without a name") }
        let (code, process) = startProgram(
            program, arguments, output: output?.raw ?? -1, kept: kept?.raw ?? -1, second: second?.raw ?? -1,
            third: third?.raw ?? -1)
        if code != 0 { throw OperationError(code, "start \(program)") }
        let raw = clinux_pidfd_open(process)
        if raw < 0 {
            // Without a pidfd it cannot be tracked. Nobody has reaped it, so the number still belongs to it.
            let code = errno
            kill(process, SIGKILL)
            var status: Int32 = 0
            _ = unsafe waitpid(process, &status, 0)
            throw OperationError(code, "follow process \(process)")
        }
        return WorkerProcess(
            pidfd: Descriptor(owning: raw), process: process, identity: ProcessIdentity(running: process),
            isAdopted: false)
    }

    /// The worker whose lock is at `path`, if it is one that `note` names; nil otherwise. The note alone is not believed:
    /// the kernel must say that the process has the lock. `isFree`: nobody has it, and the one is meant that was called to
    /// have it next and still waits.
    static func adopt(_ note: LockNote, ofLockAt path: String, isFree: Bool = false) -> WorkerProcess? {
        guard let file = LockFileFacts(path) else { return nil }
        for identity in isFree ? [note.next] : [note.next, note.holder] {
            guard let identity, let process = adopt(identity),
                isFree ? file.isOpen(in: identity.process) : file.isLocked(by: identity.process),
                // What was looked at was not another process with its number.
                process.takeExit() == nil
            else { continue }
            return process
        }
        return nil
    }

    /// The worker that listens at `socket`, if the kernel says that it has the lock at `path`; nil otherwise. For a lock whose
    /// file does not say who has it, because the file system was full.
    static func adopt(listeningAt socket: String, ofLockAt path: String) -> WorkerProcess? {
        guard let file = LockFileFacts(path), let peer = listener(at: socket),
            let identity = ProcessIdentity(running: peer), let process = adopt(identity),
            file.isLocked(by: peer), process.takeExit() == nil
        else { return nil }
        return process
    }

    /// The process that has called listen(2) on a socket (SO_PEERCRED), which the kernel has noted.
    private static func listener(at socket: String) -> Int32? {
        let raw = unsafe clinux_unix_connect(socket, Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue))
        guard raw >= 0 else { return nil }
        let process = clinux_peer_process(raw)
        close(raw)
        return process > 0 ? process : nil
    }

    /// What the kernel says that the process is doing; nil if it does not say.
    var state: ProcessState? { ProcessState(of: process) }

    /// How often its first thread has run; nil where the system does not say.
    var runs: UInt64? { ProcessState.runs(of: process) }

    /// Follows a process that is not a child; nil if it no longer exists.
    static func adopt(_ identity: ProcessIdentity) -> WorkerProcess? {
        let raw = clinux_pidfd_open(identity.process)
        guard raw >= 0 else { return nil }
        let pidfd = Descriptor(owning: raw)
        // The pidfd is open: if the number has this start time now, it was not reused before.
        guard ProcessIdentity(running: identity.process) == identity else { return nil }
        return WorkerProcess(pidfd: pidfd, process: identity.process, identity: identity, isAdopted: true)
    }

    /// How it ended; nil while it is running.
    func takeExit() -> WorkerExit? {
        if isAdopted {
            var entry = pollfd(fd: pidfd.raw, events: Int16(POLLIN), revents: 0)
            return unsafe poll(&entry, 1, 0) == 1 ? .unknown : nil
        }
        var code: Int32 = 0
        var signal: Int32 = 0
        var dumped: Int32 = 0
        let result = unsafe clinux_pidfd_wait(pidfd.raw, &code, &signal, &dumped)
        hasDumpedCore = dumped != 0
        if result == 0 { return nil }
        return result < 0 ? .unknown : WorkerExit(code: code, signal: signal)
    }

    /// Sends a signal; does nothing if the process has ended.
    func send(_ signal: Int32) {
        _ = clinux_pidfd_signal(pidfd.raw, signal)
    }
}
