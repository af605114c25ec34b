// SPDX-License-Identifier: BSD-2-Clause
// Event channels in the broker: who is bound to whom (xen/common/event_channel.c).
import Base
import Glibc
import Xen

/// A port of a domain: unbound and waiting for a domain, or bound to a peer. Used on the broker's thread only.
final class HostedPort {
    let number: EventPort
    let domain: HostedDomain
    let channel: HostedChannel
    /// Which of the channel's two words belongs to this port.
    let end: Int
    let event: Descriptor
    unowned let client: HypervisorClient
    /// The domain that the port waits for while it has no peer.
    var waitsFor: DomainID
    weak var peer: HostedPort?

    init(
        number: EventPort, domain: HostedDomain, channel: HostedChannel, end: Int, event: Descriptor,
        client: HypervisorClient, waitsFor: DomainID
    ) {
        self.number = number
        self.domain = domain
        self.channel = channel
        self.end = end
        self.event = event
        self.client = client
        self.waitsFor = waitsFor
    }
}

/// The page that the two ends of a channel share.
final class HostedChannel {
    let file: Descriptor
    private let page: SharedRegion
    private(set) var link: UInt32 = 0

    init() throws(OperationError) {
        file = try Descriptor.sealedMemory("xbb-event-channel", byteCount: EventChannelLayout.pageBytes)
        page = try SharedRegion(file, byteCount: EventChannelLayout.pageBytes)
    }

    /// Increments the link: odd means bound, even means unbound.
    func advanceLink() {
        link &+= 1
        page.storeRelease32(link, at: EventChannelLayout.linkOffset)
    }

    func setWord(_ value: UInt32, end: Int) {
        page.storeRelease32(value, at: EventChannelLayout.wordOffset(end: end))
    }

    func isPending(end: Int) -> Bool {
        let both = EventChannelLayout.pending | EventChannelLayout.masked
        return page.load32(at: EventChannelLayout.wordOffset(end: end)) & both == EventChannelLayout.pending
    }
}

extension Hypervisor {
    /// The last port of a domain with the 2-level ABI on 64 bits; port 0 is never given.
    private static var portLimit: EventPort { 4095 }

    /// The eventfd of a handle; its ports share it.
    func openEvents(_ client: HypervisorClient) throws(OperationError) -> HypervisorAnswer {
        if let event = client.event { return answer([], [event]) }
        let event = try Descriptor.event()
        client.event = event
        return answer([], [event])
    }

    /// What drivers/xen/evtchn.c does for IOCTL_EVTCHN_RESTRICT_DOMID.
    func restrictEvents(to number: UInt32, _ client: HypervisorClient) throws(OperationError) {
        if client.eventDomain != nil { throw OperationError(EACCES, "restrict event channels again") }
        guard number != 0, number < HypervisorProtocol.domainLimit, let id = DomainID(exactly: number) else {
            throw OperationError(EINVAL, "restrict event channels to domain \(number)")
        }
        client.eventDomain = id
    }

    /// EVTCHNOP_alloc_unbound. The remote domain need not exist, as on Xen.
    func allocateUnbound(
        for remote: UInt32, _ client: HypervisorClient
    ) throws(OperationError) -> HypervisorAnswer {
        let local = try aliveDomain(of: client)
        if client.eventDomain != nil { throw OperationError(EACCES, "allocate event channel with a restricted handle") }
        guard let remote = DomainID(exactly: remote) else { throw OperationError(EINVAL, "allocate event channel") }
        let port = HostedPort(
            number: try freePort(of: local), domain: local, channel: try HostedChannel(), end: 0,
            event: try Descriptor.event(), client: client, waitsFor: remote)
        local.ports[port.number] = port
        client.ports.insert(port.number)
        return answer([port.number, 0], [port.channel.file, port.event])
    }

    /// EVTCHNOP_bind_interdomain: EINVAL unless the remote port is unbound and waits for the caller's domain.
    func bind(
        _ remotePort: EventPort, of remote: HostedDomain, _ client: HypervisorClient
    ) throws(OperationError) -> HypervisorAnswer {
        let local = try aliveDomain(of: client)
        guard let event = client.event else { throw OperationError(EINVAL, "bind event channel without a handle") }
        guard let other = remote.ports[remotePort], other.peer == nil, other.waitsFor == local.id else {
            throw OperationError(EINVAL, "bind event channel")
        }
        let port = HostedPort(
            number: try freePort(of: local), domain: local, channel: other.channel, end: 1 - other.end, event: event,
            client: client, waitsFor: remote.id)
        port.peer = other
        other.peer = port
        local.ports[port.number] = port
        client.ports.insert(port.number)
        // "We may have lost notifications on the remote unbound port": the new end is pending at once.
        port.channel.setWord(EventChannelLayout.pending, end: port.end)
        port.channel.advanceLink()
        event.signal()
        return answer(
            [port.number, UInt32(port.end), port.channel.link], [port.channel.file, other.event])
    }

    /// EVTCHNOP_close of the caller's own port.
    func closePort(_ number: EventPort, _ client: HypervisorClient) throws(OperationError) {
        guard client.ports.contains(number), let port = client.domain?.ports[number] else {
            throw OperationError(EINVAL, "close event channel")
        }
        close(port)
    }

    /// Closes a port; its peer becomes unbound and waits for this port's domain.
    func close(_ port: HostedPort) {
        port.domain.ports[port.number] = nil
        port.client.ports.remove(port.number)
        guard let peer = port.peer else { return }
        port.peer = nil
        peer.peer = nil
        peer.waitsFor = port.domain.id
        port.channel.advanceLink()
        // The process at this end may have been killed between setting the pending bit and waking the peer.
        if port.channel.isPending(end: peer.end) { peer.event.signal() }
    }

    /// Whom a port wakes: the link, and the peer's eventfd if there is a peer.
    func peer(of number: EventPort, _ client: HypervisorClient) throws(OperationError) -> HypervisorAnswer {
        guard client.ports.contains(number), let port = client.domain?.ports[number] else {
            throw OperationError(EINVAL, "find the peer of an event channel")
        }
        return answer([port.channel.link], port.peer.map { [$0.event] } ?? [])
    }

    /// The lowest free port, as Xen gives it.
    private func freePort(of domain: HostedDomain) throws(OperationError) -> EventPort {
        for number in 1...Self.portLimit where domain.ports[number] == nil { return number }
        throw OperationError(ENOSPC, "allocate event channel")
    }
}
