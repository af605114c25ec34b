// SPDX-License-Identifier: BSD-2-Clause
// What a daemon owes to whoever started it: news for the service manager, the background, room for descriptors.
import Base
import CLinux
import Glibc

/// The service manager's datagram socket (sd_notify(3)).
public struct ServiceManager: Sendable {
    private let path: String?
    /// How often, in ns, to say that the process lives: twice in the time that the manager has patience; nil: never.
    public let heartbeat: UInt64?

    /// Takes NOTIFY_SOCKET out of the environment, so that workers do not speak for xbbd.
    public init() {
        func value(_ name: String) -> String? { unsafe getenv(name).map { unsafe String(cString: $0) } }
        path = value("NOTIFY_SOCKET")
        let isMeant = value("WATCHDOG_PID").map { $0 == String(getpid()) } ?? true
        let microseconds = value("WATCHDOG_USEC").flatMap { UInt64($0) } ?? 0
        heartbeat = isMeant && microseconds > 0 && microseconds < UInt64.max / 1000 ? microseconds * 500 : nil
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            unsafe unsetenv(name)
        }
    }

    /// Says "READY=1" or another state. Without a service manager, and where it does not listen, nothing happens.
    public func say(_ state: String) {
        if let path { _ = unsafe clinux_notify(path, state) }
    }
}

/// The process itself.
public enum DaemonProcess {
    /// Goes into the background; standard error becomes the system log, also that of workers.
    public static func detach() throws(ControlError) {
        if clinux_detach() != 0 { throw ControlError("go into the background: \(errnoText(errno))") }
    }

    /// The number of a group.
    public static func group(named name: String) throws(ControlError) -> UInt32 {
        var group: gid_t = 0
        switch unsafe clinux_group(name, &group) {
        case 1: return group
        case 0:
            throw ControlError(
                "there is no group '\(name)' for the socket: make it with groupadd(8)", status: .configuration)
        default: throw ControlError("look for group '\(name)': \(errnoText(errno))")
        }
    }

    /// Allows as many descriptors as the administrator does: xbbd holds one for each worker.
    public static func raiseDescriptorLimit() {
        var limit = rlimit()
        guard unsafe getrlimit(Int32(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
        limit.rlim_cur = limit.rlim_max
        _ = unsafe setrlimit(Int32(RLIMIT_NOFILE.rawValue), &limit)
    }

    /// `path` from the working directory, for when that is another one.
    public static func absolute(_ path: String) -> String {
        path.hasPrefix("/") ? path : DiskSpecification.currentDirectory + "/" + path
    }
}
