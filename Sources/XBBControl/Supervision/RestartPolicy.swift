// SPDX-License-Identifier: BSD-2-Clause
// When a worker that ended is started again.
import Glibc
import Settings

/// How a worker ended.
public enum WorkerExit: Equatable, Sendable, CustomStringConvertible {
    /// Status 0: the VBD is over for it.
    case clean
    /// Another status.
    case failed(Int32)
    /// Status 2: it does not understand its options.
    case usage
    /// A signal.
    case signalled(Int32)
    /// It was the child of another process.
    case unknown

    /// From an exit status and a signal; the latter is 0 for a process that exited.
    init(code: Int32, signal: Int32) {
        switch (signal, code) {
        case (0, 0): self = .clean
        case (0, 2): self = .usage
        case (0, _): self = .failed(code)
        default: self = .signalled(signal)
        }
    }

    /// Somebody ended it.
    var isFromOutside: Bool {
        switch self {
        case .signalled(SIGKILL), .signalled(SIGTERM), .signalled(SIGINT), .signalled(SIGHUP): true
        case .clean, .failed, .usage, .signalled, .unknown: false
        }
    }

    /// It came to grief by itself.
    var isFailure: Bool {
        switch self {
        case .failed, .usage: true
        case .signalled: !isFromOutside
        case .clean, .unknown: false
        }
    }

    /// What its successor is told: a worker that came to grief by itself may have done so because of a request.
    var asPredecessor: String {
        switch self {
        case .clean: "handed-over"
        case .signalled where !isFromOutside: "crashed:\(self)"
        case .failed, .usage, .signalled: "killed:\(self)"
        case .unknown: "unknown"
        }
    }

    /// For the log: "exit status 1".
    public var description: String {
        switch self {
        case .clean: "exit status 0"
        case .failed(let code): "exit status \(code)"
        case .usage: "exit status 2: it does not understand its options"
        case .signalled(SIGSYS): "signal \(SIGSYS): it made a system call that its confinement forbids"
        case .signalled(let signal): "signal \(signal)"
        case .unknown: "end of an adopted process"
        }
    }
}

/// How often and how fast.
public struct RestartPolicy: Equatable, Sendable {
    /// Milliseconds before each start after a failure; the last one for all further ones. The first is for a guest that
    /// waits for its disk, the others are for a machine that has other things to do.
    public var delays: [UInt64] = [0, 100, 250, 500, 1000, 2000, 4000, 8000, 16000, 30000]
    /// Only failures within so many seconds make the next pause longer: one now and then costs the guest nothing.
    public var burstSeconds: UInt64 = 30
    /// A worker that ran for so many seconds has no failures behind it.
    public var steadySeconds: UInt64 = 60
    /// So many failures ...
    public var failureLimit = SettingValues().value(of: SettingsSchema.restartLimit)
    /// ... within so many seconds, and it is not started any more.
    public var windowSeconds = UInt64(clamping: SettingValues().value(of: SettingsSchema.restartWindow))

    /// At once, then after 0.1, 0.25, 0.5, 1, 2, 4, 8, 16 s, until there were 10 failures in 5 minutes.
    public init() {}

    static let second: UInt64 = 1_000_000_000
    static let millisecond: UInt64 = 1_000_000

    /// Nanoseconds before the start that follows `failures` failures; 0 after none.
    func delay(afterFailures failures: Int) -> UInt64 {
        guard failures > 0, let last = delays.last else { return 0 }
        return (failures <= delays.count ? delays[failures - 1] : last) * Self.millisecond
    }
}
