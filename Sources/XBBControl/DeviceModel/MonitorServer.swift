// SPDX-License-Identifier: BSD-2-Clause
// The socket on which libxl queries a device model.
import Base
import CLinux
import Glibc
import Support

/// Listens at a path with mode 0600, greets clients and answers them. Answers are short: a client that does not read
/// them is dropped.
final class MonitorServer {
    private static let clientLimit = 8

    private final class Client {
        let socket: Descriptor
        var input = LineBuffer(limit: ControlRequest.longestLine)

        init(_ socket: Descriptor) {
            self.socket = socket
        }

        /// Returns false if the client does not accept it.
        func send(_ value: JSON) -> Bool {
            let bytes = [UInt8]((value.serialized + "\r\n").utf8)
            return socket.sendAvailable(bytes[...]) == bytes.count
        }
    }

    private let path: String
    private let loop: EventLoop
    private let listener: Descriptor
    private var clients: [Int32: Client] = [:]

    /// Replaces a socket that is there already.
    init(path: String, loop: EventLoop) throws(OperationError) {
        self.path = path
        self.loop = loop
        listener = try Descriptor(unsafe clinux_unix_listen_private(path, 4), "listen at \(path)")
        try loop.add(listener.raw) { [unowned self] in accept() }
    }

    /// Ends all connections and removes the socket.
    func close() {
        for raw in clients.keys { drop(raw) }
        loop.remove(listener.raw)
        unsafe unlink(path)
    }

    private func accept() {
        let raw = clinux_accept(listener.raw)
        guard raw >= 0 else { return }
        let client = Client(Descriptor(owning: raw))
        guard clients.count < Self.clientLimit, client.send(MachineProtocol.greeting) else { return }
        do throws(OperationError) {
            try loop.add(raw) { [unowned self] in serve(raw) }
            clients[raw] = client
        } catch {
            return  // no memory in the kernel: the client sees its connection closed
        }
    }

    private func serve(_ raw: Int32) {
        guard let client = clients[raw] else { return }
        switch client.socket.readAvailable() {
        case .wouldBlock: return
        case .ended: return drop(raw)
        case .bytes(let bytes): client.input.append(bytes)
        }
        while let line = client.input.next() {
            if !client.send(MachineProtocol.answer(line)) { return drop(raw) }
        }
        if client.input.isOverlong { drop(raw) }
    }

    private func drop(_ raw: Int32) {
        guard clients.removeValue(forKey: raw) != nil else { return }
        loop.remove(raw)
    }
}
