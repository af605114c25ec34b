// SPDX-License-Identifier: BSD-2-Clause
// Which connection is negotiated when: as the server greets them, also while old requests are waited for.
import CGnuTLS
import Glibc
import NBD
import PluginKit

/// Connections on which nothing has been said yet, and what became of them.
///
/// A server may serve one connection at a time, or let all others wait while it negotiates with one (nbdkit with most scripting
/// languages), and which one that is is up to it. So the greeting of no particular one is waited for, and each is answered as soon as it is
/// greeted: one whose greeting had no answer would keep the server from the others, and from what the process before had asked of it.
/// A negotiation that has begun goes to its end before the next one begins, and where the first one fails none follows.
///
/// One thread uses it, that of start().
final class Handshakes {
    /// A connection by its number.
    typealias Connection = (index: Int, link: Link)

    private let host: HostDisk
    private let server: String
    private let wishes: Handshake.Wishes
    private let credentials: Credentials?
    /// How long each answer may take on the first connection, and on the others, in ms.
    private let (patience, patienceForMore): (Int32, Int32)
    /// Those that were not greeted.
    private var waiting: [Connection]
    /// Those that can be used.
    private(set) var agreed: [Connection] = []
    /// What the first of them said, or why there is none.
    private var outcome: Result<ExportFacts, PluginError>?
    private var facts: ExportFacts? { try? outcome?.get() }

    /// What came first.
    private enum Event { case nothing, greeting, readable }

    init(
        _ host: HostDisk, _ server: String, _ connections: [Connection], _ wishes: Handshake.Wishes,
        _ credentials: Credentials?, patience: Int32
    ) {
        (self.host, self.server, self.wishes, self.credentials) = (host, server, wishes, credentials)
        // A server with a limit lets one more wait.
        (self.patience, patienceForMore) = (patience, min(patience, 2000))
        waiting = connections
    }

    /// Waits until there is something to read from `socket`; nil: for the whole time. Greetings are answered meanwhile.
    ///
    /// - Returns: false where `milliseconds` passed before.
    func wait(for socket: Int32?, milliseconds: UInt64) -> Bool {
        let end = Monitor.now &+ milliseconds &* 1_000_000
        while true {
            let now = Monitor.now
            switch next(socket, Int32(clamping: end > now ? (end - now) / 1_000_000 : 0)) {
            case .readable: return true
            case .nothing: return false
            case .greeting: continue
            }
        }
    }

    /// Waits for the first connection, and for others where the server allows them.
    ///
    /// - Returns: what it said of the export, on ``agreed``.
    func finish() throws(PluginError) -> ExportFacts {
        while !waiting.isEmpty, next(nil, currentPatience) == .greeting {}
        let silence = "the server did not answer within \(currentPatience / 1000) s"
        guard let outcome else { throw PluginError(ETIMEDOUT, silence) }
        if !waiting.isEmpty { noMore(silence) }
        return try outcome.get()
    }

    private var currentPatience: Int32 { outcome == nil ? patience : patienceForMore }

    private func next(_ socket: Int32?, _ milliseconds: Int32) -> Event {
        var entries = waiting.map { pollfd(fd: $0.link.socket, events: Int16(POLLIN) | Self.hangUp, revents: 0) }
        if let socket { entries.append(pollfd(fd: socket, events: Int16(POLLIN), revents: 0)) }
        let ready = unsafe poll(&entries, nfds_t(entries.count), milliseconds)
        guard ready > 0 else { return ready < 0 && errno == EINTR ? .greeting : .nothing }
        var (greeted, closed): ([Connection], [Connection]) = ([], [])
        for (connection, entry) in zip(waiting, entries) where entry.revents != 0 {
            let isOpen = entry.revents & ~Int16(POLLIN) == 0
            if isOpen { greeted.append(connection) } else { closed.append(connection) }
        }
        for connection in greeted { negotiate(connection) }
        for connection in closed {
            // The last one says why.
            if waiting.count == 1, outcome == nil { negotiate(connection) } else { leave(connection) }
        }
        return greeted.isEmpty && closed.isEmpty ? .readable : .greeting
    }

    private static let hangUp = Int16(cgnutls_hang_up)

    private func negotiate(_ connection: Connection) {
        guard waiting.contains(where: { $0.index == connection.index }) else { return }
        waiting.removeAll { $0.index == connection.index }
        do throws(PluginError) {
            connection.link.patience = currentPatience
            let found = try connection.link.negotiate(wishes, credentials)
            if let facts {
                guard found.isSameExport(as: facts) else {
                    throw PluginError(ESTALE, "another connection leads to another export")
                }
            } else {
                outcome = .success(found)
            }
            agreed.append(connection)
            if !found.flags.contains(.severalConnections) { leaveAll() }
        } catch {
            _ = cgnutls_end(connection.link.socket)
            if outcome != nil { return noMore(error.message) }
            outcome = .failure(error)
            leaveAll()
        }
    }

    private func noMore(_ reason: String) {
        host.log(.warning, "\(server): \(agreed.count) connections are used: \(reason)")
        leaveAll()
    }

    /// A server with a limit has room for others.
    private func leaveAll() { for connection in waiting { leave(connection) } }

    private func leave(_ connection: Connection) {
        _ = cgnutls_end(connection.link.socket)
        waiting.removeAll { $0.index == connection.index }
    }
}
