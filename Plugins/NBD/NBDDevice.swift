// SPDX-License-Identifier: BSD-2-Clause
// An export: names, keys and sockets in open(), handshakes in start().
import CGnuTLS
import Glibc
import NBD
import PluginKit
import Synchronization

/// An export of an NBD server.
///
/// A connection that breaks ends the process (`XBB_NOTIFY_REOPEN`): its successor has the rights to resolve names, read keys and
/// connect to Unix sockets, and finds in the journal what the guest waits for. So there is one way back to the server, whether a worker
/// was killed or a server restarted, and it is fenced.
///
/// `@unchecked Sendable`: what queues read is written by start(), before there are queues; the rest is that of control calls.
final class NBDDevice: StorageDisk, @unchecked Sendable {
    let host: HostDisk
    /// For messages.
    let server: String
    private let isReadOnly: Bool
    /// A guest has the disk already.
    private let isAwaited: Bool
    private let wishes: Handshake.Wishes
    /// How long each answer of the server may take where no guest has the disk, in ms; see ``Handshakes``.
    private let patience: Int32
    private let credentials: Credentials?
    /// Seconds; see ``Fence``.
    private let fenceTimeout: UInt64
    /// Processes before this one whose writes the server may still do.
    private var before: [Generation] = []
    /// Nobody knows what they were.
    private let isUnfenced: Bool
    private let own: Generation
    /// The connections that serve queues.
    private var connections: [Handshakes.Connection] = []
    /// One beside them, for questions; nil: the server allows only one, or does not know what is allocated.
    private(set) var inquiry: Inquiry?
    /// Queues that are open.
    private let queues = Mutex<[NBDQueue]>([])
    /// What the server said; nil before start().
    private(set) var facts: ExportFacts?

    init(_ opening: Opening) throws(PluginError) {
        let location = try opening.location
        let uri: ExportURI
        do throws(ExportURIError) { uri = try ExportURI(location) } catch { throw .invalid(error.message) }
        host = opening.hostDisk
        server = "\(uri)"
        isReadOnly = opening.isReadOnly
        isAwaited = opening.isSuccessor
        wishes = Handshake.Wishes(uri)
        patience = Int32(clamping: try opening[NBDOption.connectTimeout] &* 1000)
        credentials = try Credentials.of(uri, opening)
        fenceTimeout = try opening[NBDOption.fenceTimeout]
        var (found, isBehindUnknown, before): (Int, Bool, [Generation]) = (0, false, [])
        for base in Generation.bases {
            guard let process = try Generation.inherited(opening, base: base) else { continue }
            found += 1
            isBehindUnknown = isBehindUnknown || process.log.isBehindUnknown
            // A server that serves one connection at a time would wait for more on one that nobody uses.
            if process.log.isClear { process.end() } else { before.append(process) }
        }
        let free = Generation.bases.first { base in before.allSatisfy { $0.base != base } }
        guard let free else {
            throw PluginError(EPROTO, "two processes before have left writes that nobody waited for")
        }
        own = Generation(try FlightLog(), try Self.connect(uri, opening), base: free)
        // Both, until this one has waited.
        for process in before { _ = try process.keep(opening) }
        self.before = before
        _ = try own.keep(opening)
        isUnfenced = !isReadOnly && (opening.isAfterDeath && found == 0 || isBehindUnknown)
        // For the next one, where this process dies before it has waited.
        own.log.isBehindUnknown = isUnfenced
    }

    /// One connection at least; more where the server takes them, of which it says only later whether they may be used.
    private static func connect(_ uri: ExportURI, _ opening: Opening) throws(PluginError) -> [(Int, Int32)] {
        let seconds = try opening[NBDOption.connectTimeout]
        // One more, for questions.
        let most = min(Int(clamping: try opening[NBDOption.connections]) + 1, FlightLog.mostConnections)
        let first: (socket: Int32, endpoint: Endpoint)
        do throws(PluginError) {
            first = try Endpoint.connect(try Endpoint.resolve(uri.transport), seconds: seconds)
        } catch {
            throw PluginError(error.code, "cannot connect to \(uri): \(error.message)")
        }
        var sockets = [(0, first.socket)]
        // All to one address: a name may have several, of servers that differ.
        for index in 1..<most {
            do throws(PluginError) {
                sockets.append((index, try Endpoint.connect([first.endpoint], seconds: 1).socket))
            } catch {
                break
            }
        }
        return sockets
    }

    func start() throws(PluginError) {
        do throws(PluginError) {
            let handshakes = try handshakes()
            let fence = Fence(host: host, server: server, timeout: fenceTimeout, wait: handshakes.wait)
            for process in before { fence.wait(for: process) }
            before = []
            if isUnfenced {
                fence.waitWithoutConnections()
                own.log.isBehindUnknown = false
            }
            try take(handshakes)
        } catch {
            guard isAwaited else { throw PluginError(error.code, "\(server): \(error.message)") }
            // The guest would lose its disk. Another process tries again, not at once where the server is there and refuses.
            host.log(.error, "\(server): \(error.message); the guest waits until that is over")
            if ![ECONNRESET, EPIPE, ESHUTDOWN].contains(error.code) { sleep(2) }
            throw PluginError(ENOTCONN, error.message)
        }
    }

    private func handshakes() throws(PluginError) -> Handshakes {
        var connections: [Handshakes.Connection] = []
        for entry in own.sockets {
            let copy = fcntl(entry.socket, F_DUPFD_CLOEXEC, 0)
            guard copy >= 0 else { throw PluginError(system: "no descriptor") }
            connections.append((entry.index, Link(copy)))
        }
        return Handshakes(
            host, server, connections, wishes, credentials, isAwaited: isAwaited, patience: patience)
    }

    private func take(_ handshakes: Handshakes) throws(PluginError) {
        let facts = try accept(try handshakes.finish())
        self.facts = facts
        connections = handshakes.agreed
        for entry in connections where entry.link.isEncrypted { own.log.noteEncryption(of: entry.index) }
        if facts.allocationContext != nil, connections.count > 1, let last = connections.popLast() {
            inquiry = Inquiry(last.link, facts)
        }
    }

    private func accept(_ facts: ExportFacts) throws(PluginError) -> ExportFacts {
        guard facts.usableSize > 0 else {
            throw PluginError(EINVAL, "the export has \(facts.size) bytes, less than a sector")
        }
        guard isReadOnly || !facts.isReadOnly else {
            throw PluginError(EROFS, "the export is read-only: attach the disk read-only (mode r)")
        }
        if !isReadOnly, !facts.flags.contains(.flush) {
            host.log(
                .warning,
                "\(server) knows no flush: what was written counts as durable, and a guest cannot have it otherwise")
        }
        return facts
    }

    /// Before start() the size is that of one block: nobody has asked the server yet.
    var info: DiskInfo {
        guard let facts else { return DiskInfo(size: 512) }
        var info = DiskInfo(size: facts.usableSize, capabilities: .write)
        for (flag, capability) in [
            (.flush, .flush), (.forcedAccess, .force), (.trim, .discard), (.writeZeroes, .writeZeroes),
            (.rotational, .rotational),
        ] as [(TransmissionFlags, Capabilities)] where facts.flags.contains(flag) {
            info.capabilities.insert(capability)
        }
        // TLS reads what it encrypts more than once.
        if credentials != nil { info.capabilities.insert(.stableBuffers) }
        info.logicalBlock = max(512, facts.blocks.minimum)
        info.physicalBlock = min(max(info.logicalBlock, facts.blocks.preferred), 1 << 20)
        info.optimalTransfer = min(max(info.logicalBlock, facts.blocks.preferred), 1 << 25)
        info.maxTransfer = UInt64(facts.largestTransfer)
        info.maxDiscard = 1 << 30
        info.maxWriteZeroes = 1 << 30
        info.maxQueues = UInt32(max(1, connections.count))
        info.queueDepth = UInt32(FlightLog.slots)
        info.maxBuffers = UInt32(NBDQueue.mostBuffers)
        return info
    }

    func openQueue(_ parameters: QueueParameters) throws(PluginError) -> NBDQueue {
        guard let facts, connections.indices.contains(parameters.index) else {
            throw PluginError(EINVAL, "there is no connection for queue \(parameters.index)")
        }
        let connection = connections[parameters.index]
        let queue = try NBDQueue(self, connection.link, facts, own.log, connection.index, parameters)
        queues.withLock { $0.append(queue) }
        return queue
    }

    /// A queue that is open, and a connection that serves queues.
    var firstQueue: NBDQueue? { queues.withLock { $0.first } }
    var firstLink: Link? { connections.first?.link }

    /// A queue has ended.
    func closed(_ queue: NBDQueue) { queues.withLock { $0.removeAll { $0 === queue } } }

    func close() {
        for entry in connections { entry.link.disconnect() }
        inquiry?.link.disconnect()
        connections = []
        inquiry = nil
        own.log.isSettled = true
    }
}

extension Credentials {
    /// What a URI and options say of TLS; nil: there is none.
    static func of(_ uri: ExportURI, _ opening: Opening) throws(PluginError) -> Credentials? {
        guard let tls = uri.tls else { return nil }
        let certificates = try value(tls.certificates, opening, NBDOption.certificates)
        let keys = try value(tls.sharedKeyFile, opening, NBDOption.presharedKeys)
        switch tls.authentication ?? (keys.isEmpty ? .certificates : .sharedKey) {
        case .anonymous: throw .invalid("anonymous TLS is not supported: nobody would know who the server is")
        case .sharedKey:
            guard !keys.isEmpty else { throw .invalid("no file with the key is named (tls-psk-file)") }
            let user = try value(tls.userName, opening, NBDOption.user)
            return try Credentials(presharedKeys: keys, user: user.isEmpty ? "root" : user)
        case .certificates:
            var name = try value(tls.hostName, opening, NBDOption.hostName)
            if name.isEmpty, case .tcp(let host, _) = uri.transport { name = host }
            let isWanted = try opening[NBDOption.verifies]
            let verifies = tls.verifiesPeer && isWanted
            guard !name.isEmpty || !verifies else {
                throw .invalid("the name that the server's certificate must have is not known (tls-hostname)")
            }
            return try Credentials(certificates: certificates, hostName: name, verifies: verifies)
        }
    }

    /// What the URI says, or the option where it says nothing.
    private static func value(
        _ said: String?, _ opening: Opening, _ option: PluginOption<String>
    ) throws(PluginError) -> String {
        if let said { return said }
        return try opening[option]
    }
}
