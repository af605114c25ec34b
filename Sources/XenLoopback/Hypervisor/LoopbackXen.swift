// SPDX-License-Identifier: BSD-2-Clause
// The loopback hypervisor in this process, for tests, benchmarks and xbb-loopback.
import Base
import CLinux
import Glibc
public import Xen

/// The XenStore daemon and the hypervisor on background threads, from init to ``stop()`` or the last reference.
///
/// Backends and frontends reach it by its directory, in this process or in others:
///
///     let xen = try LoopbackXen(directory: "/tmp/lab")
///     let platform = xen.platform()                      // backend side: XenPlatform
///     let guest = try LoopbackDomain(directory: xen.directory, pages: 4096)
public final class LoopbackXen: Sendable {
    /// $XBB_LOOPBACK, or /run/xbb-loopback.
    public static var defaultDirectory: String {
        guard let value = unsafe getenv("XBB_LOOPBACK") else { return "/run/xbb-loopback" }
        return unsafe String(cString: value)
    }

    /// Where the sockets are.
    public let directory: String

    private let lock: DirectoryLock
    private let store: XenStoreServer
    private let hypervisor: HypervisorServer

    /// Makes the directory if needed and starts; EADDRINUSE while another process serves the same directory.
    public init(directory: String = LoopbackXen.defaultDirectory) throws(OperationError) {
        self.directory = directory
        lock = try DirectoryLock(directory)
        let store = try XenStoreServer(directory: directory)
        self.store = store
        hypervisor = try HypervisorServer(
            directory: directory,
            hooks: .init(
                created: { domain throws(OperationError) in try store.addDomain(domain) },
                destroyed: { store.removeDomain($0) }))
    }

    deinit {
        stop()
    }

    /// The backend's platform in `domain`.
    public func platform(domain: DomainID = 0, copiesData: Bool = true) -> LoopbackPlatform {
        LoopbackPlatform(directory: directory, domain: domain, copiesData: copiesData)
    }

    /// All domains with their grants and ports.
    public func domains() throws(OperationError) -> [LoopbackDomainReport] {
        try LoopbackControl(directory: directory).domains()
    }

    /// Stops only XenStore, as if its daemon had crashed.
    public func stopStore() {
        store.stop()
    }

    /// Stops serving: sockets close and domains are forgotten. Processes keep the shared memory that they have mapped.
    public func stop() {
        hypervisor.stop()
        store.stop()
    }
}

/// An exclusive lock on a directory, released when its holder ends. Files that a killed holder left there are stale.
private final class DirectoryLock: Sendable {
    private let file: Descriptor

    init(_ directory: String) throws(OperationError) {
        if unsafe mkdir(directory, 0o755) != 0 && errno != EEXIST { throw OperationError(errno, "make \(directory)") }
        let path = directory + "/lock"
        let raw = unsafe clinux_open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        if raw < 0 { throw OperationError(errno, "open \(path)") }
        file = Descriptor(owning: raw)
        if flock(raw, LOCK_EX | LOCK_NB) != 0 {
            throw OperationError(errno == EWOULDBLOCK ? EADDRINUSE : errno, "lock \(path)")
        }
    }
}
