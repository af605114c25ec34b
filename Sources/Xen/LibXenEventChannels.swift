// SPDX-License-Identifier: BSD-2-Clause
// The real event channels, over libxenevtchn and /dev/xen/evtchn.
import Base
import CLinux
import CXen
import Glibc

/// Event channels of Xen (xenevtchn.h).
///
/// Unsafe code here is the C interface; the handle lives as long as this object.
@safe
public final class LibXenEventChannels: EventChannels {
    private let handle: OpaquePointer
    /// See ``EventChannels``.
    public let fileDescriptor: Int32

    /// Opens /dev/xen/evtchn: xenevtchn_open(). The descriptor never blocks.
    public init() throws(OperationError) {
        guard let handle = unsafe xenevtchn_open(nil, 0) else { throw OperationError(errno, "open /dev/xen/evtchn") }
        unsafe self.handle = handle
        fileDescriptor = unsafe xenevtchn_fd(handle)
        let flags = clinux_fcntl_int(fileDescriptor, F_GETFL, 0)
        _ = clinux_fcntl_int(fileDescriptor, F_SETFL, flags | O_NONBLOCK)
    }

    deinit {
        unsafe xenevtchn_close(handle)
    }

    /// See ``EventChannels``.
    public func bind(_ remotePort: EventPort, of domain: DomainID) throws(OperationError) -> EventPort {
        let port = unsafe xenevtchn_bind_interdomain(handle, UInt32(domain), remotePort)
        if port < 0 { throw OperationError(errno, "bind event channel \(remotePort) of domain \(domain)") }
        return EventPort(bitPattern: port)
    }

    /// See ``EventChannels``.
    public func restrict(to domain: DomainID) throws(OperationError) {
        if unsafe xenevtchn_restrict(handle, domain) != 0 {
            throw OperationError(errno, "restrict event channels to domain \(domain)")
        }
    }

    /// See ``EventChannels``.
    public func unbind(_ port: EventPort) throws(OperationError) {
        if unsafe xenevtchn_unbind(handle, port) != 0 { throw OperationError(errno, "unbind event channel \(port)") }
    }

    /// See ``EventChannels``.
    public func notify(_ port: EventPort) throws(OperationError) {
        if unsafe xenevtchn_notify(handle, port) != 0 { throw OperationError(errno, "notify event channel \(port)") }
    }

    /// See ``EventChannels``.
    public func takePending() throws(OperationError) -> EventPort? {
        let port = unsafe xenevtchn_pending(handle)
        if port >= 0 { return EventPort(bitPattern: port) }
        if errno == EAGAIN || errno == EINTR { return nil }
        throw OperationError(errno, "take pending event channel")
    }

    /// See ``EventChannels``.
    public func unmask(_ port: EventPort) throws(OperationError) {
        if unsafe xenevtchn_unmask(handle, port) != 0 { throw OperationError(errno, "unmask event channel \(port)") }
    }
}

/// Xen itself.
public struct NativeXen: XenPlatform {
    /// Opens nothing yet.
    public init() {}

    /// See ``XenPlatform``.
    public func openStore() throws(OperationError) -> any XenStore { try LibXenStore() }
    /// See ``XenPlatform``.
    public func openGrants() throws(OperationError) -> LibXenGrantTable { try LibXenGrantTable() }
    /// See ``XenPlatform``.
    public func openEvents() throws(OperationError) -> LibXenEventChannels { try LibXenEventChannels() }
}
