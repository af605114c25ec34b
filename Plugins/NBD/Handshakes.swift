// SPDX-License-Identifier: BSD-2-Clause
// Which connection is negotiated when: as the server greets and answers, also while old requests are waited for.
import CGnuTLS
import Glibc
import NBD
import PluginKit

/// Connections on which nothing has been said yet, and what became of them.
///
/// A server may serve one connection at a time, or let all others wait while it negotiates with one (nbdkit with most scripting
/// languages), and which one that is is up to it. So no particular one is waited for: the one that is greeted goes on. One that had no answer
/// would keep such a server from the others, and from what the process before had asked of it.
///
/// Others follow when the server has said there that it allows them, when that one fails, or when it is silent. Not all at once: a server
/// that allows one would open its export for each, and nbdkit's filter multi-conn aborts where a client leaves it while it does.
///
/// One thread uses it, that of start().
final class Handshakes {
    /// A connection by its number.
    typealias Connection = (index: Int, link: Link)

    private struct Begun {
        let connection: Connection
        var negotiation: Negotiation
        /// The client has answered a greeting.
        var isBegun = false
        /// What poll(2) has to see before it can go on.
        var events = Int16(POLLIN)
    }

    /// What came first.
    private enum Event { case nothing, answer, readable }

    /// For messages.
    private let (host, server): (HostDisk, String)
    /// The guest has the disk already.
    private let isAwaited: Bool
    /// How long the server may be silent before it has agreed on one connection, and after that, in ms.
    private let (patience, patienceForMore): (UInt64, UInt64)
    /// Those on which there is no agreement yet.
    private var begun: [Begun]
    /// Those that can be used.
    private(set) var agreed: [Connection] = []
    /// What the server said of the export on the first of them.
    private var facts: ExportFacts?
    /// The first answer that refuses, and the first end of a connection without such a word.
    private var (refusal, ending): (PluginError?, PluginError?) = (nil, nil)
    /// When the server was heard last, or its silence began to count, in ns of CLOCK_MONOTONIC.
    private var heardAt = Monitor.now

    /// Nothing is read or sent before ``wait(for:milliseconds:)`` or ``finish()``. `patience` in ms.
    init(
        _ host: HostDisk, _ server: String, _ connections: [Connection], _ wishes: Handshake.Wishes,
        _ credentials: Credentials?, isAwaited: Bool, patience: Int32
    ) {
        (self.host, self.server, self.isAwaited) = (host, server, isAwaited)
        // A server that needs long to prepare its export comes back to a guest, but not one that hangs: another connection may help there.
        self.patience = isAwaited ? max(UInt64(max(patience, 0)), 300_000) : UInt64(max(patience, 0))
        // A server with a limit lets one more wait.
        patienceForMore = min(self.patience, 2000)
        begun = connections.map { connection in
            connection.link.patience = patience
            return Begun(connection: connection, negotiation: Negotiation(connection.link, wishes, credentials))
        }
    }

    /// Waits until there is something to read from `socket`; nil: for the whole time. Handshakes go on meanwhile.
    ///
    /// - Returns: false where `milliseconds` passed before.
    func wait(for socket: Int32?, milliseconds: UInt64) -> Bool {
        let end = Monitor.now &+ milliseconds &* 1_000_000
        while true {
            switch next(socket, until: end) {
            case .readable: return true
            case .nothing: return false
            case .answer: continue
            }
        }
    }

    /// Waits for the first connection, and for others where the server allows them.
    ///
    /// - Returns: what it said of the export, on ``agreed``.
    func finish() throws(PluginError) -> ExportFacts {
        heardAt = Monitor.now
        var isSaid = !isAwaited
        let wanted = begun.count + agreed.count
        while !begun.isEmpty {
            // Who refuses one connection is not expected to agree on another, but may.
            let isAnswered = facts != nil || refusal != nil
            let end = heardAt &+ (isAnswered ? patienceForMore : patience) &* 1_000_000
            let wordAt = heardAt &+ Self.quietWait
            if next(nil, until: isSaid ? end : min(end, wordAt)) != .nothing { continue }
            let now = Monitor.now
            if now >= end { break }
            if !isSaid, now >= wordAt {
                isSaid = true
                host.log(.warning, "\(server) does not answer in the handshake; the guest waits until it does")
            }
        }
        let silence = "the server did not answer within \((facts == nil ? patience : patienceForMore) / 1000) s"
        guard let facts else {
            let silent = begun.isEmpty ? nil : PluginError(ETIMEDOUT, silence)
            throw refusal ?? silent ?? ending ?? PluginError(ENOTCONN, "there is no connection")
        }
        if facts.flags.contains(.severalConnections), agreed.count < wanted {
            let reason = refusal?.message ?? (ending == nil ? silence : "the server closed the others")
            host.log(.warning, "\(server): of \(wanted) connections \(agreed.count) are used: \(reason)")
        }
        leave { _ in true }
        return facts
    }

    /// An answer that takes longer is told, in ns.
    private static var quietWait: UInt64 { 3_000_000_000 }
    /// After a silence of so long, in ns, another connection is tried beside.
    private static var loneWait: UInt64 { 1_000_000_000 }

    /// Waits for what comes first, until `end` in ns of CLOCK_MONOTONIC, and lets handshakes go on. It may return `answer` without one.
    private func next(_ socket: Int32?, until end: UInt64) -> Event {
        let now = Monitor.now
        let othersAt = heardAt &+ Self.loneWait
        // An entry that is negative is passed over.
        let mayBegin = facts != nil || now >= othersAt || !begun.contains(where: \.isBegun)
        var entries = begun.map {
            pollfd(fd: mayBegin || $0.isBegun ? $0.connection.link.socket : -1, events: $0.events, revents: 0)
        }
        if let socket { entries.append(pollfd(fd: socket, events: Int16(POLLIN), revents: 0)) }
        let pollEnd = mayBegin ? end : min(end, othersAt)
        // Rounded up: a wait that ends before its time would be done again and again.
        let milliseconds = pollEnd > now ? (pollEnd - now + 999_999) / 1_000_000 : 0
        let ready = unsafe poll(&entries, nfds_t(entries.count), Int32(clamping: milliseconds))
        guard ready > 0 else { return Monitor.now >= end ? .nothing : .answer }
        let answered = zip(begun, entries).filter { $0.1.revents != 0 }.map(\.0)
        if answered.isEmpty { return .readable }
        heardAt = Monitor.now
        // One alone of those that were greeted.
        let greeted = facts == nil ? Array(answered.filter { !$0.isBegun }.prefix(1)) : answered.filter { !$0.isBegun }
        for entry in answered.filter(\.isBegun) + greeted { advance(entry.connection.index) }
        return .answer
    }

    private func advance(_ index: Int) {
        // It may have been left because of what came on another one.
        guard let position = begun.firstIndex(where: { $0.connection.index == index }) else { return }
        let connection = begun[position].connection
        begun[position].isBegun = true
        do throws(PluginError) {
            switch try begun[position].negotiation.advance() {
            case .waits(let events): begun[position].events = events
            case .agreed(let found):
                if let facts, !found.isSameExport(as: facts) {
                    throw PluginError(ESTALE, "another connection leads to another export")
                }
                begun.remove(at: position)
                if facts == nil || found.flags.contains(.severalConnections) {
                    agreed.append(connection)
                } else {
                    connection.link.disconnect()
                }
                facts = facts ?? found
                if !found.flags.contains(.severalConnections) { leave { !$0.isBegun } }
            }
        } catch {
            begun.remove(at: position)
            _ = cgnutls_end(connection.link.socket)
            if [ECONNRESET, EPIPE].contains(error.code) {
                ending = ending ?? error
            } else {
                refusal = refusal ?? error
            }
        }
    }

    /// Ends connections: a server with a limit has room for others then.
    private func leave(_ isLeft: (Begun) -> Bool) {
        for entry in begun where isLeft(entry) { _ = cgnutls_end(entry.connection.link.socket) }
        begun.removeAll(where: isLeft)
    }
}
