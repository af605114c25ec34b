// SPDX-License-Identifier: BSD-2-Clause
// The socket on which a worker answers: one request for each line, one line of JSON back.
import Base
import CLinux
import Glibc
import Support

/// A listening Unix socket and its clients, served without blocking. One thread at a time.
///
/// A line that ends in " last" is its client's last one: the connection ends with the reply, and nobody is woken by the
/// client's end.
final class ControlSocket {
    private struct Client {
        /// Tells clients apart that had the same descriptor one after the other.
        let number: UInt64
        /// When it last sent something, in ns of the monotonic clock.
        var lastActive = clinux_monotonic_ns()
        /// Lines that are not answered yet.
        var unanswered = 0
        /// The connection ends when all are answered.
        var isLast = false
        var input: [UInt8] = []
    }
    private let path: String
    let listener: Int32
    private var clients: [Int32: Client] = [:]
    private var clientsAccepted: UInt64 = 0
    /// One more takes the place of the one that has been silent for the longest time.
    private static let mostClients = 16
    /// How long a client may be silent, in ns.
    private static let idleLimit: UInt64 = 60_000_000_000
    private static let longestLine = 4096
    private static let lastWord = " last"

    /// Listens at `path`, mode 0600. Throws what went wrong.
    init(path: String) throws(OperationError) {
        self.path = path
        // The call reads the path as C text, which Swift keeps for it.
        listener = unsafe clinux_unix_listen_private(path, 8)
        if listener < 0 { throw OperationError(.open, "control socket \(path)", .errno(errno)) }
    }

    deinit {
        for client in clients.keys { close(client) }
        close(listener)
        // As in init.
        unsafe unlink(path)
    }

    /// The descriptors to wait for.
    var descriptors: [Int32] { [listener] + clients.keys }

    /// Of the clients that nobody owes an answer, the one that was silent for the longest time.
    private var longestIdle: (key: Int32, value: Client)? {
        clients.filter { $0.value.unanswered == 0 }
            .min(by: Self.isOlder)
    }

    private static func isOlder(_ left: (key: Int32, value: Client), _ right: (key: Int32, value: Client)) -> Bool {
        (left.value.lastActive, left.value.number) < (right.value.lastActive, right.value.number)
    }

    /// When ``expire()`` has something to do, in ns of the monotonic clock.
    var deadline: UInt64 { longestIdle.map { $0.value.lastActive &+ Self.idleLimit } ?? .max }

    /// Ends the connections of clients that have been silent for too long.
    func expire() {
        let now = clinux_monotonic_ns()
        while let idle = longestIdle, idle.value.lastActive &+ Self.idleLimit <= now { drop(idle.key) }
    }

    /// Serves a readable descriptor of ``descriptors``.
    ///
    /// `answer` gets each line, and a function that sends the one reply to it: at once, or later from the thread that serves
    /// the socket then. A reply to a client that has gone meanwhile is dropped.
    func serve(_ descriptor: Int32, _ answer: (_ line: String, _ reply: @escaping (JSON) -> Void) -> Void) {
        if descriptor == listener {
            // Whoever connects sends its line at once: it is answered without another turn of the loop.
            if let client = accept() { serve(client, answer) }
            return
        }
        guard let number = clients[descriptor]?.number else { return }
        var buffer = [UInt8](repeating: 0, count: 4096)
        // Within the closure the buffer is valid, and its size is passed on.
        let count = unsafe buffer.withUnsafeMutableBytes { unsafe read(descriptor, $0.baseAddress, $0.count) }
        if count < 0 && (errno == EAGAIN || errno == EINTR) { return }
        if count <= 0 { return drop(descriptor) }
        clients[descriptor]?.input += buffer.prefix(count)
        clients[descriptor]?.lastActive = clinux_monotonic_ns()
        while var line = takeLine(descriptor, number) {
            clients[descriptor]?.unanswered += 1
            if line.hasSuffix(Self.lastWord) {
                line.removeLast(Self.lastWord.count)
                clients[descriptor]?.isLast = true
            }
            answer(line) { [weak self] reply in self?.send(reply, to: descriptor, number) }
        }
        if let left = clients[descriptor], left.input.count > Self.longestLine { drop(descriptor) }
    }

    private func accept() -> Int32? {
        let client = clinux_accept(listener)
        if client < 0 { return nil }
        if clients.count >= Self.mostClients, let idle = longestIdle ?? clients.min(by: Self.isOlder) { drop(idle.key) }
        clientsAccepted += 1
        clients[client] = Client(number: clientsAccepted)
        return client
    }

    /// The next whole line of a client; nil where there is none, or the client was dropped.
    private func takeLine(_ descriptor: Int32, _ number: UInt64) -> String? {
        guard let client = clients[descriptor], client.number == number,
            let end = client.input.firstIndex(of: UInt8(ascii: "\n"))
        else { return nil }
        clients[descriptor]?.input.removeSubrange(...end)
        return String(decoding: client.input[..<end], as: UTF8.self)
    }

    private func send(_ reply: JSON, to descriptor: Int32, _ number: UInt64) {
        guard clients[descriptor]?.number == number else { return }
        clients[descriptor]?.unanswered -= 1
        let bytes = [UInt8]((reply.serialized + "\n").utf8)
        // Within the closure the bytes are valid, and their number is passed on.
        let sent = unsafe bytes.withUnsafeBytes {
            unsafe Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        // A client that does not read its replies is dropped rather than waited for.
        if sent != bytes.count { return drop(descriptor) }
        if let client = clients[descriptor], client.isLast, client.unanswered == 0 { drop(descriptor) }
    }

    private func drop(_ descriptor: Int32) {
        clients[descriptor] = nil
        close(descriptor)
    }
}
