// SPDX-License-Identifier: BSD-2-Clause
// The socket on which a worker answers: one request for each line, one line of JSON back.
import Base
import CLinux
import Glibc
import Support

/// A listening Unix socket and its clients, served by the control thread without blocking.
final class ControlSocket {
    private struct Client {
        let descriptor: Int32
        var input: [UInt8] = []
    }
    private let path: String
    let listener: Int32
    private var clients: [Int32: Client] = [:]
    private static let mostClients = 16
    private static let longestLine = 4096

    /// Listens at `path`, mode 0600. Throws what went wrong.
    init(path: String) throws(OperationError) {
        self.path = path
        listener = unsafe clinux_unix_listen_private(path, 8)
        if listener < 0 { throw OperationError(.open, "control socket \(path)", .errno(errno)) }
    }

    deinit {
        for client in clients.keys { close(client) }
        close(listener)
        unsafe unlink(path)
    }

    /// The descriptors to wait for.
    var descriptors: [Int32] { [listener] + clients.keys }

    /// Serves a readable descriptor of ``descriptors``; `answer` makes the reply to a line.
    func serve(_ descriptor: Int32, _ answer: (String) -> JSON) {
        if descriptor == listener {
            let client = clinux_accept(listener)
            if client < 0 { return }
            if clients.count >= Self.mostClients {
                close(client)
            } else {
                clients[client] = Client(descriptor: client)
            }
            return
        }
        guard var client = clients[descriptor] else { return }
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = unsafe buffer.withUnsafeMutableBytes { unsafe read(descriptor, $0.baseAddress, $0.count) }
        if count < 0 && (errno == EAGAIN || errno == EINTR) { return }
        if count <= 0 {
            drop(descriptor)
            return
        }
        client.input += buffer.prefix(count)
        while let end = client.input.firstIndex(of: UInt8(ascii: "\n")) {
            let line = String(decoding: client.input[..<end], as: UTF8.self)
            client.input.removeSubrange(...end)
            let reply = [UInt8]((answer(line).serialized + "\n").utf8)
            let sent = unsafe reply.withUnsafeBytes {
                unsafe send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            // A client that does not read its replies is dropped rather than waited for.
            if sent != reply.count {
                drop(descriptor)
                return
            }
        }
        if client.input.count > Self.longestLine {
            drop(descriptor)
            return
        }
        clients[descriptor] = client
    }

    private func drop(_ descriptor: Int32) {
        clients[descriptor] = nil
        close(descriptor)
    }
}
