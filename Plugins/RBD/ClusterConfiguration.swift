// SPDX-License-Identifier: BSD-2-Clause
// A client of a Ceph cluster before it connects: all that is read from files and asked of name servers.
import CRBD
import Glibc
import PluginKit

/// A librados handle. rados_create() starts no thread and opens no socket; rados_connect() does, and finds no files then.
///
/// `@unchecked Sendable`: open(), start() and close() alone use it, one after the other.
@safe
final class ClusterHandle: @unchecked Sendable {
    private(set) var rados: rados_t
    /// rados_connect() has failed, and is not called twice.
    private var isSpent = false
    /// `client.NAME`
    let client: String
    /// The host part of what the configuration names as monitors, for messages.
    private(set) var monitors = ""
    /// The client has no key; the cluster may not want one.
    private(set) var lacksKey = false

    /// Reads configuration and key. With the rights of root. `mayCache`: nobody else writes to the image.
    init(_ opening: Opening, mayCache: Bool) throws(PluginError) {
        let id = try opening[RBDOption.id]
        let user = try opening[RBDOption.user]
        guard id.isEmpty || user.isEmpty || id == user else {
            throw .invalid("options id and user both name a client: '\(id)' and '\(user)'")
        }
        let name = [id, user, "admin"].first { !$0.isEmpty } ?? "admin"
        client = name.hasPrefix("client.") ? name : "client.\(name)"
        var handle: rados_t?
        let code = unsafe rados_create2(&handle, try opening[RBDOption.cluster], client, 0)
        guard code == 0, let handle = unsafe handle else {
            throw PluginError(system: "librados does not start for \(client)", code < 0 ? -code : ENOMEM)
        }
        unsafe rados = unsafe handle
        let conf = try opening[RBDOption.conf]
        if !conf.isEmpty {
            let code = unsafe rados_conf_read_file(rados, conf)
            guard code == 0 else { throw PluginError(system: "cannot read \(conf) (option conf)", -code) }
        }
        for (option, value) in [
            ("keyring", try opening[RBDOption.keyring]), ("key", try opening[RBDOption.key].text),
            ("mon_host", try opening[RBDOption.monitors]),
        ] where !value.isEmpty { try set(option, value) }
        try set("client_mount_timeout", "\(try opening[RBDOption.timeout])")
        // A confined process has neither files nor Unix sockets.
        for option in ["log_file", "admin_socket", "mon_dns_srv_name"] { try set(option, "") }
        for option in ["log_to_stderr", "err_to_stderr", "log_to_syslog", "err_to_syslog"] { try set(option, "false") }
        // What was completed is with the cluster, not in a cache of this process.
        let cache = try opening[RBDOption.cache]
        try set("rbd_cache", mayCache && cache == .writethrough ? "true" : "false")
        try set("rbd_cache_policy", "writethrough")
        try set("rbd_persistent_cache_mode", "disabled")
        try set("rbd_plugins", "")
        try set("rbd_blocklist_on_break_lock", "true")
        if get("key").isEmpty { try readKey() }
        try resolveMonitors(conf)
    }

    deinit { unsafe rados_shutdown(rados) }

    /// Connects to the cluster; for up to the time of option timeout.
    ///
    /// - Returns: 0 or a negative errno.
    func connect() throws(PluginError) -> Int32 {
        if isSpent {
            var next: rados_t?
            let code = unsafe rados_create_with_context(&next, rados_cct(rados))
            guard code == 0, let next = unsafe next else { throw PluginError(system: "librados does not start", -code) }
            unsafe rados_shutdown(rados)
            unsafe rados = unsafe next
        }
        isSpent = true
        return unsafe rados_connect(rados)
    }

    /// A value of the configuration; empty where it has none.
    func get(_ option: String) -> String {
        var room = [CChar](repeating: 0, count: 16384)
        guard unsafe rados_conf_get(rados, option, &room, room.count) == 0 else { return "" }
        return String(decoding: room.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private func set(_ option: String, _ value: String) throws(PluginError) {
        let code = unsafe rados_conf_set(rados, option, value)
        guard code == 0 else { throw PluginError(system: "librados does not take the value of \(option)", -code) }
    }

    /// Takes the key out of the first keyring that there is, as librados would when it connects.
    private func readKey() throws(PluginError) {
        for path in get("keyring").split(whereSeparator: { ",; \t".contains($0) }).map(String.init) {
            guard let text = try readFile(path, atMost: 1 << 20) else { continue }
            guard let key = Keyring.key(of: client, in: text) else {
                throw PluginError(EACCES, "keyring \(path) has no key of \(client)")
            }
            return try set("key", key)
        }
        let file = get("keyfile")
        if !file.isEmpty, let text = try readFile(file, atMost: 4096) {
            return try set("key", String(text.split(whereSeparator: \.isWhitespace).first ?? ""))
        }
        lacksKey = true
    }

    /// Puts addresses in the place of names: a confined process has no resolver.
    private func resolveMonitors(_ conf: String) throws(PluginError) {
        monitors = get("mon_host")
        guard !monitors.isEmpty else {
            throw .invalid(
                "no monitor is named: neither 'mon host' in \(conf.isEmpty ? "a file" : conf) nor option mon-host")
        }
        var addresses: [String] = []
        for word in MonitorList.words(monitors) {
            guard let host = MonitorList.name(in: word) else {
                addresses.append(word)
                continue
            }
            addresses += try resolve(host.name).map { $0 + host.port }
        }
        try set("mon_host", addresses.joined(separator: ","))
    }

    /// The addresses of a host in numbers, those of IPv6 in brackets.
    private func resolve(_ name: String) throws(PluginError) -> [String] {
        var hints = unsafe addrinfo()
        unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let code = unsafe getaddrinfo(name, nil, &hints, &list)
        defer { if let list = unsafe list { unsafe freeaddrinfo(list) } }
        guard code == 0 else {
            throw PluginError(EHOSTUNREACH, "monitor '\(name)': \(unsafe String(cString: gai_strerror(code)))")
        }
        var found: [String] = []
        var entry = unsafe list
        while let this = unsafe entry {
            var text = [CChar](repeating: 0, count: 64)
            if unsafe getnameinfo(
                this.pointee.ai_addr, this.pointee.ai_addrlen, &text, 64, nil, 0, NI_NUMERICHOST) == 0
            {
                let number = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
                let address = number.contains(":") ? "[\(number)]" : number
                if !found.contains(address) { found.append(address) }
            }
            unsafe entry = unsafe this.pointee.ai_next
        }
        return found
    }
}

/// The text of a file; nil if there is none.
private func readFile(_ path: String, atMost limit: Int) throws(PluginError) -> String? {
    let fd = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard fd >= 0 else {
        if errno == ENOENT { return nil }
        throw PluginError(system: "cannot read \(path)")
    }
    defer { close(fd) }
    var bytes: [UInt8] = []
    var room = [UInt8](repeating: 0, count: 4096)
    while bytes.count < limit {
        let count = unsafe read(fd, &room, room.count)
        guard count >= 0 else { throw PluginError(system: "cannot read \(path)") }
        if count == 0 { break }
        bytes += room[..<count]
    }
    return String(decoding: bytes, as: UTF8.self)
}
