// SPDX-License-Identifier: BSD-2-Clause
// The steps to an open image: connection, pool, the client before, the image itself.
import CRBD
import Glibc
import PluginKit

extension RBDDevice {
    func connect() throws(PluginError) {
        if unsafe pool != nil { return }
        let code = try cluster.connect()
        let who = cluster.client
        switch -code {
        case 0: break
        case ETIMEDOUT:
            // librados gives a key that is refused no other answer.
            throw PluginError(
                ETIMEDOUT,
                "no monitor let \(who) in within the time of option timeout: \(cluster.monitors) cannot be reached or has no "
                    + "quorum, or the key of \(who) is another one there (ceph auth get \(who))")
        case EACCES, EPERM:
            throw keyRefused
        case EINVAL where cluster.lacksKey, ENOENT where cluster.lacksKey:
            throw keyRefused
        default: throw PluginError(system: "cannot connect to the cluster at \(cluster.monitors) as \(who)", -code)
        }
        var pool: rados_ioctx_t?
        let found = unsafe rados_ioctx_create(cluster.rados, name.pool, &pool)
        guard found == 0, let pool = unsafe pool else {
            throw found == -ENOENT
                ? PluginError(ENOENT, "the cluster has no pool '\(name.pool)'")
                : PluginError(system: "cannot use pool '\(name.pool)'", -found)
        }
        if !name.namespace.isEmpty { unsafe rados_ioctx_set_namespace(pool, name.namespace) }
        unsafe self.pool = unsafe pool
    }

    private var keyRefused: PluginError {
        let who = cluster.client
        return PluginError(
            EPERM,
            cluster.lacksKey
                ? "the cluster wants a key of \(who), and there is none (options keyring, key)"
                : "the cluster does not accept the key of \(who): see ceph auth get \(who)")
    }

    func ownAddress() throws(PluginError) -> String {
        var text: UnsafeMutablePointer<CChar>?
        let code = unsafe rados_getaddrs(cluster.rados, &text)
        defer { unsafe rados_buffer_free(text) }
        guard code == 0, let text = unsafe text else { throw PluginError(system: "no address of this client", -code) }
        return unsafe String(cString: text)
    }

    /// Has the cluster refuse what the dead client of this host has sent or still sends. Its process is dead: this one has the
    /// lock of the note. OSDs learn of it no later than by the first request of this client, which knows the new map.
    func fence(_ client: String?, but own: String?) throws(PluginError) {
        guard let client, client != own else { return }
        var text = Array(client.utf8CString)
        let code = unsafe rados_blocklist_add(cluster.rados, &text, 0)
        let seen = code == 0 ? unsafe rados_wait_for_latest_osdmap(cluster.rados) : code
        guard seen == 0 else {
            throw PluginError(
                -seen,
                "cannot blocklist \(client), the client of the process before, whose writes may still be on their way: "
                    + "\(cluster.client) needs mon caps 'profile rbd'")
        }
        host.log(.info, "blocklisted \(client), the client of the process before")
    }

    func openTheImage() throws(PluginError) {
        var image: rbd_image_t?
        let pool = unsafe pool
        var code: Int32
        if let snapshot = name.snapshot {
            code = unsafe rbd_open_read_only(pool, name.image, &image, snapshot)
        } else {
            code = unsafe rbd_open(pool, name.image, &image, nil)
            // Without rights to write there is no watch, and a new size is not seen.
            if isReadOnly, [-EPERM, -EACCES, -EROFS].contains(code) {
                code = unsafe rbd_open_read_only(pool, name.image, &image, nil)
            }
        }
        switch -code {
        case 0: unsafe openImage = unsafe image
        case ENOENT:
            throw PluginError(ENOENT, "there is no image \(name.location) in the cluster")
        case EPERM, EACCES:
            throw PluginError(
                EACCES,
                "\(cluster.client) may not open \(name.text): it needs osd caps 'profile rbd pool=\(name.pool)' "
                    + "(ceph auth get \(cluster.client))")
        case ENOSYS:
            throw PluginError(
                ENOSYS,
                "cannot open \(name.text): it has features that this version of librbd does not know, or a plugin of librbd in its "
                    + "configuration (rbd info \(name.text), rbd config image ls \(name.text))")
        default: throw PluginError(system: "cannot open image \(name.text)", -code)
        }
    }

    /// What an image is beside its name: pool, what the names of its objects begin with, and the number of its snapshot.
    func identity(of image: rbd_image_t) throws(PluginError) -> String {
        var room = [CChar](repeating: 0, count: 96)
        let code = unsafe rbd_get_block_name_prefix(image, &room, room.count)
        guard code == 0 else { throw PluginError(system: "cannot ask what \(name.text) is", -code) }
        let prefix = String(decoding: room.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let identity = "\(unsafe rados_ioctx_get_id(pool))/\(prefix)"
        guard let snapshot = name.snapshot else { return identity }
        var number: UInt64 = 0
        let found = unsafe rbd_snap_get_id(image, snapshot, &number)
        guard found == 0 else { throw PluginError(system: "cannot ask what \(name.location) is", -found) }
        return "\(identity)@\(number)"
    }

    /// Metadata of image and pool overrule the configuration, and can bring a cache whose completed writes a kill would lose.
    func refuseCaches(_ image: rbd_image_t) throws(PluginError) {
        if isReadOnly { return }
        var count: Int32 = 1024
        let options = UnsafeMutablePointer<rbd_config_option_t>.allocate(capacity: Int(count))
        defer { unsafe options.deallocate() }
        let code = unsafe rbd_config_image_list(image, options, &count)
        guard code == 0 else { throw PluginError(system: "cannot ask how \(name.text) is configured", -code) }
        defer { unsafe rbd_config_image_list_cleanup(options, count) }
        var values: [String: String] = [:]
        for index in 0..<Int(count) {
            let option = unsafe options[index]
            guard let name = unsafe option.name, let value = unsafe option.value else { continue }
            unsafe values[String(cString: name)] = String(cString: value)
        }
        for (option, value, isSafe) in [
            ("rbd_cache_policy", "writethrough", values["rbd_cache"] != "true"),
            ("rbd_persistent_cache_mode", "disabled", false),
        ] {
            guard !isSafe, let found = values[option], found != value else { continue }
            throw .invalid(
                "the image or its pool sets \(option) '\(found)', which would lose completed writes: "
                    + "rbd config image set \(name.text) \(option) \(value)")
        }
    }
}
