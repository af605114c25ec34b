// SPDX-License-Identifier: BSD-2-Clause
// What a client shows and believes in TLS, read from files before the process is confined.
import CGnuTLS
import Glibc
import PluginKit

/// Certificates, or a pre-shared key, in memory: a confined process opens no file when it connects.
///
/// `@unchecked Sendable`: read only after init.
@safe
final class Credentials: @unchecked Sendable {
    @safe
    private enum Kind {
        case certificate(gnutls_certificate_credentials_t)
        case presharedKey(gnutls_psk_client_credentials_t)
    }

    private let kind: Kind
    /// The name that the server's certificate must have; empty: it is not looked at.
    private let hostName: String
    private let verifies: Bool

    /// With certificates of `directory`, by libnbd's names; empty: the authorities that the system believes.
    init(certificates directory: String, hostName: String, verifies: Bool) throws(PluginError) {
        var made: gnutls_certificate_credentials_t?
        try check(unsafe gnutls_certificate_allocate_credentials(&made), "TLS")
        guard let made = unsafe made else { throw PluginError(ENOMEM, "TLS: no memory") }
        kind = unsafe .certificate(made)
        (self.hostName, self.verifies) = (hostName, verifies)
        guard !directory.isEmpty else {
            let count = unsafe gnutls_certificate_set_x509_system_trust(made)
            guard count > 0 || !verifies else {
                throw PluginError(
                    ENOENT,
                    "TLS: this system believes no certificate authority (package ca-certificates); option tls-certificates names "
                        + "a directory with ca-cert.pem")
            }
            return
        }
        let authorities = try Self.read("\(directory)/ca-cert.pem")
        if let authorities {
            let count = unsafe Self.withDatum(authorities) { datum in
                unsafe gnutls_certificate_set_x509_trust_mem(made, datum, GNUTLS_X509_FMT_PEM)
            }
            guard count > 0 else { throw PluginError(EINVAL, "TLS: \(directory)/ca-cert.pem has no certificate") }
        } else if verifies {
            throw PluginError(ENOENT, "TLS: there is no \(directory)/ca-cert.pem (option tls-certificates)")
        }
        if let revoked = try Self.read("\(directory)/ca-crl.pem") {
            let count = unsafe Self.withDatum(revoked) { datum in
                unsafe gnutls_certificate_set_x509_crl_mem(made, datum, GNUTLS_X509_FMT_PEM)
            }
            guard count >= 0 else { throw PluginError(EINVAL, "TLS: \(directory)/ca-crl.pem has no revocation list") }
        }
        let (own, key) = (try Self.read("\(directory)/client-cert.pem"), try Self.read("\(directory)/client-key.pem"))
        switch (own, key) {
        case (nil, nil): break
        case (let own?, let key?):
            let code = unsafe Self.withDatum(own) { own in
                unsafe Self.withDatum(key) { key in
                    unsafe gnutls_certificate_set_x509_key_mem(made, own, key, GNUTLS_X509_FMT_PEM)
                }
            }
            try check(code, "TLS: \(directory)/client-cert.pem and client-key.pem")
        default: throw PluginError(EINVAL, "TLS: \(directory) has only one of client-cert.pem and client-key.pem")
        }
    }

    /// With a key that both ends know: of `user`, in a file with lines USER:KEY.
    init(presharedKeys file: String, user: String) throws(PluginError) {
        guard let text = try Self.read(file) else {
            throw PluginError(ENOENT, "TLS: there is no \(file) (option tls-psk-file)")
        }
        guard let key = PresharedKeys.key(of: user, in: text) else {
            throw PluginError(EINVAL, "TLS: \(file) has no line for user '\(user)' (option tls-username)")
        }
        var made: gnutls_psk_client_credentials_t?
        try check(unsafe gnutls_psk_allocate_client_credentials(&made), "TLS")
        guard let made = unsafe made else { throw PluginError(ENOMEM, "TLS: no memory") }
        kind = unsafe .presharedKey(made)
        (hostName, verifies) = ("", false)
        let code = unsafe Self.withDatum(key) { key in
            unsafe gnutls_psk_set_client_credentials(made, user, key, GNUTLS_PSK_KEY_HEX)
        }
        try check(code, "TLS: the key of user '\(user)' in \(file)")
    }

    deinit {
        switch kind {
        case .certificate(let made): unsafe gnutls_certificate_free_credentials(made)
        case .presharedKey(let made): unsafe gnutls_psk_free_client_credentials(made)
        }
    }

    /// A session of a client on a connected socket; nothing was sent yet. The credentials outlive it.
    func session(on socket: Int32) throws(PluginError) -> gnutls_session_t {
        var made: gnutls_session_t?
        try check(
            unsafe gnutls_init(&made, UInt32(bitPattern: Int32(GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL))),
            "TLS")
        guard let session = unsafe made else { throw PluginError(ENOMEM, "TLS: no memory") }
        do throws(PluginError) {
            switch kind {
            case .certificate(let credentials):
                try check(unsafe gnutls_set_default_priority(session), "TLS: priorities")
                try check(
                    unsafe gnutls_credentials_set(
                        session, GNUTLS_CRD_CERTIFICATE, UnsafeMutableRawPointer(credentials)), "TLS")
                if !hostName.isEmpty, !Self.isAddress(hostName) {
                    let code = unsafe hostName.withCString { name in
                        unsafe gnutls_server_name_set(session, GNUTLS_NAME_DNS, name, strlen(name))
                    }
                    try check(code, "TLS: host name \(hostName)")
                }
            case .presharedKey(let credentials):
                try check(
                    unsafe gnutls_set_default_priority_append(session, "+ECDHE-PSK:+DHE-PSK:+PSK", nil, 0),
                    "TLS: priorities")
                try check(
                    unsafe gnutls_credentials_set(session, GNUTLS_CRD_PSK, UnsafeMutableRawPointer(credentials)), "TLS")
            }
        } catch {
            unsafe gnutls_deinit(session)
            throw error
        }
        unsafe gnutls_transport_set_int2(session, socket, socket)
        return unsafe session
    }

    /// Refuses a server whose certificate is not valid for its name, when the handshake is over.
    func verify(_ session: gnutls_session_t) throws(PluginError) {
        guard verifies, case .certificate = kind else { return }
        var status: UInt32 = 0
        let code =
            hostName.isEmpty
            ? unsafe gnutls_certificate_verify_peers2(session, &status)
            : unsafe hostName.withCString { unsafe gnutls_certificate_verify_peers3(session, $0, &status) }
        try check(code, "TLS: the server's certificate")
        guard status == 0 else {
            var text = unsafe gnutls_datum_t()
            var words = "it is not valid"
            if unsafe gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) == 0,
                let data = unsafe text.data
            {
                words = unsafe String(decoding: UnsafeBufferPointer(start: data, count: Int(text.size)), as: UTF8.self)
                unsafe cgnutls_free(data)
            }
            let name = hostName.isEmpty ? "" : " for '\(hostName)'"
            throw PluginError(EKEYREJECTED, "TLS: the server's certificate is refused\(name): \(oneLine(words))")
        }
    }

    private static func isAddress(_ name: String) -> Bool {
        name.contains(":") || name.allSatisfy { $0.isNumber || $0 == "." }
    }

    /// The bytes of a file; nil if there is none.
    private static func read(_ path: String) throws(PluginError) -> [UInt8]? {
        let file = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard file >= 0 else {
            if errno == ENOENT { return nil }
            throw PluginError(system: "TLS: cannot read \(path)")
        }
        defer { _ = Glibc.close(file) }
        var bytes: [UInt8] = []
        var room = [UInt8](repeating: 0, count: 16384)
        while true {
            let count = unsafe Glibc.read(file, &room, room.count)
            guard count >= 0 else { throw PluginError(system: "TLS: cannot read \(path)") }
            if count == 0 { return bytes }
            bytes += room[..<count]
            guard bytes.count <= 1 << 20 else { throw PluginError(EFBIG, "TLS: \(path) is larger than 1 MiB") }
        }
    }

    private static func withDatum<Result>(_ bytes: [UInt8], _ body: (UnsafePointer<gnutls_datum_t>) -> Result) -> Result
    {
        var bytes = bytes
        // The array and the structure outlive the call, which only reads.
        return unsafe bytes.withUnsafeMutableBufferPointer { bytes in
            var datum = unsafe gnutls_datum_t(data: bytes.baseAddress, size: UInt32(clamping: bytes.count))
            return unsafe body(&datum)
        }
    }
}

/// A file of pre-shared keys, as psktool(1) writes it: pure.
enum PresharedKeys {
    /// The key of a user, in hexadecimal.
    static func key(of user: String, in text: [UInt8]) -> [UInt8]? {
        for line in text.split(separator: UInt8(ascii: "\n")) {
            guard let colon = line.firstIndex(of: UInt8(ascii: ":")), line[..<colon].elementsEqual(user.utf8) else {
                continue
            }
            return Array(line[line.index(after: colon)...].filter { $0 > 0x20 })
        }
        return nil
    }
}

/// Words of a library or server in one line, without control characters.
func oneLine(_ text: String) -> String {
    String(
        String.UnicodeScalarView(
            text.unicodeScalars.map { $0.value < 0x20 || (0x7F...0x9F).contains($0.value) ? " " : $0 })
    )
    .split(separator: " ").joined(separator: " ")
}

/// Throws GnuTLS' words for a negative code.
func check(_ code: Int32, _ what: String) throws(PluginError) {
    guard code < 0 else { return }
    let words = unsafe gnutls_strerror(code).map { unsafe String(cString: $0) } ?? "error \(code)"
    throw PluginError(code == GNUTLS_E_MEMORY_ERROR ? ENOMEM : EPROTO, "\(what): \(words)")
}
