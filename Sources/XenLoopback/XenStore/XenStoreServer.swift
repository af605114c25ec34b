// SPDX-License-Identifier: BSD-2-Clause
// The XenStore daemon for machines without Xen, as others see it.
import Base
import CLinux
import Glibc
import Synchronization
public import Xen

/// A XenStore daemon in this process, for the real libxenstore and its tools.
///
/// In its directory it listens at one socket per domain; who connects to `xenstored-<domid>.sock` is that domain, and
/// who connects to `xenstored.sock` is domain 0. Clients find it by the path in XENSTORED_PATH. The protocol is that
/// of xs_wire.h, the semantics those of docs/misc/xenstore.txt of Xen, the limits for domains other than 0 those of
/// Xen's xenstored. A client that breaks the protocol, or does not read while a megabyte of watch events gathers,
/// loses its connection.
///
/// Requests are served on a thread of its own, which sleeps while there are none. All functions may be called from any
/// thread.
public final class XenStoreServer: Sendable {
    private let loop: XenStoreLoop
    private let thread: Mutex<pthread_t?>

    /// Listens in `directory`, which must exist and should be the user's alone.
    ///
    /// The store holds "/tool" and "/local/domain/0" with "domid" and "name". Throws what socket(2), bind(2) and
    /// epoll_create1(2) say: EADDRINUSE if another server listens there, ENAMETOOLONG if the path is longer than 107
    /// bytes.
    public convenience init(directory: String) throws(OperationError) {
        try self.init(directory: directory, limits: XenStoreLimits())
    }

    init(directory: String, limits: XenStoreLimits) throws(OperationError) {
        let loop = try XenStoreLoop(directory: directory, limits: limits)
        do {
            thread = Mutex(try Self.start(loop))
        } catch {
            loop.close()
            throw error
        }
        self.loop = loop
    }

    deinit {
        stop()
    }

    /// The socket of a domain, to be set as XENSTORED_PATH.
    public func socketPath(of domain: DomainID) -> String {
        loop.socketPath(of: domain)
    }

    /// Makes a domain: its socket, its home with what libxl puts there, and the event of @introduceDomain.
    ///
    /// "/local/domain/<domid>" belongs to domain 0 and lets the domain read; below it the domain owns "device",
    /// "data", "drivers" and "error". What was at that path before is gone. When it returns the domain can connect.
    /// Throws EINVAL for 0 and the reserved numbers from 0x7FF0 on, EEXIST for a domain that is there, and what
    /// bind(2) says; ESHUTDOWN after ``stop()``.
    public func addDomain(_ domain: DomainID) throws(OperationError) {
        try loop.addDomain(domain)
    }

    /// Ends a domain: its connections, its home and the nodes that it owns, its socket; then the event of
    /// @releaseDomain. Without effect on a domain that is not there.
    public func removeDomain(_ domain: DomainID) {
        loop.removeDomain(domain)
    }

    /// Ends all connections, removes the sockets and waits for the thread. Nothing has an effect afterwards.
    public func stop() {
        let running = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        guard let running else { return }
        loop.stop()
        _ = pthread_join(running, nil)
    }

    /// Runs the loop on a new thread, which leaves all signals to the others.
    private static func start(_ loop: XenStoreLoop) throws(OperationError) -> pthread_t {
        try startThread(named: "xenstored") { loop.run() }
    }
}
