// SPDX-License-Identifier: BSD-2-Clause
// An open image: configuration and key in open(), connection and lock in start().
import CRBD
import Glibc
import PluginKit
import Synchronization

/// An image of a Ceph cluster.
///
/// `@unchecked Sendable`: what queues read is written by start() and close(), before and after there are queues; the rest is that of
/// control calls.
@safe
final class RBDDevice: StorageDisk, @unchecked Sendable {
    let name: ImageName
    let isReadOnly: Bool
    let cluster: ClusterHandle
    let host: HostDisk
    private let note: HolderNote
    /// A guest has the disk already.
    private let isAwaited: Bool
    /// The pool; nil before there is a connection.
    var pool: rados_ioctx_t?
    /// The image, for the queues; nil before start().
    var openImage: rbd_image_t?
    /// Bytes of the image, and of one of its objects, as last known.
    private var (size, objectBytes): (UInt64, UInt32) = (512, 4 << 20)
    private var watch: UInt64?
    /// This process has written its address into the note.
    private var isNoted = false
    private let isBlocked = Atomic(false)

    init(_ opening: Opening) throws(PluginError) {
        name = try ImageName(try opening.location)
        isReadOnly = opening.isReadOnly
        isAwaited = opening.isSuccessor
        host = opening.hostDisk
        guard isReadOnly || name.snapshot == nil else {
            throw PluginError(EROFS, "a snapshot does not change: attach \(name.text)@... read-only (mode r)")
        }
        cluster = try ClusterHandle(opening, mayCache: !isReadOnly || name.snapshot != nil)
        let fsid = cluster.get("fsid")
        note = try HolderNote(
            of: name, cluster: fsid.isEmpty ? cluster.monitors : fsid, isReader: isReadOnly,
            in: try opening[RBDOption.runDirectory])
    }

    /// Before start() the size is that of one block: nobody has asked the cluster yet.
    var info: DiskInfo {
        if let image = unsafe openImage, unsafe measure(image) == -ESHUTDOWN { clientWasBlocked() }
        var info = DiskInfo(size: size, capabilities: [.write, .flush, .discard, .writeZeroes, .stableBuffers])
        info.maxQueues = 16
        info.optimalTransfer = objectBytes
        info.discardGranularity = 65536
        return info
    }

    /// Asks how large the image is. Where there is no answer, what was known before stays.
    ///
    /// - Returns: 0 or a negative errno.
    private func measure(_ image: rbd_image_t) -> Int32 {
        var facts = rbd_image_info_t()
        let code = unsafe rbd_stat(image, &facts, MemoryLayout<rbd_image_info_t>.size)
        if code == 0 { (size, objectBytes) = (max(512, facts.size & ~511), UInt32(clamping: facts.obj_size)) }
        return code
    }

    /// Where a guest waits, what may pass is waited for: it would lose the disk.
    func start() throws(PluginError) {
        var isSaid = false
        var left = 10
        while true {
            do throws(PluginError) {
                return try serve()
            } catch {
                // A name that leads nowhere may be about to be renamed back.
                if error.code == ENOENT { left -= 1 }
                guard isAwaited, left > 0, Self.mayPass.contains(error.code) else { throw error }
                closeImage()
                if !isSaid { host.log(.error, "\(error.message); the guest waits until that is over") }
                isSaid = true
                sleep(1)
            }
        }
    }

    private static let mayPass = [
        ETIMEDOUT, EBUSY, EAGAIN, ENOENT, ECONNREFUSED, ECONNRESET, ECONNABORTED, EHOSTUNREACH, ENETUNREACH, EHOSTDOWN,
        ENETDOWN,
    ]

    private func serve() throws(PluginError) {
        try connect()
        let own = try ownAddress()
        let before = note.client
        if !isReadOnly { try fence(before, but: own) }
        try openTheImage()
        guard let image = unsafe openImage else { throw PluginError(EIO, "librbd opened nothing") }
        try unsafe compare(image)
        try unsafe refuseCaches(image)
        let measured = unsafe measure(image)
        guard measured == 0 else { throw PluginError(system: "cannot ask how large \(name.text) is", -measured) }
        if !isReadOnly {
            let canLock = try unsafe freeLock(image, of: before)
            // From here on a successor has to fence this client.
            note.set(client: own)
            isNoted = true
            if canLock { try unsafe takeLock(image) }
        }
        unsafe followSize(of: image)
    }

    /// Looks that a guest gets the image that it had: another one may have its name by now.
    private func compare(_ image: rbd_image_t) throws(PluginError) {
        let found = try unsafe identity(of: image)
        if isAwaited, note.image != found {
            throw PluginError(
                ESTALE,
                note.image.map {
                    "\(name.location) is another image now (objects \(found)) than the one that the guest has (objects \($0))"
                }
                    ?? "nothing says which image was served as \(name.location): the cluster, or option run-dir, is another one"
            )
        }
        note.set(image: found)
    }

    private func followSize(of image: rbd_image_t) {
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
        closeImage()
        if let pool = unsafe pool { unsafe rados_ioctx_destroy(pool) }
        unsafe pool = nil
    }

    private func closeImage() {
        var isClosed = true
        if let image = unsafe openImage {
            if let watch { unsafe _ = rbd_update_unwatch(image, watch) }
            watch = nil
            isClosed = unsafe rbd_close(image) == 0
            unsafe openImage = nil
        }
        // Nothing of this client is on its way any more.
        if isClosed, isNoted {
            note.set(client: nil)
            isNoted = false
        }
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
}

extension RBDDevice: DrainingDisk {
    /// A pause promises that what was answered is durable.
    func beginDrain() throws(PluginError) {
        guard !isReadOnly, let image = unsafe openImage else { return }
        let code = unsafe rbd_flush(image)
        guard code == 0 else { throw PluginError(system: "\(name.text): flush", -code) }
    }

    func endDrain() {}
}
