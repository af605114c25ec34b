// SPDX-License-Identifier: BSD-2-Clause
// The environment of a daemon: status for the service manager, running in the background, the limit of descriptors.
public import Base
import CLinux
import Glibc
import Synchronization

/// The service manager's datagram socket (sd_notify(3)).
public final class ServiceManager: Sendable {
    private let path: String?
    /// The interval of heartbeats in ns, half of the manager's watchdog timeout; nil if it expects none.
    public let heartbeat: UInt64?
    /// The descriptors that it has kept, and their names, until they are taken: who holds one keeps its file open.
    private let stored: Mutex<[(name: String, file: Descriptor)]>

    /// Removes NOTIFY_SOCKET from the environment, so that workers do not report in xbbd's name.
    public init() {
        func value(_ name: String) -> String? { unsafe getenv(name).map { unsafe String(cString: $0) } }
        path = value("NOTIFY_SOCKET")
        let isMeant = value("WATCHDOG_PID").map { $0 == String(getpid()) } ?? true
        let microseconds = value("WATCHDOG_USEC").flatMap { UInt64($0) } ?? 0
        heartbeat = isMeant && microseconds > 0 && microseconds < UInt64.max / 1000 ? microseconds * 500 : nil
        let isForUs = value("LISTEN_PID") == String(getpid())
        stored = Mutex(isForUs ? Self.inherited(value("LISTEN_FDS"), value("LISTEN_FDNAMES")) : [])
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            unsafe unsetenv(name)
        }
    }

    /// Sends "READY=1" or another state. Does nothing if there is no service manager or it does not listen.
    public func say(_ state: String) {
        if let path { _ = unsafe clinux_notify(path, state, nil, 0) }
    }

    // MARK: Its descriptor store

    /// The first descriptor that is passed on (sd_listen_fds(3)).
    private static var firstDescriptor: Int32 { 3 }

    private static func inherited(_ count: String?, _ names: String?) -> [(name: String, file: Descriptor)] {
        let count = min(count.flatMap { Int32($0) } ?? 0, 65536)
        guard count > 0 else { return [] }
        let names = (names ?? "").split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        return (0..<count).map { index in
            let raw = firstDescriptor + index
            _ = clinux_fcntl_int(raw, F_SETFD, FD_CLOEXEC)
            let name = Int(index) < names.count ? names[Int(index)] : ""
            return (name, Descriptor(owning: raw))
        }
    }

    /// There is one.
    var isPresent: Bool { path != nil }

    /// What an earlier process has stored, by name; once.
    func takeStored() -> [String: [Descriptor]] {
        stored.withLock { stored in
            defer { stored = [] }
            return Dictionary(grouping: stored, by: \.name).mapValues { $0.map(\.file) }
        }
    }

    /// The sockets that the manager listens at for this process (systemd.socket(5)), once.
    public func takeListeners() -> [Descriptor] {
        stored.withLock { stored in
            defer { stored = [] }
            return stored.map(\.file)
        }
    }

    /// Stores open files beyond the end of this process (FDSTORE). `name` has no ':' and at most 255 bytes. Connections whose other end
    /// is gone stay, too (FDPOLL).
    func store(_ files: [Descriptor], as name: String) {
        guard let path else { return }
        let raw = files.map(\.raw)
        _ = unsafe clinux_notify(path, "FDSTORE=1\nFDPOLL=0\nFDNAME=\(name)", raw, raw.count)
    }

    /// Closes what is stored with that name.
    func removeStored(_ name: String) { say("FDSTOREREMOVE=1\nFDNAME=\(name)") }
}

/// The process itself.
public enum DaemonProcess {
    /// Goes into the background. Standard error, also that of workers, becomes the system log.
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

    /// Raises the limit of descriptors to what the administrator allows: xbbd holds one for each worker.
    public static func raiseDescriptorLimit() {
        var limit = rlimit()
        guard unsafe getrlimit(Int32(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
        limit.rlim_cur = limit.rlim_max
        _ = unsafe setrlimit(Int32(RLIMIT_NOFILE.rawValue), &limit)
    }

    /// `path` as an absolute path, which stays valid when the working directory changes.
    public static func absolute(_ path: String) -> String {
        path.hasPrefix("/") ? path : DiskSpecification.currentDirectory + "/" + path
    }
}
