// SPDX-License-Identifier: BSD-2-Clause
// Maps sockets to domains and clients, and carries bytes between them and the core.
import Base
import CLinux
import Glibc
import Xen

/// The listening sockets, the clients and the core, to be used by one thread at a time.
struct XenStoreSockets: Sendable {
    private struct Listener {
        let socket: XenStoreSocket
        let token: UInt64
    }

    private struct Client {
        let socket: XenStoreSocket
        let id: XenStoreConnectionID
        var interest: XenStorePoll.Interest
    }

    private let directory: String
    private let poll: XenStorePoll
    private var core: XenStoreCore
    private var listeners: [DomainID: Listener] = [:]
    private var domains: [UInt64: DomainID] = [:]
    private var clients: [UInt64: Client] = [:]
    private var tokens: [XenStoreConnectionID: UInt64] = [:]
    private var lastToken: UInt64 = 0
    private var seenDomainChanges = 0
    /// True while the process has no descriptors left for new connections.
    private var isAcceptingPaused = false
    private var isClosed = false

    /// Listens for domain 0.
    init(directory: String, core: XenStoreCore, poll: XenStorePoll) throws(OperationError) {
        self.directory = directory
        self.core = core
        self.poll = poll
        try listen(for: 0)
    }

    /// The socket of a domain.
    static func path(of domain: DomainID, in directory: String) -> String {
        domain == 0 ? "\(directory)/xenstored.sock" : "\(directory)/xenstored-\(domain).sock"
    }

    // MARK: Domains

    mutating func addDomain(_ domain: DomainID) throws(OperationError) {
        guard !isClosed else { throw OperationError(ESHUTDOWN, "add domain \(domain)") }
        guard XenStoreCore.isOrdinary(domain) else { throw OperationError(EINVAL, "add domain \(domain)") }
        guard !core.introducedDomains.contains(domain) else { throw OperationError(EEXIST, "add domain \(domain)") }
        try listen(for: domain)
        core.addDomain(domain)
        settle()
    }

    mutating func removeDomain(_ domain: DomainID) {
        if isClosed { return }
        core.removeDomain(domain)
        settle()
    }

    /// Closes everything. The value must not be used afterwards.
    mutating func closeAll() {
        isClosed = true
        for domain in listeners.keys { stopListening(for: domain) }
        clients = [:]
        tokens = [:]
    }

    // MARK: Events

    /// Serves a socket that is ready.
    mutating func serve(_ event: XenStorePoll.Event, _ buffer: inout [UInt8]) {
        if let domain = domains[event.token] {
            accept(for: domain)
        } else if let client = clients[event.token] {
            if event.ready.contains(.input) {
                switch client.socket.receive(into: &buffer) {
                case .bytes(let count): core.receive(buffer[..<count], from: client.id)
                case .ended: core.disconnect(client.id)
                case .wouldBlock: break
                }
            } else if !event.ready.isDisjoint(with: .ended) {
                // It sends no more, or does not read the answers.
                core.disconnect(client.id)
            }
            if event.ready.contains(.output) { flush(client.id) }
        }
        settle()
    }

    /// Tries to accept again after a pause. Returns how long to wait for events until the next attempt; -1 for no
    /// limit.
    mutating func resumeAccepting() -> Int32 {
        guard isAcceptingPaused else { return -1 }
        isAcceptingPaused = false
        for domain in Array(listeners.keys) {
            accept(for: domain)
            if isAcceptingPaused { return 100 }
        }
        for listener in listeners.values { poll.change(listener.socket, listener.token, .input) }
        settle()
        return -1
    }

    private mutating func accept(for domain: DomainID) {
        guard let listener = listeners[domain] else { return }
        do {
            while let socket = try listener.socket.accept() {
                // More connections than a domain may have: closed at once.
                guard let id = core.connect(as: domain) else { continue }
                let token = newToken()
                do {
                    try poll.add(socket, token, .input)
                    clients[token] = Client(socket: socket, id: id, interest: .input)
                    tokens[id] = token
                } catch {
                    core.disconnect(id)
                }
            }
        } catch {
            // Out of descriptors. A waiting connection would make the socket ready again and again.
            isAcceptingPaused = true
            for listener in listeners.values { poll.change(listener.socket, listener.token, []) }
        }
    }

    // MARK: What follows from changes

    /// Listens for the domains there are, sends what the core has for clients, and closes those that are gone.
    private mutating func settle() {
        listenForDomains()
        while true {
            let touched = core.takeTouched()
            if touched.isEmpty { return }
            for id in touched { flush(id) }
        }
    }

    /// Comes before sending: once INTRODUCE is answered the domain can connect.
    private mutating func listenForDomains() {
        if seenDomainChanges == core.domainChanges { return }
        seenDomainChanges = core.domainChanges
        for domain in listeners.keys where !core.introducedDomains.contains(domain) { stopListening(for: domain) }
        for domain in core.introducedDomains where listeners[domain] == nil {
            // If this fails, nobody can connect to the domain's socket; there is nothing else to report.
            try? listen(for: domain)
        }
    }

    private mutating func flush(_ id: XenStoreConnectionID) {
        guard let token = tokens[id], var client = clients[token] else { return }
        var isBlocked = false
        while core.isConnected(id) && !isBlocked {
            let bytes = core.bytesToSend(to: id, about: 1 << 16)
            if bytes.isEmpty { break }
            switch client.socket.send(bytes) {
            case .bytes(let count):
                core.didSend(count, to: id)
                core.resume(id)
                listenForDomains()
            case .wouldBlock: isBlocked = true
            case .ended: core.disconnect(id)
            }
        }
        guard core.isConnected(id) else {
            clients[token] = nil
            tokens[id] = nil
            return
        }
        var interest: XenStorePoll.Interest = []
        if core.wantsInput(from: id) { interest.insert(.input) }
        if isBlocked { interest.insert(.output) }
        if interest != client.interest {
            poll.change(client.socket, token, interest)
            client.interest = interest
            clients[token] = client
        }
    }

    private mutating func listen(for domain: DomainID) throws(OperationError) {
        let path = Self.path(of: domain, in: directory)
        let socket = try XenStoreSocket.listening(at: path)
        let token = newToken()
        do {
            try poll.add(socket, token, isAcceptingPaused ? [] : .input)
        } catch {
            _ = unsafe unlink(path)
            throw error
        }
        listeners[domain] = Listener(socket: socket, token: token)
        domains[token] = domain
    }

    private mutating func stopListening(for domain: DomainID) {
        guard let listener = listeners.removeValue(forKey: domain) else { return }
        domains[listener.token] = nil
        _ = unsafe unlink(Self.path(of: domain, in: directory))
    }

    private mutating func newToken() -> UInt64 {
        lastToken += 1
        return lastToken
    }
}
