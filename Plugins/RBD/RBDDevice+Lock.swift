// SPDX-License-Identifier: BSD-2-Clause
// The exclusive lock of an image.
import CRBD
import Glibc
import PluginKit

extension RBDDevice {
    /// RBD_FEATURE_EXCLUSIVE_LOCK, a macro that Swift does not see.
    private static let exclusiveLock: UInt64 = 1 << 2

    /// Takes the exclusive lock away from the dead client of this host, and from no other one. (From a client that the cluster
    /// has not heard of for 30 s librbd itself takes it.)
    ///
    /// - Returns: false where the image has no such lock.
    func freeLock(_ image: rbd_image_t, of before: String?) throws(PluginError) -> Bool {
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

    func takeLock(_ image: rbd_image_t) throws(PluginError) {
        let code = unsafe rbd_lock_acquire(image, RBD_LOCK_MODE_EXCLUSIVE)
        switch -code {
        case 0: break
        case EBUSY:
            throw PluginError(EBUSY, "another client took the lock of \(name.text) meanwhile: rbd lock ls \(name.text)")
        case EROFS:
            throw PluginError(
                EROFS,
                "\(name.text) cannot be written: it is no primary image of a mirror (rbd mirror image status \(name.text)), or "
                    + "another client took its lock meanwhile (rbd lock ls \(name.text))")
        default: throw PluginError(system: "cannot lock \(name.text)", -code)
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
