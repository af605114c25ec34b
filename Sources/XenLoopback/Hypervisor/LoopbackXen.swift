// SPDX-License-Identifier: BSD-2-Clause
// The loopback hypervisor in this process, for tests, benchmarks and xbb-loopback.
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

    /// Makes the directory if needed and starts; EADDRINUSE while another process serves the same directory.
    public init(directory: String = LoopbackXen.defaultDirectory) throws(XenError) {
        self.directory = directory
        throw XenError(ENOSYS, "start the loopback hypervisor")
    }

    /// The backend's side of the seam for `domain`.
    public func platform(domain: DomainID = 0, copiesData: Bool = true) -> LoopbackPlatform {
        LoopbackPlatform(directory: directory, domain: domain, copiesData: copiesData)
    }

    /// All domains with their grants and ports.
    public func domains() throws(XenError) -> [LoopbackDomainReport] {
        try LoopbackControl(directory: directory).domains()
    }

    /// Stops serving: sockets close, domains are forgotten. Shared memory stays with whoever mapped it.
    public func stop() {
    }
}
