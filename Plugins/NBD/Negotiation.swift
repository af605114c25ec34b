// SPDX-License-Identifier: BSD-2-Clause
// The handshake on a connected socket, and its farewell.
import CGnuTLS
import Glibc
import NBD
import PluginKit

/// The handshake on one connection, as far as the server has answered.
struct Negotiation {
    /// What ``advance()`` came to.
    enum Progress {
        /// Nothing more can be done before poll(2) sees one of these events on the socket.
        case waits(Int16)
        /// The server has agreed on an export: the next byte that is sent is a request.
        case agreed(ExportFacts)
    }

    private let link: Link
    /// There where TLS is wanted.
    private let credentials: Credentials?
    private var handshake: Handshake
    private var steps: ArraySlice<Handshake.Step> = []
    private var isBeginningTLS = false
    private var isFirstInTLS = false
    private var room = [UInt8](repeating: 0, count: 4096)

    init(_ link: Link, _ wishes: Handshake.Wishes, _ credentials: Credentials?) {
        (self.link, self.credentials) = (link, credentials)
        handshake = Handshake(wishes)
    }

    /// Does what can be done without waiting for the server. What is sent has room in any socket.
    mutating func advance() throws(PluginError) -> Progress {
        while true {
            if isBeginningTLS {
                if let events = try link.continueTLS() { return .waits(events) }
                (isBeginningTLS, isFirstInTLS) = (false, true)
                steps += try told { (handshake) throws(HandshakeError) in try handshake.tlsStarted() }
            }
            while !isBeginningTLS, let step = steps.popFirst() {
                switch step {
                case .send(let bytes): try told { () throws(PluginError) in try link.write(bytes) }
                case .startTLS:
                    guard let credentials else { throw .invalid("TLS was agreed on without credentials") }
                    try link.beginTLS(credentials)
                    isBeginningTLS = true
                case .done(let facts): return .agreed(facts)
                }
            }
            if isBeginningTLS { continue }
            let received = try told { () throws(PluginError) in try link.take(into: &room) }
            guard let count = received else { return .waits(Int16(POLLIN)) }
            guard count > 0 else { throw end }
            isFirstInTLS = false
            let bytes = Array(room[..<count])
            steps = try told { (handshake) throws(HandshakeError) in try handshake.receive(bytes) }[...]
        }
    }

    /// What it means that the server closes the connection just here.
    private var end: PluginError {
        // A client learns that its certificate is refused, or that it has none, when its own part of TLS 1.3 is over.
        guard isFirstInTLS else { return PluginError(handshake.endOfStream, isEnd: true) }
        return PluginError(
            ECONNRESET,
            "TLS: the server ended the connection: it may not believe this client's certificate; its log says why")
    }

    private func told<Value>(_ body: () throws(PluginError) -> Value) throws(PluginError) -> Value {
        do throws(PluginError) { return try body() } catch {
            throw [EPIPE, ECONNRESET, EPROTO].contains(error.code) ? end : error
        }
    }

    private mutating func told<Value>(
        _ body: (inout Handshake) throws(HandshakeError) -> Value
    ) throws(PluginError) -> Value {
        do throws(HandshakeError) { return try body(&handshake) } catch { throw PluginError(error, isEnd: false) }
    }
}

extension Link {
    /// Takes leave, without waiting for anything: nothing is under way.
    func disconnect() {
        patience = 0
        do throws(PluginError) { try write(Command(.disconnect, cookie: 0).bytes) } catch {}
        // A process that has a copy of the socket does not keep the connection.
        _ = cgnutls_end(socket)
    }

    /// Waits for bytes, and takes what there is room for; 0: the server has closed the connection.
    func receive(into room: inout [UInt8]) throws(PluginError) -> Int {
        while true {
            if let count = try take(into: &room) { return count }
            try wait(POLLIN, "the server")
        }
    }

    /// Takes bytes that are there, at most as many as there is room for; 0: the server has closed the connection; nil: there are none.
    func take(into room: inout [UInt8]) throws(PluginError) -> Int? {
        // The array outlives the call, which writes into it.
        let received = unsafe room.withUnsafeMutableBytes { bytes in
            var part = unsafe iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
            return unsafe withUnsafeMutablePointer(to: &part) { part in
                unsafe receive(UnsafeMutableBufferPointer(start: part, count: 1))
            }
        }
        if received == -Int(EAGAIN) { return nil }
        guard received >= 0 else { throw PluginError(system: "the connection broke", Int32(clamping: -received)) }
        return received
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
