// SPDX-License-Identifier: BSD-2-Clause
// xbbd's socket: clients, their lines and the answers, without blocking and with fixed limits.
import Base
import CLinux
import Glibc
import Support

/// Listens at a path, with mode 0600, or 0660 for the members of a group. Each client has one request at a time: its
/// next line is read once the answer is on its way.
final class ControlServer {
    /// Identifies a client as long as the server lives.
    typealias ClientID = UInt64
    /// The most clients at once; one more takes the place of the one that has been silent for the longest time.
    static let clientLimit = 32
    /// How long a client may be silent, or not read its answer, in ns.
    static let idleLimit: UInt64 = 60 * RestartPolicy.second

    private final class Client {
        let id: ClientID
        let socket: Descriptor
        var input = LineBuffer(limit: ControlRequest.longestLine)
        var output: ArraySlice<UInt8> = []
        /// A request was handed over and is not answered yet.
        var isWaiting = false
        /// ``serve(_:)`` is handing over its lines, and sends an answer that comes at once.
        var isServed = false
        /// When it last sent or read something, or was answered, in ns of CLOCK_MONOTONIC.
        var lastActive = clinux_monotonic_ns()
        /// A disk is paused as long as it is connected: its place is nobody else's.
        var isHolding = false
        /// The client sends no more.
        var hasEnded = false
        /// It is root's, or of the user of this process.
        let isPrivileged: Bool

        init(id: ClientID, socket: Descriptor) {
            self.id = id
            self.socket = socket
            // struct ucred: process, user, group; the kernel fills it.
            var peer: [UInt32] = [0, .max, .max]
            var size = socklen_t(12)
            let isKnown = unsafe getsockopt(socket.raw, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && size == 12
            isPrivileged = isKnown && (peer[1] == 0 || peer[1] == geteuid())
        }
    }

    private let path: String
    private let loop: EventLoop
    private let listener: Descriptor
    private let handler: (ClientID, [UInt8]) -> Void
    /// Gets each client that has gone.
    var onEnd: (ClientID) -> Void = { _ in }
    private var clients: [ClientID: Client] = [:]
    private var lastID: ClientID = 0

    /// Replaces a socket that is there already; the caller makes sure that nobody serves it. `handler` gets each line
    /// and must call ``answer(_:to:)`` once, at once or later.
    init(path: String, group: UInt32? = nil, loop: EventLoop, handler: @escaping (ClientID, [UInt8]) -> Void)
        throws(OperationError)
    {
        self.path = path
        self.loop = loop
        self.handler = handler
        listener = try Descriptor(unsafe clinux_unix_listen_private(path, 16), "listen at \(path)")
        if let group, unsafe chown(path, uid_t.max, group) != 0 || chmod(path, 0o660) != 0 {
            throw OperationError(errno, "give \(path) to group \(group)")
        }
        try loop.add(listener.raw) { [unowned self] in accept() }
    }

    /// The number of connected clients.
    var clientCount: Int { clients.count }

    /// Keeps the place of a client that says nothing.
    func hold(_ id: ClientID) { clients[id]?.isHolding = true }

    /// The client has not gone.
    func isConnected(_ id: ClientID) -> Bool { clients[id] != nil }
    /// A client may do what root may, and not only what the group of the socket may.
    func isPrivileged(_ id: ClientID) -> Bool { clients[id]?.isPrivileged ?? false }

    /// When ``expire(now:)`` has something to do, in ns of CLOCK_MONOTONIC; nil if never.
    var deadline: UInt64? { longestIdle.map { $0.lastActive &+ Self.idleLimit } }

    /// Ends the connections of clients that have been silent for too long.
    func expire(now: UInt64) {
        while let client = longestIdle, client.lastActive &+ Self.idleLimit <= now { drop(client.id) }
    }

    /// Of the clients that nobody owes an answer, the one that was silent for the longest time.
    private var longestIdle: Client? {
        clients.values.filter { !$0.isWaiting && !$0.isHolding }.min { ($0.lastActive, $0.id) < ($1.lastActive, $1.id) }
    }

    /// Ends all connections and removes the socket.
    func close() {
        onEnd = { _ in }
        for id in clients.keys { drop(id) }
        loop.remove(listener.raw)
        unsafe unlink(path)
    }

    /// Sends the answer to a client's request; does nothing if the client is gone.
    func answer(_ line: [UInt8], to id: ClientID) {
        guard let client = clients[id], client.isWaiting else { return }
        client.isWaiting = false
        client.lastActive = clinux_monotonic_ns()
        client.output = (line + [UInt8(ascii: "\n")])[...]
        serve(client)
    }

    /// Sends the answer to a client's request.
    func answer(_ value: JSON, to id: ClientID) {
        answer([UInt8](value.serialized.utf8), to: id)
    }

    private func accept() {
        let raw = clinux_accept(listener.raw)
        guard raw >= 0 else { return }
        let socket = Descriptor(owning: raw)
        if clients.count >= Self.clientLimit, let idle = longestIdle { drop(idle.id) }
        guard clients.count < Self.clientLimit else {
            let text = JSON.object([("error", .string("xbbd has too many clients"))]).serialized + "\n"
            _ = socket.sendAvailable([UInt8](text.utf8)[...])
            return
        }
        lastID += 1
        let client = Client(id: lastID, socket: socket)
        do throws(OperationError) {
            try loop.add(raw) { [unowned self, id = lastID] in ready(id) }
            clients[lastID] = client
        } catch {
            return  // no memory in the kernel: the client sees its connection closed
        }
    }

    private func ready(_ id: ClientID) {
        guard let client = clients[id] else { return }
        // A client that waits for its answer is not polled for input, so this event is a hang-up.
        if client.isWaiting || (client.hasEnded && client.output.isEmpty) { return drop(id) }
        if client.output.isEmpty {
            switch client.socket.readAvailable(limit: ControlRequest.longestLine) {
            case .bytes(let bytes):
                client.lastActive = clinux_monotonic_ns()
                client.input.append(bytes)
            case .wouldBlock: return
            case .ended: client.hasEnded = true
            }
        }
        serve(client)
    }

    /// Sends output, hands over lines, and registers for the events that are due next.
    private func serve(_ client: Client) {
        while !client.isWaiting {
            if !client.output.isEmpty {
                guard let count = client.socket.sendAvailable(client.output) else { return drop(client.id) }
                if count > 0 { client.lastActive = clinux_monotonic_ns() }
                client.output = client.output.dropFirst(count)
                if !client.output.isEmpty { break }
            }
            guard !client.isServed, let line = client.input.next() else { break }
            client.isWaiting = true
            client.isServed = true
            handler(client.id, line)
            client.isServed = false
            if clients[client.id] == nil { return }
        }
        if client.isServed { return }
        let isIdle = !client.isWaiting && client.output.isEmpty
        if isIdle && (client.hasEnded || client.input.isOverlong) { return drop(client.id) }
        loop.change(
            client.socket.raw, client.isWaiting ? 0 : client.output.isEmpty ? EventLoop.readable : EventLoop.writable)
    }

    private func drop(_ id: ClientID) {
        guard let client = clients.removeValue(forKey: id) else { return }
        loop.remove(client.socket.raw)
        onEnd(id)
    }
}
