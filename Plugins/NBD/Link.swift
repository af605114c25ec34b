// SPDX-License-Identifier: BSD-2-Clause
// A connection as a stream of bytes, plain or in TLS.
import CGnuTLS
import Glibc
import PluginKit

/// A connected socket that does not block, and the TLS on it.
///
/// `@unchecked Sendable`: one thread at a time uses it: that of start() and close(), or that of the queue in between.
@safe
final class Link: @unchecked Sendable {
    /// Bytes of a record of TLS.
    private static let recordBytes = 16384

    let socket: Int32
    private var session: gnutls_session_t?
    private var credentials: Credentials?
    /// What is being encrypted: GnuTLS wants the same bytes again where it could not send.
    private var record: [UInt8] = []
    private var isRecordWaiting = false
    /// How long the server may take to accept or to answer something, in ms: for ``write(_:)`` and ``receive(into:)``.
    var patience: Int32 = 10_000

    /// Takes the socket over.
    init(_ socket: Int32) { self.socket = socket }

    deinit {
        if let session = unsafe session { unsafe gnutls_deinit(session) }
        close(socket)
    }

    /// Bytes that one call of ``send(_:)`` takes at most.
    var mostSent: Int { isEncrypted ? Self.recordBytes : .max }

    /// All that is sent and received from now on is in TLS.
    var isEncrypted: Bool { unsafe session != nil }

    // MARK: Requests and replies

    /// Sends as much as there is room for.
    ///
    /// - Returns: bytes, or a negative errno: EAGAIN where there is no room.
    func send(_ parts: UnsafeBufferPointer<iovec>) -> Int {
        if let session = unsafe session { return unsafe encrypt(parts, session) }
        var message = unsafe msghdr()
        unsafe message.msg_iov = unsafe UnsafeMutablePointer(mutating: parts.baseAddress)
        unsafe message.msg_iovlen = parts.count
        while true {
            let sent = unsafe sendmsg(socket, &message, cgnutls_now_silently)
            if sent >= 0 { return sent }
            let code = errno
            if code != EINTR { return -Int(code) }
        }
    }

    /// Receives what is there.
    ///
    /// - Returns: bytes; 0 where the server has closed the connection; a negative errno: EAGAIN where nothing is there.
    func receive(_ parts: UnsafeMutableBufferPointer<iovec>) -> Int {
        while true {
            let received: Int
            if let session = unsafe session {
                guard let first = unsafe parts.first, let base = unsafe first.iov_base else { return -Int(EINVAL) }
                unsafe received = decrypt(base, first.iov_len, session)
            } else {
                unsafe received = readv(socket, parts.baseAddress, Int32(parts.count))
                if received < 0 {
                    let code = errno
                    if code == EINTR { continue }
                    return -Int(code)
                }
            }
            return received
        }
    }

    private func encrypt(_ parts: UnsafeBufferPointer<iovec>, _ session: gnutls_session_t) -> Int {
        if !isRecordWaiting {
            record.removeAll(keepingCapacity: true)
            for index in parts.indices {
                let part = unsafe parts[index]
                guard let base = unsafe part.iov_base else { continue }
                let count = unsafe min(part.iov_len, Self.recordBytes - record.count)
                unsafe record.append(contentsOf: UnsafeRawBufferPointer(start: base, count: count))
                if record.count == Self.recordBytes { break }
            }
        }
        while true {
            let sent: Int
            if isRecordWaiting {
                unsafe sent = gnutls_record_send(session, nil, 0)
            } else {
                // The array outlives the call.
                unsafe sent = record.withUnsafeBytes { unsafe gnutls_record_send(session, $0.baseAddress, $0.count) }
            }
            if sent >= 0 {
                isRecordWaiting = false
                return sent
            }
            switch Int32(clamping: sent) {
            case GNUTLS_E_INTERRUPTED: isRecordWaiting = true
            case GNUTLS_E_AGAIN:
                isRecordWaiting = true
                return -Int(EAGAIN)
            case GNUTLS_E_PUSH_ERROR: return -Int(Self.systemError)
            default: return -Int(EPROTO)
            }
        }
    }

    private func decrypt(_ base: UnsafeMutableRawPointer, _ count: Int, _ session: gnutls_session_t) -> Int {
        while true {
            let received = unsafe gnutls_record_recv(session, base, count)
            if received >= 0 { return received }
            switch Int32(clamping: received) {
            case GNUTLS_E_INTERRUPTED, GNUTLS_E_REHANDSHAKE, GNUTLS_E_WARNING_ALERT_RECEIVED: break
            case GNUTLS_E_AGAIN: return -Int(EAGAIN)
            // A server that ends without a word of TLS: as every server that is killed.
            case GNUTLS_E_PREMATURE_TERMINATION: return 0
            // What the socket says once, and the fence has to know: whether the server has ended the connection, or the network.
            case GNUTLS_E_PULL_ERROR, GNUTLS_E_PUSH_ERROR: return -Int(Self.systemError)
            default: return -Int(EPROTO)
            }
        }
    }

    /// What the system said in the call of GnuTLS that has just failed with that.
    private static var systemError: Int32 {
        let code = errno
        return code == 0 || code == EAGAIN ? ECONNRESET : code
    }

    // MARK: Negotiation

    /// Begins TLS: ``continueTLS()`` does it.
    func beginTLS(_ credentials: Credentials) throws(PluginError) {
        let session = unsafe try credentials.session(on: socket)
        (unsafe self.session, self.credentials) = unsafe (session, credentials)
    }

    /// Goes on with the beginning of TLS, and verifies the server at its end.
    ///
    /// - Returns: nil at the end, or the events of poll(2) that have to come before it can go on.
    func continueTLS() throws(PluginError) -> Int16? {
        guard let session = unsafe session, let credentials else { throw .invalid("TLS was not begun") }
        while true {
            let code = unsafe gnutls_handshake(session)
            if code == 0 { break }
            switch code {
            case GNUTLS_E_INTERRUPTED: break
            case GNUTLS_E_AGAIN: return Int16(unsafe gnutls_record_get_direction(session) == 1 ? POLLOUT : POLLIN)
            case GNUTLS_E_PREMATURE_TERMINATION, GNUTLS_E_PULL_ERROR:
                throw PluginError(ECONNRESET, "TLS: the server closed the connection; its log says why")
            case GNUTLS_E_WARNING_ALERT_RECEIVED: break
            case GNUTLS_E_FATAL_ALERT_RECEIVED:
                let alert =
                    unsafe gnutls_alert_get_name(gnutls_alert_get(session)).map { unsafe String(cString: $0) }
                    ?? "an alert"
                throw PluginError(EPROTO, "TLS: the server refuses this client: \(oneLine(alert))")
            default: try check(code, "TLS")
            }
        }
        unsafe try credentials.verify(session)
        return nil
    }

    /// Sends all bytes.
    func write(_ bytes: [UInt8]) throws(PluginError) {
        var done = 0
        while done < bytes.count {
            // The array outlives the call, which only reads.
            let sent = unsafe bytes.withUnsafeBytes { bytes in
                var part = unsafe iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress.map { unsafe $0 + done }),
                    iov_len: bytes.count - done)
                return unsafe withUnsafePointer(to: &part) { unsafe send(UnsafeBufferPointer(start: $0, count: 1)) }
            }
            if sent == -Int(EAGAIN) {
                try wait(POLLOUT, "the server")
            } else if sent < 0 {
                throw PluginError(system: "the connection broke", Int32(clamping: -sent))
            } else {
                done += sent
            }
        }
    }

    /// Waits for events of poll(2), at most for ``patience``.
    func wait(_ events: Int32, _ whom: String) throws(PluginError) {
        var entry = pollfd(fd: socket, events: Int16(events), revents: 0)
        let ready = unsafe poll(&entry, 1, patience)
        if ready == 0 { throw PluginError(ETIMEDOUT, "\(whom) did not answer within \(patience / 1000) s") }
        if ready < 0, errno != EINTR { throw PluginError(system: "poll") }
    }
}
