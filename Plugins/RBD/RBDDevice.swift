// SPDX-License-Identifier: BSD-2-Clause
// An open image: configuration and key in open(), connection and lock in start().
import CRBD
import Glibc
import PluginKit
import Synchronization

/// An image of a Ceph cluster.
///
/// `@unchecked Sendable`: what changes is written by start() and close(), before and after there are queues.
@safe
final class RBDDevice: StorageDisk, @unchecked Sendable {
    /// RBD_FEATURE_EXCLUSIVE_LOCK, a macro that Swift does not see.
    private static let exclusiveLock: UInt64 = 1 << 2
    private let name: ImageName
    private let isReadOnly: Bool
    private let cluster: ClusterHandle
    private let host: HostDisk
    private let note: HolderNote?
    private var context: rados_ioctx_t?
    /// The image, for the queues; nil before start().
    private(set) var openImage: rbd_image_t?
    private var watch: UInt64?
    /// This process has written its address into the note.
    private var isNoted = false
    private let isBlocked = Atomic(false)

    init(_ opening: Opening) throws(PluginError) {
        name = try ImageName(try opening.location)
        isReadOnly = opening.isReadOnly
        host = opening.hostDisk
        guard isReadOnly || name.snapshot == nil else {
            throw PluginError(EROFS, "a snapshot does not change: attach \(name.text)@... read-only (mode r)")
        }
        cluster = try ClusterHandle(opening)
        note =
            isReadOnly
            ? nil
            : try HolderNote(
                of: name, cluster: cluster.get("fsid").isEmpty ? cluster.monitors : cluster.get("fsid"),
                in: try opening[RBDOption.runDirectory])
    }

    /// Before start() the size is that of one block: nobody has asked the cluster yet.
    var info: DiskInfo {
        var info = DiskInfo(size: 512, capabilities: [.write, .flush, .discard, .writeZeroes, .stableBuffers])
        info.maxQueues = 16
        info.optimalTransfer = 4 << 20
        info.discardGranularity = 65536
        guard let image = unsafe openImage else { return info }
        var facts = rbd_image_info_t()
        if unsafe rbd_stat(image, &facts, MemoryLayout<rbd_image_info_t>.size) == 0 {
            info.size = max(512, facts.size & ~511)
            info.optimalTransfer = UInt32(clamping: facts.obj_size)
        }
        return info
    }

    func start() throws(PluginError) {
        try connect()
        var address: String?
        if let note {
            address = try ownAddress()
            try fence(note.client, but: address)
        }
        let before = note?.client
        try openTheImage()
        guard let image = unsafe openImage else { throw PluginError(EIO, "librbd opened nothing") }
        try unsafe refuseWriteback(image)
        if let note {
            let canLock = try unsafe freeLock(image, of: before)
            // From here on a successor has to fence this client.
            note.set(address)
            isNoted = true
            if canLock { try unsafe takeLock(image) }
        }
        var handle: UInt64 = 0
        // Without the watch a new size is not seen; the image can be used nevertheless.
        let code = unsafe rbd_update_watch(
            image, &handle,
            { argument in
                guard let argument = unsafe argument else { return }
                unsafe Unmanaged<RBDDevice>.fromOpaque(argument)._withUnsafeGuaranteedRef { $0.host.notify(.info) }
            }, Unmanaged.passUnretained(self).toOpaque())
        if code == 0 { watch = handle }
    }

    func openQueue(_ parameters: QueueParameters) -> RBDQueue { RBDQueue(self) }

    func close() {
        if let image = unsafe openImage {
            if let watch { unsafe _ = rbd_update_unwatch(image, watch) }
            let code = unsafe rbd_close(image)
            unsafe openImage = nil
            // Nothing of this client is on its way any more.
            if code == 0, isNoted { note?.set(nil) }
        } else if isNoted {
            note?.set(nil)
        }
        if let context = unsafe context { unsafe rados_ioctx_destroy(context) }
        unsafe context = nil
    }

    /// The cluster refuses this client for ever: somebody broke its lock, another process or an administrator.
    func clientWasBlocked() {
        guard !isBlocked.exchange(true, ordering: .relaxed) else { return }
        host.log(
            .error,
            "the cluster has blocklisted this client of \(name.text): another client broke its lock, or an "
                + "administrator did (ceph osd blocklist ls); detach and attach the disk when nobody else uses the image"
        )
        host.notify(.lost)
    }

    // MARK: Steps of start()

    private func connect() throws(PluginError) {
        let code = unsafe rados_connect(cluster.rados)
        let who = cluster.client
        switch -code {
        case 0: break
        case ETIMEDOUT:
            // librados gives a key that is refused no other answer.
            throw PluginError(
                ETIMEDOUT,
                "no monitor let \(who) in within the time of option timeout: \(cluster.monitors) cannot be reached, or the key of "
                    + "\(who) is another one there (ceph auth get \(who))")
        case EACCES, EPERM:
            throw keyRefused
        case EINVAL where cluster.lacksKey, ENOENT where cluster.lacksKey:
            throw keyRefused
        default: throw PluginError(system: "cannot connect to the cluster at \(cluster.monitors) as \(who)", -code)
        }
        var context: rados_ioctx_t?
        let found = unsafe rados_ioctx_create(cluster.rados, name.pool, &context)
        guard found == 0, let context = unsafe context else {
            throw found == -ENOENT
                ? PluginError(ENOENT, "the cluster has no pool '\(name.pool)'")
                : PluginError(system: "cannot use pool '\(name.pool)'", -found)
        }
        unsafe self.context = unsafe context
        if !name.namespace.isEmpty { unsafe rados_ioctx_set_namespace(context, name.namespace) }
    }

    private var keyRefused: PluginError {
        let who = cluster.client
        return PluginError(
            EPERM,
            cluster.lacksKey
                ? "the cluster wants a key of \(who), and there is none (options keyring, key)"
                : "the cluster does not accept the key of \(who): see ceph auth get \(who)")
    }

    private func ownAddress() throws(PluginError) -> String {
        var text: UnsafeMutablePointer<CChar>?
        let code = unsafe rados_getaddrs(cluster.rados, &text)
        defer { unsafe rados_buffer_free(text) }
        guard code == 0, let text = unsafe text else { throw PluginError(system: "no address of this client", -code) }
        return unsafe String(cString: text)
    }

    /// Has the cluster refuse what the dead client of this host has sent or still sends. Its process is dead: this one has the
    /// lock of the note. OSDs learn of it no later than by the first request of this client, which knows the new map.
    private func fence(_ client: String?, but own: String?) throws(PluginError) {
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

    private func openTheImage() throws(PluginError) {
        var image: rbd_image_t?
        let context = unsafe context
        var code: Int32
        if let snapshot = name.snapshot {
            code = unsafe rbd_open_read_only(context, name.image, &image, snapshot)
        } else {
            code = unsafe rbd_open(context, name.image, &image, nil)
            // Without rights to write there is no watch, and a new size is not seen.
            if isReadOnly, [-EPERM, -EACCES, -EROFS].contains(code) {
                code = unsafe rbd_open_read_only(context, name.image, &image, nil)
            }
        }
        switch -code {
        case 0: unsafe openImage = unsafe image
        case ENOENT:
            let snapshot = name.snapshot.map { "@\($0)" } ?? ""
            throw PluginError(ENOENT, "there is no image \(name.text)\(snapshot) in the cluster")
        default: throw PluginError(system: "cannot open image \(name.text)", -code)
        }
    }

    /// Metadata of image and pool overrule the configuration, and can bring a cache whose completed writes a kill would lose.
    private func refuseWriteback(_ image: rbd_image_t) throws(PluginError) {
        var count: Int32 = 1024
        let options = UnsafeMutablePointer<rbd_config_option_t>.allocate(capacity: Int(count))
        defer { unsafe options.deallocate() }
        guard unsafe rbd_config_image_list(image, options, &count) == 0 else { return }
        defer { unsafe rbd_config_image_list_cleanup(options, count) }
        var values: [String: String] = [:]
        for index in 0..<Int(count) {
            let option = unsafe options[index]
            guard let name = unsafe option.name, let value = unsafe option.value else { continue }
            unsafe values[String(cString: name)] = String(cString: value)
        }
        if values["rbd_cache"] == "true", let policy = values["rbd_cache_policy"], policy != "writethrough" {
            throw .invalid(
                "the image or its pool sets rbd_cache with policy '\(policy)', which would lose completed writes: "
                    + "rbd config image set \(name.text) rbd_cache_policy writethrough")
        }
    }

    /// Takes the exclusive lock away from the dead client of this host, and from no other one. (From a client that the cluster
    /// has not heard of for 30 s librbd itself takes it.)
    ///
    /// - Returns: false where the image has no such lock.
    private func freeLock(_ image: rbd_image_t, of before: String?) throws(PluginError) -> Bool {
        var features: UInt64 = 0
        guard unsafe rbd_get_features(image, &features) == 0, features & Self.exclusiveLock != 0 else {
            host.log(
                .warning,
                "\(name.text) has no exclusive lock, so nothing keeps other hosts from writing to it: "
                    + "rbd feature enable \(name.text) exclusive-lock")
            return false
        }
        guard let (owner, mode) = try unsafe lockOwner(image) else { return true }
        if owner == before {
            let code = unsafe owner.withCString { unsafe rbd_lock_break(image, mode, $0) }
            guard code == 0 || code == -ENOENT else {
                throw PluginError(system: "cannot break the lock of the process before, client \(owner)", -code)
            }
        } else if try unsafe isWatching(image, owner) {
            throw PluginError(
                EBUSY,
                "\(name.text) is in use by another client, \(owner): end it there first (rbd status \(name.text), "
                    + "rbd lock ls \(name.text))")
        }
        return true
    }

    private func takeLock(_ image: rbd_image_t) throws(PluginError) {
        let code = unsafe rbd_lock_acquire(image, RBD_LOCK_MODE_EXCLUSIVE)
        guard code == 0 else {
            throw code == -EBUSY || code == -EROFS
                ? PluginError(EBUSY, "another client took the lock of \(name.text) meanwhile: rbd lock ls \(name.text)")
                : PluginError(system: "cannot lock \(name.text)", -code)
        }
    }

    private func lockOwner(_ image: rbd_image_t) throws(PluginError) -> (String, rbd_lock_mode_t)? {
        var mode = RBD_LOCK_MODE_EXCLUSIVE
        var owners: [UnsafeMutablePointer<CChar>?] = unsafe [nil, nil, nil, nil]
        var count = 4
        let code = unsafe rbd_lock_get_owners(image, &mode, &owners, &count)
        if code == -ENOENT { return nil }
        guard code == 0 else { throw PluginError(system: "cannot ask who has the lock of \(name.text)", -code) }
        defer { unsafe rbd_lock_get_owners_cleanup(&owners, count) }
        guard count > 0, let owner = unsafe owners[0] else { return nil }
        return unsafe (String(cString: owner), mode)
    }

    private func isWatching(_ image: rbd_image_t, _ client: String) throws(PluginError) -> Bool {
        var count = 256
        let watchers = UnsafeMutablePointer<rbd_image_watcher_t>.allocate(capacity: count)
        defer { unsafe watchers.deallocate() }
        let code = unsafe rbd_watchers_list(image, watchers, &count)
        guard code == 0 else { throw PluginError(system: "cannot ask who uses \(name.text)", -code) }
        defer { unsafe rbd_watchers_list_cleanup(watchers, count) }
        return (0..<count).contains { index in
            unsafe watchers[index].addr.map { unsafe String(cString: $0) == client } ?? false
        }
    }
}
