// SPDX-License-Identifier: BSD-2-Clause
// The handshake on a connected socket.
import CGnuTLS
import Glibc
import NBD
import PluginKit

extension Link {
    /// Agrees with the server on an export. `credentials` are there where TLS is wanted.
    func negotiate(_ wishes: Handshake.Wishes, _ credentials: Credentials?) throws(PluginError) -> ExportFacts {
        var handshake = Handshake(wishes)
        var room = [UInt8](repeating: 0, count: 4096)
        var isFirstInTLS = false
        while true {
            let count = try told(isFirstInTLS, handshake) { () throws(PluginError) in try receive(into: &room) }
            guard count > 0 else { throw isFirstInTLS ? Self.refused : PluginError(handshake.endOfStream, isEnd: true) }
            isFirstInTLS = false
            var steps = try told { () throws(HandshakeError) in try handshake.receive(Array(room[..<count])) }[...]
            while let step = steps.popFirst() {
                switch step {
                case .send(let bytes):
                    _ = try told(isFirstInTLS, handshake) { () throws(PluginError) in try write(bytes) }
                case .startTLS:
                    guard let credentials else { throw .invalid("TLS was agreed on without credentials") }
                    try beginTLS(credentials)
                    isFirstInTLS = true
                    steps += try told { () throws(HandshakeError) in try handshake.tlsStarted() }
                case .done(let facts): return facts
                }
            }
        }
    }

    /// A client learns that its certificate is refused, or that it has none, when its own part of TLS 1.3 is over.
    private static var refused: PluginError {
        PluginError(
            ECONNRESET,
            "TLS: the server ended the connection: it may not believe this client's certificate; its log says why")
    }

    /// Takes leave, without waiting for anything: nothing is under way.
    func disconnect() {
        patience = 0
        do throws(PluginError) { try write(Command(.disconnect, cookie: 0).bytes) } catch {}
        // A process that has a copy of the socket does not keep the connection.
        _ = cgnutls_end(socket)
    }

    /// Waits for bytes, and takes what there is room for.
    func receive(into room: inout [UInt8]) throws(PluginError) -> Int {
        var result: Result<Int, PluginError> = .success(0)
        unsafe room.withUnsafeMutableBytes { bytes in
            do throws(PluginError) { result = .success(unsafe try read(into: bytes)) } catch {
                result = .failure(error)
            }
        }
        return try result.get()
    }

    /// What it means that the connection ended just there.
    private func told<Value>(
        _ isFirstInTLS: Bool, _ handshake: Handshake, _ body: () throws(PluginError) -> Value
    ) throws(PluginError) -> Value {
        do throws(PluginError) {
            return try body()
        } catch {
            guard [EPIPE, ECONNRESET, EPROTO].contains(error.code) else { throw error }
            throw isFirstInTLS ? Self.refused : PluginError(handshake.endOfStream, isEnd: true)
        }
    }

    private func told<Value>(_ body: () throws(HandshakeError) -> Value) throws(PluginError) -> Value {
        do throws(HandshakeError) { return try body() } catch { throw PluginError(error, isEnd: false) }
    }
}

extension Command {
    /// What is sent of it, in an array of its own: for requests that are not a guest's.
    var bytes: [UInt8] {
        var array = [UInt8](repeating: 0, count: Self.byteCount)
        var span = array.mutableSpan
        var bytes = unsafe span.mutableBytes
        encode(into: &bytes)
        return array
    }
}

extension PluginError {
    /// A handshake that failed; `isEnd`: because the server closed the connection.
    init(_ error: HandshakeError, isEnd: Bool) {
        let code: Int32 =
            switch error.kind {
            case .shutdown: ESHUTDOWN
            case .noSuchExport: ENOENT
            case .withoutTLS, .wantsTLS: EACCES
            case .broken, .unsupported, .refused: isEnd ? ECONNRESET : EPROTO
            }
        self.init(code, error.message)
    }
}
