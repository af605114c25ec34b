// SPDX-License-Identifier: BSD-2-Clause
// The broker's state and the effect of each call on it. No sockets here.
import Base
import Glibc
import Xen

/// A process's connection, and everything that is released when it closes. Used on the broker's thread only.
final class HypervisorClient {
    var domain: HostedDomain?
    /// Slots by the serial of their domain.
    var attachments: [UInt32: (domain: HostedDomain, slot: Int)] = [:]
    var maps: [UInt32: HostedMap] = [:]
    var nextMap: UInt32 = 1
    var ports: Set<EventPort> = []
    /// The connection's share of its domain, once it has joined.
    var share: FrontendShare?
    /// The eventfd that the ports bound by this connection signal.
    var event: Descriptor?
    /// The one domain whose ports may be bound; nil for all.
    var eventDomain: DomainID?

    /// True if the connection holds nothing that belongs to its domain.
    var isIdle: Bool { ports.isEmpty && maps.isEmpty && attachments.isEmpty && share == nil }
}

/// Pages that a client maps.
struct HostedMap {
    let domain: HostedDomain
    let references: [UInt32]
    let writable: Bool
}

/// Domains, grants and event channels. Used on one thread.
final class Hypervisor {
    /// Called for XenStore when domains are created or destroyed.
    struct Hooks: Sendable {
        var created: @Sendable (DomainID) throws(OperationError) -> Void = { _ throws(OperationError) in }
        var destroyed: @Sendable (DomainID) -> Void = { _ in }
    }

    private var domains: [DomainID: HostedDomain] = [:]
    /// Destroyed domains whose pages are still mapped.
    private var dying: [HostedDomain] = []
    private var nextSerial: UInt32 = 1
    private var nextNumber: DomainID = 1
    private let hooks: Hooks

    /// A hypervisor with domain 0, which may be a frontend too: a toolstack attaches disks to its own domain, where a
    /// boot loader reads them.
    init(hooks: Hooks) throws(OperationError) {
        self.hooks = hooks
        domains[0] = try HostedDomain(id: 0, serial: 0, pages: 8192, entries: 32768)
    }

    /// Serves one call. Throws the errno that becomes the answer.
    func serve(_ message: HypervisorAnswer, of client: HypervisorClient) throws(OperationError) -> HypervisorAnswer {
        guard let operation = HypervisorOperation(rawValue: message.word(0)) else {
            throw OperationError(ENOSYS, "call")
        }
        if client.domain == nil && operation != .hello { throw OperationError(EPROTO, "call before hello") }
        switch operation {
        case .hello:
            if client.domain != nil { throw OperationError(EPROTO, "second hello") }
            if message.word(1) != HypervisorProtocol.version { throw OperationError(EPROTONOSUPPORT, "hello") }
            client.domain = try domain(message.word(2))
        case .createDomain:
            return try createDomain(message, client)
        case .destroyDomain:
            let domain = try domain(message.word(1))
            if domain.id == 0 { throw OperationError(EPERM, "destroy domain 0") }
            destroy(domain)
        case .describeDomain:
            let all = domains.values.sorted { $0.id < $1.id } + dying
            let index = Int(message.word(1))
            if index >= all.count { throw OperationError(ENOENT, "describe") }
            return answer(all[index].describe())
        case .join:
            let domain = try aliveDomain(of: client)
            if client.share != nil { throw OperationError(EBUSY, "join domain \(domain.id) again") }
            client.share = FrontendShare()
            domain.shares.frontends += 1
            return answer(
                [UInt32(domain.pageCount), UInt32(domain.entryCount)],
                [domain.memoryFile, domain.grantsFile, domain.readOnlyActiveFile])
        case .takeReferences:
            let (domain, share) = try share(of: client)
            return answer(try domain.takeReferences(Int(message.word(1)), for: share))
        case .takeFrames:
            let (domain, share) = try share(of: client)
            return answer([try domain.takeFrames(Int(message.word(1)), for: share)])
        case .giveFrames:
            let (domain, share) = try share(of: client)
            try domain.giveFrames(Int(message.word(1)), Int(message.word(2)), from: share)
        case .attach: return try attach(to: domain(message.word(1)), client)
        case .detach: try detach(message.word(1), client)
        case .map: return try map(message, client)
        case .unmap: try unmap(message.word(1), client)
        case .allocateUnbound: return try allocateUnbound(for: message.word(1), client)
        case .openEvents: return try openEvents(client)
        case .bindInterdomain:
            if let only = client.eventDomain, UInt32(only) != message.word(1) {
                throw OperationError(EACCES, "bind event channel of domain \(message.word(1))")
            }
            return try bind(message.word(2), of: domain(message.word(1)), client)
        case .closePort: try closePort(message.word(1), client)
        case .peer: return try peer(of: message.word(1), client)
        case .restrictEvents: try restrictEvents(to: message.word(1), client)
        case .settle: break  // the server has done it
        }
        return answer()
    }

    func answer(_ words: [UInt32] = [], _ descriptors: [Descriptor] = []) -> HypervisorAnswer {
        HypervisorAnswer(words: [0] + words, descriptors: descriptors)
    }

    /// A living domain; ESRCH if there is none.
    func domain(_ number: UInt32) throws(OperationError) -> HostedDomain {
        guard let id = DomainID(exactly: number), let domain = domains[id] else {
            throw OperationError(ESRCH, "find domain \(number)")
        }
        return domain
    }

    func aliveDomain(of client: HypervisorClient) throws(OperationError) -> HostedDomain {
        guard let domain = client.domain, domain.isAlive else { throw OperationError(ESRCH, "act for a domain") }
        return domain
    }

    private func share(of client: HypervisorClient) throws(OperationError) -> (HostedDomain, FrontendShare) {
        guard let share = client.share else { throw OperationError(EPERM, "act for a domain without having joined") }
        return (try aliveDomain(of: client), share)
    }

    // MARK: Domains

    private func createDomain(
        _ message: HypervisorAnswer, _ client: HypervisorClient
    ) throws(OperationError) -> HypervisorAnswer {
        let pages = Int(message.word(2))
        let entries = Int(message.word(3))
        guard let lifetime = DomainLifetime(rawValue: message.word(4)), (1...GrantTableLayout.pageLimit) ~= pages,
            (1...GrantTableLayout.entryLimit) ~= entries
        else { throw OperationError(EINVAL, "create domain") }
        if lifetime != .detached && (client.domain?.id != 0 || !client.isIdle) {
            throw OperationError(EBUSY, "adopt a domain")
        }
        let id = try freeNumber(message.word(1))
        let domain = try HostedDomain(id: id, serial: nextSerial, pages: pages, entries: entries)
        try hooks.created(id)
        nextSerial &+= 1
        domains[id] = domain
        if lifetime != .detached { client.domain = domain }
        domain.owner = lifetime == .withConnection ? client : nil
        return answer([UInt32(id)])
    }

    /// The requested number, or else the next free one in turn: as on Xen, numbers are reused as late as possible.
    private func freeNumber(_ wanted: UInt32) throws(OperationError) -> DomainID {
        if wanted != HypervisorProtocol.anyDomain {
            guard let id = DomainID(exactly: wanted), wanted < HypervisorProtocol.domainLimit else {
                throw OperationError(EINVAL, "create domain \(wanted)")
            }
            if domains[id] != nil { throw OperationError(EEXIST, "create domain \(wanted)") }
            return id
        }
        for _ in 1..<HypervisorProtocol.domainLimit {
            let id = nextNumber
            nextNumber = UInt32(id) + 1 < HypervisorProtocol.domainLimit ? id + 1 : 1
            if domains[id] == nil { return id }
        }
        throw OperationError(ENOSPC, "create domain")
    }

    private func destroy(_ domain: HostedDomain) {
        domain.isAlive = false
        domains[domain.id] = nil
        for port in domain.ports.values { close(port) }
        if domain.hasMappedGrants { dying.append(domain) }
        hooks.destroyed(domain.id)
    }

    /// Destroys all domains, so that every process that maps their tables sees it.
    func shutDown() {
        for domain in domains.values { domain.isAlive = false }
        domains = [:]
    }

    /// Releases everything that a closed connection held.
    func release(_ client: HypervisorClient) {
        if let domain = client.domain {
            for number in client.ports {
                if let port = domain.ports[number] { close(port) }
            }
            if let share = client.share { domain.end(share) }
            if domain.owner === client && domain.isAlive { destroy(domain) }
        }
        for map in client.maps.values { release(map) }
        for (domain, slot) in client.attachments.values {
            domain.giveSlot(slot)
            domain.reapOrphans()
        }
        client.share = nil
        client.maps = [:]
        client.attachments = [:]
        client.ports = []
        client.domain = nil
    }

    // MARK: Grants

    private func attach(
        to domain: HostedDomain, _ client: HypervisorClient
    ) throws(OperationError) -> HypervisorAnswer {
        let slot: Int
        if let attachment = client.attachments[domain.serial] {
            slot = attachment.slot
        } else {
            guard let free = domain.takeSlot() else { throw OperationError(ENOSPC, "attach") }
            slot = free
            client.attachments[domain.serial] = (domain, free)
        }
        return answer(
            [domain.serial, UInt32(domain.pageCount), UInt32(domain.entryCount), UInt32(slot)],
            [domain.memoryFile, domain.grantsFile, domain.activeFile])
    }

    private func detach(_ serial: UInt32, _ client: HypervisorClient) throws(OperationError) {
        guard let attachment = client.attachments.removeValue(forKey: serial) else {
            throw OperationError(EINVAL, "detach")
        }
        attachment.domain.giveSlot(attachment.slot)
    }

    /// Pins every reference or none.
    private func map(_ message: HypervisorAnswer, _ client: HypervisorClient) throws(OperationError) -> HypervisorAnswer
    {
        let mapper = try aliveDomain(of: client)
        let references = Array(message.words.dropFirst(3))
        guard let domain = client.attachments[message.word(1)]?.domain, domain.isAlive, !references.isEmpty,
            references.count <= HypervisorProtocol.mapLimit
        else { throw OperationError(EINVAL, "map") }
        let writable = message.word(2) != 0
        var frames: [UInt32] = []
        frames.reserveCapacity(references.count)
        for reference in references {
            switch domain.pin(reference, by: mapper.id, writable: writable) {
            case .success(let frame): frames.append(frame)
            case .failure:
                for done in references.prefix(frames.count) { domain.unpin(done, writable: writable) }
                throw OperationError(EINVAL, "map")
            }
        }
        var number = client.nextMap
        while client.maps[number] != nil { number &+= 1 }
        client.nextMap = number &+ 1
        client.maps[number] = HostedMap(domain: domain, references: references, writable: writable)
        return answer([number] + frames)
    }

    private func unmap(_ number: UInt32, _ client: HypervisorClient) throws(OperationError) {
        guard let map = client.maps.removeValue(forKey: number) else { throw OperationError(EINVAL, "unmap") }
        release(map)
    }

    private func release(_ map: HostedMap) {
        for reference in map.references { map.domain.unpin(reference, writable: map.writable) }
        map.domain.reapOrphans()
        if !map.domain.isAlive && !map.domain.hasMappedGrants {
            dying.removeAll { $0 === map.domain }
        }
    }
}
