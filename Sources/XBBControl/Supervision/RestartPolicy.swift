// SPDX-License-Identifier: BSD-2-Clause
// When a worker that ended is started again.
import Glibc

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
    /// Seconds before each start after a failure; the last one for all further ones.
    public var delays: [UInt64] = [1, 2, 4, 8, 16, 30]
    /// A worker that ran for so many seconds has no failures behind it.
    public var steadySeconds: UInt64 = 60
    /// So many failures ...
    public var failureLimit = 10
    /// ... within so many seconds, and it is not started any more.
    public var windowSeconds: UInt64 = 300

    /// 1, 2, 4, 8, 16, 30, 30 ... seconds, until there were 10 failures in 5 minutes.
    public init() {}

    static let second: UInt64 = 1_000_000_000

    /// Nanoseconds before the start that follows `failures` failures; 0 after none.
    func delay(afterFailures failures: Int) -> UInt64 {
        guard failures > 0, let last = delays.last else { return 0 }
        return (failures <= delays.count ? delays[failures - 1] : last) * Self.second
    }
}
