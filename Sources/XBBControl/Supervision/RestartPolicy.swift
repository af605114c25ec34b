// SPDX-License-Identifier: BSD-2-Clause
// When a worker that ended is restarted.
import DiskEvents
import Glibc
import Settings
import Support

/// How a worker ended.
public enum WorkerExit: Equatable, Sendable, CustomStringConvertible {
    /// Status 0: the worker is done with the VBD, or says so.
    case clean
    /// Status 0 in the middle of its work: something in it called exit(3).
    case deserted
    /// It gave the disk up for a successor, and wrote so into the lock's file.
    case handedOver
    /// The same, and requests without an answer stand in its journal: they wait for space.
    case leftRequests
    /// Its storage could not be reached from it any more, and it wants a successor that opens it anew.
    case storageGone
    /// Another status.
    case failed(Int32)
    /// Status 2: the worker does not understand its options.
    case usage
    /// A signal.
    case signalled(Int32)
    /// Not known, because it was the child of another process.
    case unknown

    /// From an exit status and a signal; the signal is 0 for a process that exited.
    init(code: Int32, signal: Int32) {
        switch (signal, code) {
        case (0, 0): self = .clean
        case (0, 2): self = .usage
        case (0, WorkerStatus.storageGone): self = .storageGone
        case (0, _): self = .failed(code)
        default: self = .signalled(signal)
        }
    }

    /// A signal from outside ended it.
    var isFromOutside: Bool {
        switch self {
        case .signalled(SIGKILL), .signalled(SIGTERM), .signalled(SIGINT), .signalled(SIGHUP): true
        case .clean, .deserted, .handedOver, .leftRequests, .storageGone, .failed, .usage, .signalled, .unknown: false
        }
    }

    /// It failed without outside help.
    var isFailure: Bool {
        switch self {
        case .deserted, .failed, .usage: true
        case .signalled: !isFromOutside
        case .clean, .handedOver, .leftRequests, .storageGone, .unknown: false
        }
    }

    /// What its successor is told: a worker that crashed may have crashed because of a request.
    var asPredecessor: String {
        switch self {
        case .handedOver: "handed-over"
        case .deserted: "crashed:\(self)"
        case .signalled where !isFromOutside: "crashed:\(self)"
        case .clean, .storageGone, .failed, .usage, .signalled: "killed:\(self)"
        case .leftRequests, .unknown: "unknown"
        }
    }

    /// For the log: "exit status 1".
    public var description: String {
        switch self {
        case .clean, .handedOver, .leftRequests: "exit status 0"
        case .deserted: "exit status 0 without having handed its disk over: its plugin or a library called exit()"
        case .storageGone: "exit status \(WorkerStatus.storageGone): it lost the connection to its storage"
        case .failed(let code): "exit status \(code)"
        case .usage: "exit status 2: it does not understand its options"
        case .signalled(SIGSYS): "\(SignalName.text(SIGSYS)): it made a system call that its confinement forbids"
        case .signalled(let signal): SignalName.text(signal)
        case .unknown: "end of an adopted process"
        }
    }
}

/// How often and how fast workers are restarted.
public struct RestartPolicy: Equatable, Sendable {
    /// Milliseconds before each start after a failure; the last value is used for all further ones. The first is short
    /// because a guest waits for its disk; the others grow to spare the machine.
    public var delays: [UInt64] = [0, 100, 250, 500, 1000, 2000, 4000, 8000, 16000, 30000]
    /// Only failures of the last so many seconds lengthen the delay: an occasional failure costs the guest nothing.
    public var burstSeconds: UInt64 = 30
    /// The failures of a worker that ran for this many seconds are forgotten.
    public var steadySeconds: UInt64 = 60
    /// This many failures within `windowSeconds`, and the worker is not restarted any more.
    public var failureLimit = SettingValues().value(of: SettingsSchema.restartLimit)
    /// Ends that were no failures and that are followed at once within `burstSeconds`; further ones wait for a second.
    /// Enough for every administrator, and a hijacked worker that ends all the time does not occupy the machine.
    public var handOverLimit = 32
    /// The window of `failureLimit`, in seconds.
    public var windowSeconds = UInt64(clamping: SettingValues().value(of: SettingsSchema.restartWindow))

    /// The default: at once, then after 0.1, 0.25, 0.5, 1, 2, 4, 8, 16 s, until there were 10 failures in 5 minutes.
    public init() {}

    static let second: UInt64 = 1_000_000_000
    static let millisecond: UInt64 = 1_000_000

    /// Nanoseconds to wait before the start that follows the given number of failures; 0 after none.
    func delay(afterFailures failures: Int) -> UInt64 {
        guard failures > 0, let last = delays.last else { return 0 }
        return (failures <= delays.count ? delays[failures - 1] : last) * Self.millisecond
    }
}
