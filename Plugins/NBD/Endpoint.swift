// SPDX-License-Identifier: BSD-2-Clause
// Where a server listens: names into addresses, and addresses into connected sockets. With the rights of root.
import CGnuTLS
import Glibc
import NBD
import PluginKit

/// An address that a socket is connected to.
struct Endpoint {
    private let family: Int32
    /// A `struct sockaddr` of the family.
    private let address: [UInt8]

    /// The addresses of a URI's server, in the order in which they are tried.
    static func resolve(_ transport: ExportURI.Transport) throws(PluginError) -> [Endpoint] {
        switch transport {
        case .tcp(let host, let port): try resolve(host, port)
        case .unix(let path): [try unix(path)]
        case .vsock(let context, let port):
            [
                Endpoint(
                    family: AF_VSOCK,
                    sockaddr_vm(
                        svm_family: sa_family_t(AF_VSOCK), svm_reserved1: 0, svm_port: port, svm_cid: context,
                        svm_flags: 0, svm_zero: (0, 0, 0)))
            ]
        }
    }

    /// A socket that is connected to one of them, and does not block.
    static func connect(
        _ endpoints: [Endpoint], seconds: UInt64
    ) throws(PluginError) -> (socket: Int32, endpoint: Endpoint) {
        var failure = PluginError(EDESTADDRREQ, "the server has no address")
        for endpoint in endpoints {
            do throws(PluginError) {
                return (try endpoint.connect(milliseconds: Int32(clamping: seconds &* 1000)), endpoint)
            } catch {
                failure = error
            }
        }
        throw failure
    }

    private init<Address>(family: Int32, _ address: Address) {
        self.family = family
        // A plain structure, all of whose bytes are set.
        self.address = unsafe withUnsafeBytes(of: address) { unsafe Array($0) }
    }

    private init(family: Int32, bytes: [UInt8]) { (self.family, address) = (family, bytes) }

    private static func unix(_ path: String) throws(PluginError) -> Endpoint {
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        let room = MemoryLayout.size(ofValue: name.sun_path)
        guard bytes.count < room else {
            throw .invalid(
                "the path of the socket has \(bytes.count) bytes, and at most \(room - 1) can be connected to")
        }
        unsafe withUnsafeMutableBytes(of: &name.sun_path) { unsafe $0.copyBytes(from: bytes) }
        return Endpoint(family: AF_UNIX, name)
    }

    private static func resolve(_ host: String, _ port: UInt16) throws(PluginError) -> [Endpoint] {
        var hints = unsafe addrinfo()
        unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        unsafe hints.ai_flags = AI_ADDRCONFIG
        var list: UnsafeMutablePointer<addrinfo>?
        var code = unsafe getaddrinfo(host, "\(port)", &hints, &list)
        if code == EAI_NONAME {
            // AI_ADDRCONFIG hides loopback's addresses where there is no other of the family.
            unsafe hints.ai_flags = 0
            unsafe code = getaddrinfo(host, "\(port)", &hints, &list)
        }
        defer { if let list = unsafe list { unsafe freeaddrinfo(list) } }
        guard code == 0 else {
            throw PluginError(EHOSTUNREACH, "host '\(host)': \(unsafe String(cString: gai_strerror(code)))")
        }
        var found: [Endpoint] = []
        var entry = unsafe list
        while let this = unsafe entry {
            if let address = unsafe this.pointee.ai_addr {
                let bytes = unsafe Array(UnsafeRawBufferPointer(start: address, count: Int(this.pointee.ai_addrlen)))
                found.append(Endpoint(family: unsafe this.pointee.ai_family, bytes: bytes))
            }
            unsafe entry = unsafe this.pointee.ai_next
        }
        return found
    }

    private func connect(milliseconds: Int32) throws(PluginError) -> Int32 {
        let socket = Glibc.socket(
            family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        guard socket >= 0 else { throw PluginError(system: "no socket") }
        do throws(PluginError) {
            try connect(socket, milliseconds)
            if family != AF_UNIX { try configure(socket) }
            return socket
        } catch {
            close(socket)
            throw error
        }
    }

    private func connect(_ socket: Int32, _ milliseconds: Int32) throws(PluginError) {
        // The array outlives the call, which reads as many bytes as it is told.
        var code = unsafe address.withUnsafeBytes { bytes -> Int32 in
            guard let base = bytes.baseAddress else { return EINVAL }
            return unsafe Glibc.connect(
                socket, base.assumingMemoryBound(to: sockaddr.self), socklen_t(bytes.count)) == 0 ? 0 : errno
        }
        // EAGAIN: the queue of a Unix socket's server is full.
        if code == EINPROGRESS {
            var entry = pollfd(fd: socket, events: Int16(POLLOUT), revents: 0)
            let ready = unsafe poll(&entry, 1, milliseconds)
            guard ready != 0 else { throw PluginError(ETIMEDOUT, "no answer within \(milliseconds / 1000) s") }
            var size = socklen_t(MemoryLayout<Int32>.size)
            if unsafe ready < 0 || getsockopt(socket, SOL_SOCKET, SO_ERROR, &code, &size) != 0 { code = errno }
        }
        guard code == 0 else {
            throw PluginError(code, unsafe strerror(code).map { unsafe String(cString: $0) } ?? "error \(code)")
        }
    }

    private func configure(_ socket: Int32) throws(PluginError) {
        guard family == AF_INET || family == AF_INET6 else { return }
        var one: Int32 = 1
        let size = socklen_t(MemoryLayout<Int32>.size)
        // Requests are sent as a batch. A machine that is started again answers a probe that it knows of no connection, which is proof
        // for the fence; so probes go on for an hour, where giving up would prove nothing.
        guard unsafe setsockopt(socket, Int32(IPPROTO_TCP), TCP_NODELAY, &one, size) == 0,
            unsafe setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &one, size) == 0
        else { throw PluginError(system: "setsockopt") }
        for (option, seconds) in [(TCP_KEEPIDLE, 30), (TCP_KEEPINTVL, 30), (TCP_KEEPCNT, 127)] as [(Int32, Int32)] {
            var value = seconds
            _ = unsafe setsockopt(socket, Int32(IPPROTO_TCP), option, &value, size)
        }
    }
}
