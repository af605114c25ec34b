// SPDX-License-Identifier: BSD-2-Clause
// Where an export is: the URIs of doc/uri.md of the NBD project, with libnbd's parameters (nbd_connect_uri(3)).

/// Why a text is no URI of an export, in words for the administrator. It shows no user name and no file name.
public struct ExportURIError: Error, Equatable, Sendable {
    /// One sentence.
    public let message: String

    init(_ message: String) { self.message = message }
}

/// The URI of an export, checked.
public struct ExportURI: Sendable, Equatable {
    /// How the server is reached.
    public enum Transport: Sendable, Equatable {
        /// A name or an address, IPv6 without brackets and with a zone behind '%' if it has one.
        case tcp(host: String, port: UInt16)
        /// The path of a socket; of one in the abstract name space it begins with NUL.
        case unix(path: String)
        /// Another domain of this machine, as its hypervisor counts them.
        case vsock(cid: UInt32, port: UInt32)
    }

    /// How the ends of a TLS session know each other.
    public enum Authentication: String, Sendable {
        /// They do not.
        case anonymous = "anon"
        /// By certificates.
        case certificates = "x509"
        /// By a key that both have.
        case sharedKey = "psk"
    }

    /// What the URI says of TLS.
    public struct TLS: Sendable, Equatable {
        /// `tls-type`; nil: it does not say.
        public internal(set) var authentication: Authentication?
        /// `tls-certificates`: a folder of PEM files; nil: it names none.
        public internal(set) var certificates: String?
        /// `tls-psk-file`: a file with lines of user name, ':' and key; nil: it names none.
        public internal(set) var sharedKeyFile: String?
        /// `tls-hostname`: the name that the server's certificate must have, or nil for the host of the URI.
        public internal(set) var hostName: String?
        /// `tls-verify-peer`: the server's certificate is checked.
        public internal(set) var verifiesPeer = true
        /// The user of a key; nil: the URI names none.
        public internal(set) var userName: String?
    }

    /// The port that IANA gave to NBD.
    public static let defaultPort: UInt16 = 10809
    /// Bytes of an export's name at most.
    public static let longestName = 4096
    /// Bytes of a URI at most: a name whose bytes are all written as %XX, and parameters with paths.
    static let longest = 32768
    /// Bytes of a socket's path at most: `sun_path` of unix(7) with a NUL at its end.
    static let longestSocketPath = 107

    /// How the server is reached.
    public private(set) var transport: Transport
    /// TLS, which is demanded then; nil: there is none.
    public private(set) var tls: TLS?
    /// The export's name, UTF-8 without NUL; empty for the server's default.
    public private(set) var exportName: [UInt8]

    /// TLS is demanded.
    public var isTLS: Bool { tls != nil }

    private enum Scheme: String, CaseIterable {
        case tcp = "nbd"
        case unix = "nbd+unix"
        case vsock = "nbd+vsock"

        static func of(_ name: String) -> (Scheme, isTLS: Bool)? {
            let name = name.lowercased()
            if let plain = Scheme(rawValue: name) { return (plain, false) }
            guard name.hasPrefix("nbds"), let scheme = Scheme(rawValue: "nbd" + name.dropFirst(4)) else { return nil }
            return (scheme, true)
        }
    }

    /// Reads a URI; throws where it is none, or has something that is not understood.
    public init(_ text: String) throws(ExportURIError) {
        guard text.utf8.count <= Self.longest else {
            throw ExportURIError("the URI has more than \(Self.longest) bytes")
        }
        guard text.unicodeScalars.allSatisfy({ $0.value > 0x20 && !(0x7f..<0xa0).contains($0.value) }) else {
            throw ExportURIError("a URI has no spaces and control characters: a space is written as %20")
        }
        let bytes = Array(text.utf8)
        guard let colon = bytes.firstIndex(of: UInt8(ascii: ":")),
            let (scheme, isTLS) = Scheme.of(String(decoding: bytes[..<colon], as: UTF8.self)),
            bytes[colon...].starts(with: "://".utf8)
        else {
            throw ExportURIError(
                "an export's URI begins with nbd://, nbds://, nbd+unix://, nbds+unix://, nbd+vsock:// or nbds+vsock://")
        }
        guard !bytes.contains(UInt8(ascii: "#")) else {
            throw ExportURIError("the URI of an export has no fragment: a # is written as %23")
        }
        var rest = bytes[(colon + 3)...]
        let query = Self.cut(&rest, before: UInt8(ascii: "?"))
        let path = Self.cut(&rest, before: UInt8(ascii: "/")) ?? []
        exportName = try Self.decode(path, "the export's name")
        guard exportName.count <= Self.longestName else {
            throw ExportURIError("the export's name has more than \(Self.longestName) bytes")
        }
        guard String(validating: exportName, as: UTF8.self) != nil, !exportName.contains(0) else {
            throw ExportURIError("the export's name is not UTF-8 without NUL")
        }
        tls = isTLS ? TLS() : nil
        let parameters = try Self.parameters(query)
        let authority = try Authority(rest)
        if let user = authority.user {
            guard isTLS else { throw ExportURIError("a user name is for TLS, which nbds in the place of nbd demands") }
            tls?.userName = user
        }
        transport = try Self.transport(scheme, authority, parameters)
        for (name, value) in parameters where name != "socket" { try take(name, value) }
        guard tls?.certificates == nil || tls?.sharedKeyFile == nil else {
            throw ExportURIError("tls-certificates and tls-psk-file exclude each other")
        }
    }

    /// The transport of a scheme, by authority and parameters.
    private static func transport(
        _ scheme: Scheme, _ authority: Authority, _ parameters: [String: [UInt8]]
    ) throws(ExportURIError) -> Transport {
        if scheme != .unix, parameters["socket"] != nil {
            throw ExportURIError("the parameter socket is for nbd+unix and nbds+unix")
        }
        switch scheme {
        case .tcp:
            guard let host = authority.host else { throw ExportURIError("the URI has no host: nbd://HOST/EXPORT") }
            guard let port = authority.port.map({ UInt16(exactly: $0) }) ?? defaultPort, port > 0 else {
                throw ExportURIError("a port of TCP is a number from 1 to 65535")
            }
            return .tcp(host: host, port: port)
        case .unix:
            guard authority.host == nil, authority.port == nil else {
                throw ExportURIError(
                    "a Unix domain socket is on no host: nbd+unix:///EXPORT?socket=PATH, with three slashes")
            }
            guard let socket = parameters["socket"], !socket.isEmpty else {
                throw ExportURIError("the parameter socket is missing: nbd+unix:///EXPORT?socket=PATH")
            }
            guard socket.count <= longestSocketPath else {
                throw ExportURIError("the path of a Unix domain socket has at most \(longestSocketPath) bytes")
            }
            guard let path = String(validating: socket, as: UTF8.self), !socket.dropFirst().contains(0), path != "\0"
            else {
                throw ExportURIError("the path of the socket is not UTF-8, or has a NUL behind its beginning")
            }
            return .unix(path: path)
        case .vsock:
            // The machine that the hypervisor runs on is 2: VMADDR_CID_HOST of vsock(7).
            guard let cid = authority.host.map({ UInt32($0) }) ?? 2 else {
                throw ExportURIError("the host of nbd+vsock is a number, the CID: 2 for the hypervisor's machine")
            }
            return .vsock(cid: cid, port: authority.port ?? UInt32(defaultPort))
        }
    }

    /// A parameter other than the socket.
    private mutating func take(_ name: String, _ value: [UInt8]) throws(ExportURIError) {
        let known = ["tls-type", "tls-certificates", "tls-psk-file", "tls-hostname", "tls-verify-peer"]
        guard known.contains(name) else {
            throw ExportURIError(
                "unknown parameter '\(ShownText.of(name.utf8))': there are socket, \(known.joined(separator: ", "))")
        }
        guard tls != nil else {
            throw ExportURIError("\(name) is for TLS, which nbds in the place of nbd demands")
        }
        guard let text = String(validating: value, as: UTF8.self), !value.isEmpty, !value.contains(0) else {
            throw ExportURIError("the value of \(name) is empty, or not UTF-8 without NUL")
        }
        switch name {
        case "tls-type":
            guard let kind = Authentication(rawValue: text) else {
                throw ExportURIError("tls-type is anon, x509 or psk")
            }
            tls?.authentication = kind
        case "tls-certificates": tls?.certificates = text
        case "tls-psk-file": tls?.sharedKeyFile = text
        case "tls-hostname": tls?.hostName = text
        default:
            guard text == "0" || text == "1" else { throw ExportURIError("tls-verify-peer is 0 or 1") }
            tls?.verifiesPeer = text == "1"
        }
    }

    /// The parameters of a query, decoded, each at most once.
    private static func parameters(_ query: ArraySlice<UInt8>?) throws(ExportURIError) -> [String: [UInt8]] {
        var found: [String: [UInt8]] = [:]
        for part in (query ?? []).split(separator: UInt8(ascii: "&")) {
            var name = part
            guard let value = cut(&name, before: UInt8(ascii: "=")) else {
                throw ExportURIError("the parameter '\(ShownText.of(name))' has no value")
            }
            let key = String(decoding: try decode(name, "a parameter's name"), as: UTF8.self)
            guard found[key] == nil else {
                throw ExportURIError("the parameter '\(ShownText.of(key.utf8))' is there twice")
            }
            found[key] = try decode(value, "the value of '\(ShownText.of(key.utf8))'")
        }
        return found
    }

    fileprivate static func decode(
        _ part: some Collection<UInt8>, _ what: @autoclosure () -> String
    ) throws(ExportURIError) -> [UInt8] {
        guard let bytes = PercentEncoding.decode(part) else {
            throw ExportURIError("\(what()) has a % without two hexadecimal digits: a % is written as %25")
        }
        return bytes
    }

    /// Cuts off what follows the first `separator`, without it; nil: there is none.
    fileprivate static func cut(_ text: inout ArraySlice<UInt8>, before separator: UInt8) -> ArraySlice<UInt8>? {
        guard let place = text.firstIndex(of: separator) else { return nil }
        let tail = text[(place + 1)...]
        text = text[..<place]
        return tail
    }
}

extension ExportURI: CustomStringConvertible {
    /// The URI for messages: transport and export. User names and all about TLS but that it is there are left out.
    public var description: String {
        let scheme = isTLS ? "nbds" : "nbd"
        let name = PercentEncoding.encode(exportName)
        return switch transport {
        case .tcp(let host, let port):
            "\(scheme)://\(Self.shown(host: host))\(port == Self.defaultPort ? "" : ":\(port)")/\(name)"
        case .unix(let path): "\(scheme)+unix:///\(name)?socket=\(PercentEncoding.encode(path.utf8))"
        case .vsock(let cid, let port):
            "\(scheme)+vsock://\(cid)\(port == UInt32(Self.defaultPort) ? "" : ":\(port)")/\(name)"
        }
    }

    private static func shown(host: String) -> String {
        guard host.contains(":") else { return PercentEncoding.encode(host.utf8) }
        return "[\(host.split(separator: "%").joined(separator: "%25"))]"
    }
}

/// The part of a URI between `//` and the path.
private struct Authority {
    var user: String?
    var host: String?
    var port: UInt32?

    init(_ text: ArraySlice<UInt8>) throws(ExportURIError) {
        var place = text
        if let at = text.lastIndex(of: UInt8(ascii: "@")) {
            place = text[(at + 1)...]
            // A password would stand in lists of disks and processes.
            guard !text[..<at].contains(UInt8(ascii: ":")) else {
                throw ExportURIError("a URI has no password: keys stand in the file of tls-psk-file")
            }
            let bytes = try ExportURI.decode(text[..<at], "the user name")
            guard let name = String(validating: bytes, as: UTF8.self), !bytes.isEmpty, !bytes.contains(0) else {
                throw ExportURIError("the user name is empty, or not UTF-8 without NUL")
            }
            user = name
        }
        if place.first == UInt8(ascii: "[") {
            try takeAddress(place.dropFirst())
        } else {
            let port = ExportURI.cut(&place, before: UInt8(ascii: ":"))
            if !place.isEmpty { host = try Self.name(try ExportURI.decode(place, "the host")) }
            try takePort(port)
        }
    }

    /// An IPv6 address behind its bracket: digits, colons, dots, and a zone behind %25 (RFC 6874).
    private mutating func takeAddress(_ text: ArraySlice<UInt8>) throws(ExportURIError) {
        var address = text
        guard let tail = ExportURI.cut(&address, before: UInt8(ascii: "]")) else {
            throw ExportURIError("an IPv6 address has no ] at its end")
        }
        guard tail.isEmpty || tail.first == UInt8(ascii: ":") else {
            throw ExportURIError("behind the ] of an IPv6 address there is :PORT or the export")
        }
        let bytes = try ExportURI.decode(address, "the IPv6 address")
        var digits = bytes[...]
        let zone = ExportURI.cut(&digits, before: UInt8(ascii: "%"))
        let allowed = Array("0123456789abcdefABCDEF:.".utf8)
        guard digits.allSatisfy(allowed.contains), digits.contains(UInt8(ascii: ":")) else {
            throw ExportURIError("what stands in brackets is no IPv6 address")
        }
        if let zone, zone.isEmpty || !zone.allSatisfy(Self.isOfName) {
            throw ExportURIError("the zone of the IPv6 address is no name of an interface")
        }
        host = String(decoding: bytes, as: UTF8.self)
        try takePort(tail.isEmpty ? nil : tail.dropFirst())
    }

    /// `HOST:` is without a port, as in RFC 3986.
    private mutating func takePort(_ text: ArraySlice<UInt8>?) throws(ExportURIError) {
        guard let text, !text.isEmpty else { return }
        let isNumber = text.allSatisfy { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
        guard isNumber, let number = UInt32(String(decoding: text, as: UTF8.self)) else {
            throw ExportURIError("the port is no number; an IPv6 address is written in brackets: [::1]")
        }
        port = number
    }

    private static func name(_ bytes: [UInt8]) throws(ExportURIError) -> String {
        guard bytes.count <= 255, bytes.allSatisfy(isOfName) else {
            throw ExportURIError("the host is no name and no address")
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// What names of hosts are made of, and those of interfaces.
    private static func isOfName(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"):
            true
        default: false
        }
    }
}
