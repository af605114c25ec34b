// SPDX-License-Identifier: BSD-2-Clause
// The XenStore daemon without its sockets: bytes of clients in, bytes for clients out.
import Xen

/// The store, its clients and its domains; a value without effects.
///
/// The owner of the sockets tells it of clients that come and go and of the bytes they sent, and after every call
/// serves those that ``takeTouched()`` names. Memory is bounded: see ``XenStoreLimits``.
///
///     connect ─► receive ─► (answers, watch events) ─► bytesToSend ─► didSend ─► resume
///
/// Semantics are those of docs/misc/xenstore.txt and, where it is silent, of Xen's xenstored.
struct XenStoreCore: Sendable {
    let limits: XenStoreLimits
    var nodes: XenStoreNodes
    /// Clients that were not closed.
    var connections: [XenStoreConnectionID: XenStoreConnection] = [:]
    /// Domains between their introduction and their release.
    private(set) var introducedDomains: Set<DomainID> = [0] {
        didSet { domainChanges += 1 }
    }
    /// How often they have changed.
    private(set) var domainChanges = 0
    var targets: [DomainID: DomainID] = [:]
    private var touched: Set<XenStoreConnectionID> = []
    private var lastConnection: UInt64 = 0
    private var lastTransaction: UInt32 = 0

    /// A store with "/tool" and the home of domain 0.
    init(limits: XenStoreLimits = XenStoreLimits()) {
        self.limits = limits
        nodes = XenStoreNodes(limits: limits)
        place("/tool/xenstored", "", .controlOnly)
        place("/local/domain/0/domid", "0", .controlOnly)
        place("/local/domain/0/name", "Domain-0", .controlOnly)
        tellWatches()
    }

    // MARK: Clients

    /// A client of `domain`, or nil if the domain has enough of them.
    mutating func connect(as domain: DomainID) -> XenStoreConnectionID? {
        guard introducedDomains.contains(domain) else { return nil }
        guard domain == 0 || connections(of: domain).count < limits.connections else { return nil }
        lastConnection += 1
        let id = XenStoreConnectionID(number: lastConnection)
        connections[id] = XenStoreConnection(domain: domain)
        return id
    }

    /// Ends a client; its watches and open transactions are gone.
    mutating func disconnect(_ id: XenStoreConnectionID) {
        connections[id] = nil
        touched.insert(id)
    }

    /// False once the client is gone, by itself or because it broke a rule; its socket must be closed.
    func isConnected(_ id: XenStoreConnectionID) -> Bool { connections[id] != nil }

    /// False while the client should read its answers first.
    func wantsInput(from id: XenStoreConnectionID) -> Bool {
        guard let connection = connections[id] else { return false }
        return connection.outbox.byteCount < limits.outputBytesToPause
    }

    /// Takes bytes of a client and answers what they complete.
    mutating func receive(_ bytes: ArraySlice<UInt8>, from id: XenStoreConnectionID) {
        connections[id]?.decoder.append(bytes)
        resume(id)
    }

    /// Continues with requests that arrived earlier and had to wait for room.
    mutating func resume(_ id: XenStoreConnectionID) {
        while wantsInput(from: id) {
            do {
                guard let request = try connections[id]?.decoder.next() else { return }
                answer(request, of: id)
            } catch {
                disconnect(id)
            }
        }
    }

    /// The next bytes for a client, about `limit` of them; empty if there are none.
    func bytesToSend(to id: XenStoreConnectionID, about limit: Int) -> [UInt8] {
        connections[id]?.outbox.bytes(about: limit) ?? []
    }

    /// Notes that the first `count` of them were sent.
    mutating func didSend(_ count: Int, to id: XenStoreConnectionID) {
        connections[id]?.outbox.didSend(count)
    }

    /// Clients that have more to be sent or that are gone, since the last call.
    mutating func takeTouched() -> Set<XenStoreConnectionID> {
        defer { touched.removeAll() }
        return touched
    }

    // MARK: Domains

    /// Makes the home of a domain as libxl does, and introduces it.
    ///
    /// The home belongs to domain 0 and lets the domain read; below it the domain owns "device", "data", "drivers"
    /// and "error".
    mutating func addDomain(_ domain: DomainID) {
        let home = XenStorePath(homeOf: domain)
        let readable = XenStoreNodePermissions(
            ownedBy: 0, others: [XenStorePermission(domain: domain, read: true, write: false)])
        var none: XenStoreTransactionLog?
        try? nodes.remove(home, by: .control, in: &none)
        place(home.description, "", readable)
        place(home.child("domid").description, "\(domain)", readable)
        place(home.child("name").description, "Domain-\(domain)", readable)
        for name in ["device", "data", "drivers", "error"] {
            place(home.child(name).description, "", XenStoreNodePermissions(ownedBy: domain))
        }
        tellWatches()
        introduce(domain)
    }

    /// Removes the home of a domain and releases the domain. Without effect on a domain that was not introduced.
    mutating func removeDomain(_ domain: DomainID) {
        guard domain != 0, introducedDomains.contains(domain) else { return }
        disconnectClients(of: domain)
        var none: XenStoreTransactionLog?
        try? nodes.remove(XenStorePath(homeOf: domain), by: .control, in: &none)
        release(domain)
    }

    /// Lets a domain connect, and notifies the watches on @introduceDomain.
    mutating func introduce(_ domain: DomainID) {
        guard introducedDomains.insert(domain).inserted else { return }
        tellSpecial(.introduceDomain)
    }

    /// Ends all clients of a domain, removes what it owns, and notifies the watches on @releaseDomain.
    mutating func release(_ domain: DomainID) {
        guard introducedDomains.remove(domain) != nil else { return }
        disconnectClients(of: domain)
        targets = targets.filter { $0.key != domain && $0.value != domain }
        nodes.forget(domain)
        tellWatches()
        tellSpecial(.releaseDomain)
    }

    /// The clients of a domain.
    func connections(of domain: DomainID) -> [XenStoreConnectionID: XenStoreConnection] {
        connections.filter { $0.value.domain == domain }
    }

    private mutating func disconnectClients(of domain: DomainID) {
        for id in connections(of: domain).keys { disconnect(id) }
    }

    // MARK: Messages to clients

    /// Sends an answer.
    mutating func send(_ message: XenStoreMessage, to id: XenStoreConnectionID) {
        connections[id]?.outbox.append(message)
        touched.insert(id)
    }

    /// Sends a watch event; a client that lets too many wait is disconnected.
    mutating func sendEvent(_ payload: [UInt8], to id: XenStoreConnectionID) {
        guard connections[id] != nil else { return }
        touched.insert(id)
        if connections[id]?.outbox.appendEvent(payload, limit: limits.outputBytes) == false { disconnect(id) }
    }

    /// Notifies all watches of the changes that took effect.
    mutating func tellWatches() {
        for change in nodes.takeChanges() { tell(change) }
    }

    /// A number for a transaction, not 0 and not in use.
    mutating func newTransactionID(of id: XenStoreConnectionID) -> UInt32 {
        lastTransaction &+= 1
        while lastTransaction == 0 || connections[id]?.transactions[lastTransaction] != nil { lastTransaction &+= 1 }
        return lastTransaction
    }

    private mutating func tellSpecial(_ path: XenStorePath) {
        let permissions = nodes.permissions(of: path) ?? .controlOnly
        tell(XenStoreChange(path: path, reach: .nodeOnly, audience: [permissions]))
    }

    private mutating func tell(_ change: XenStoreChange) {
        var events: [(XenStoreConnectionID, [UInt8])] = []
        for (id, connection) in connections where !connection.watches.isEmpty {
            let client = identity(of: connection.domain)
            guard change.audience.contains(where: { $0.rights(of: client).contains(.read) }) else { continue }
            for watch in connection.watches where watch.sees(change) {
                if let event = watch.event(change.path) { events.append((id, event)) }
            }
        }
        for (id, event) in events { sendEvent(event, to: id) }
    }

    /// The identity with which `domain` makes requests.
    func identity(of domain: DomainID) -> XenStoreIdentity {
        XenStoreIdentity(domain: domain, target: targets[domain])
    }

    private mutating func place(_ path: String, _ value: String, _ permissions: XenStoreNodePermissions) {
        var none: XenStoreTransactionLog?
        let bytes = Array(path.utf8)
        guard let path = try? XenStorePath(bytes[...], from: 0, limit: .max, allowSpecial: false) else { return }
        try? nodes.write(Array(value.utf8), to: path, by: .control, in: &none)
        try? nodes.setPermissions(permissions, of: path, by: .control, in: &none)
    }
}
