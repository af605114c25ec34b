// SPDX-License-Identifier: BSD-2-Clause
// nbdkit and qemu-nbd on a Unix domain socket, and a client that speaks to them with the module that is tested.
import Glibc
import NBD
import Testing
import TestSupport

/// A server that ends with its owner.
final class RealServer {
    let folder: String
    var socket: String { "\(folder)/socket" }

    /// `command` makes a server that listens at SOCKET, writes its number to PID and returns when it listens; FOLDER is its own.
    init(_ command: String) throws {
        var template = Array("/tmp/xbb-nbd-XXXXXX".utf8CString)
        folder = String(cString: try #require(mkdtemp(&template)))
        let words =
            "cd \(folder); SOCKET=\(folder)/socket PID=\(folder)/pid FOLDER=\(folder); { \(command); } >log 2>&1 </dev/null"
        try #require(system(words) == 0, "\(command): see \(folder)/log")
    }

    /// nbdkit with a plugin and filters.
    static func nbdkit(_ words: String) throws -> RealServer {
        try RealServer("nbdkit --unix $SOCKET --pidfile $PID \(words)")
    }

    /// qemu-nbd with a file of some kind.
    static func qemu(_ words: String) throws -> RealServer {
        try RealServer(
            "truncate -s 1M file && qemu-nbd --fork --persistent --pid-file=$PID --socket=$SOCKET -f raw \(words) file")
    }

    deinit { _ = system("kill $(cat \(folder)/pid); rm -rf \(folder)") }
}

/// A connection, and the requests that are under way.
final class RealClient {
    private let socket: Int32
    /// It ends with its last client.
    private let server: RealServer
    private(set) var facts: ExportFacts?
    /// What the server sent in the handshake.
    private(set) var transcript: [UInt8] = []
    /// TLS was agreed on, which is as far as this client goes.
    private(set) var hasTLS = false
    private var world = ReplyWorld(isStructured: false)
    private let cookies = Cookies(secret: 42)
    private var number: UInt64 = 0

    init(_ server: RealServer, _ wishes: Handshake.Wishes) throws {
        self.server = server
        socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        try #require(socket >= 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: server.socket.utf8) }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(result == 0)
        // A server that says nothing ends a test, too.
        var limit = timeval(tv_sec: 30, tv_usec: 0)
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        var shake = Handshake(wishes)
        while !shake.isDone, !hasTLS {
            let bytes = receive()
            guard !bytes.isEmpty else { throw shake.endOfStream }
            transcript += bytes
            for step in try shake.receive(bytes) {
                switch step {
                case .send(let bytes): try send(bytes)
                case .startTLS: hasTLS = true
                case .done(let found):
                    facts = found
                    world = ReplyWorld(isStructured: found.hasStructuredReplies, context: found.allocationContext)
                }
            }
        }
    }

    convenience init(_ server: RealServer, _ name: String = "", isTLS: Bool = false) throws {
        try self.init(server, Handshake.Wishes(exportName: Array(name.utf8), isTLS: isTLS))
    }

    deinit { close(socket) }

    private func send(_ bytes: [UInt8]) throws {
        try #require(Glibc.send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count)
    }

    private func receive() -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 1 << 18)
        let count = recv(socket, &bytes, bytes.count, 0)
        return Array(bytes.prefix(max(0, count)))
    }

    /// Sends a request and waits for its answer.
    func ask(
        _ kind: Command.Kind, _ flags: CommandFlags = [], offset: UInt64 = 0, length: UInt32 = 0, data: [UInt8] = []
    ) throws -> (error: Int32, data: [UInt8], extents: [Extent]) {
        number += 1
        let command = Command(kind, flags: flags, cookie: cookies.cookie(of: number), offset: offset, length: length)
        let slot = world.send(kind, command.cookie, offset: offset, length: length)
        var bytes = [UInt8](repeating: 0, count: Command.byteCount)
        bytes.withUnsafeMutableBytes { unsafe command.encode(to: $0) }
        try send(bytes + data)
        var random = SplitMix64(seed: number)
        var stream: [UInt8] = []
        while true {
            let more = receive()
            try #require(!more.isEmpty, "the server closed the connection")
            stream += more
            // Each time from the beginning, as the world takes whole streams only.
            var copy = world
            if let error = copy.take(stream, &random) { throw error }
            try #require(copy.faults.isEmpty, "\(copy.faults)")
            guard let error = copy.answers[slot] else { continue }
            world = copy
            return (error, world.data[slot], world.extents[slot] ?? [])
        }
    }

    var errorText: String { world.reader.errorText }
}

/// The words of a handshake that fails.
func failure(_ server: RealServer, _ name: String = "", isTLS: Bool = false) throws -> HandshakeError {
    do {
        _ = try RealClient(server, name, isTLS: isTLS)
    } catch let error as HandshakeError {
        return error
    }
    Issue.record("the handshake came to its end")
    throw CancellationError()
}
