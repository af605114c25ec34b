// SPDX-License-Identifier: BSD-2-Clause
// The backend's event channels on loopback.
import Base
import Glibc
public import Xen

/// Event channels over shared pending bits and one eventfd for the handle. Use from one thread.
public final class LoopbackEventChannels: EventChannels {
    private let connection: HypervisorConnection
    private let event: Descriptor
    private var ends: [EventEnd] = []
    /// Where the next search for a pending port starts, so that no port starves another.
    private var next = 0
    /// The port whose event was taken last while its signal is still in the eventfd, and the channel's link at that
    /// time.
    private var undrained: (port: EventPort, link: UInt32)?

    /// Connects to the hypervisor of `directory` as `domain`.
    public init(
        directory: String = LoopbackXen.defaultDirectory, domain: DomainID = 0
    ) throws(OperationError) {
        connection = try HypervisorConnection(directory: directory, domain: domain)
        let purpose = "open event channels"
        guard let event = try connection.call(.openEvents, for: purpose).descriptors.first else {
            throw OperationError(EPROTO, purpose)
        }
        self.event = event
    }

    /// The handle's eventfd: readable while a port is pending and not masked, and once more after a port was taken,
    /// until ``takePending()`` finds none.
    public var fileDescriptor: Int32 { event.raw }

    /// EVTCHNOP_bind_interdomain: EACCES for another domain than the handle is restricted to, ESRCH for no such domain, EINVAL unless the port is unbound and waits for this domain.
    ///
    /// The new port is pending at once, since events may have been lost before.
    public func bind(_ remotePort: EventPort, of domain: DomainID) throws(OperationError) -> EventPort {
        let purpose = "bind event channel \(remotePort) of domain \(domain)"
        let answer = try connection.call(.bindInterdomain, [UInt32(domain), remotePort], for: purpose)
        guard answer.descriptors.count == 2 else { throw OperationError(EPROTO, purpose) }
        let page = try SharedRegion(answer.descriptors[0], byteCount: EventChannelLayout.pageBytes)
        let end = EventEnd(
            port: answer.word(0), end: Int(answer.word(1)), page: page, connection: connection,
            peer: answer.descriptors[1], link: answer.word(2))
        ends.append(end)
        return end.port
    }

    /// IOCTL_EVTCHN_RESTRICT_DOMID: EACCES the second time, EINVAL for domain 0 and numbers that are no domain's.
    public func restrict(to domain: DomainID) throws(OperationError) {
        _ = try connection.call(.restrictEvents, [UInt32(domain)], for: "restrict event channels to domain \(domain)")
    }

    /// ENOTCONN for a port that is not this handle's.
    public func unbind(_ port: EventPort) throws(OperationError) {
        guard let index = ends.firstIndex(where: { $0.port == port }) else {
            throw OperationError(ENOTCONN, "unbind event channel \(port)")
        }
        ends.remove(at: index)
        if undrained?.port == port { undrained = nil }
        _ = try connection.call(.closePort, [port], for: "unbind event channel \(port)")
    }

    /// ENOTCONN for a port that is not this handle's; nothing happens while there is no other end.
    public func notify(_ port: EventPort) throws(OperationError) {
        guard let end = ends.first(where: { $0.port == port }) else {
            throw OperationError(ENOTCONN, "notify event channel \(port)")
        }
        try end.notify()
    }

    /// Takes one pending port and masks it. Makes one system call when there is none, and none otherwise.
    public func takePending() throws(OperationError) -> EventPort? {
        if let port = take() { return port }
        event.drain()
        // The wake-up of an event that came before the drain is gone with it: unmask() must not count on it.
        defer { undrained = nil }
        return take()
    }

    private func take() -> EventPort? {
        for step in 0..<ends.count {
            let index = (next + step) % ends.count
            let end = ends[index]
            let link = end.link
            if end.take(masking: true) {
                next = index + 1
                undrained = (end.port, link)
                return end.port
            }
        }
        return nil
    }

    /// A port that is not this handle's is ignored, as evtchn does.
    public func unmask(_ port: EventPort) throws(OperationError) {
        guard let end = ends.first(where: { $0.port == port }) else { return }
        if !end.unmask() { return }
        if let undrained, undrained == (port, end.link) { return }
        event.signal()
    }
}
