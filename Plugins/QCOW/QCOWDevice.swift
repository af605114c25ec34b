// SPDX-License-Identifier: BSD-2-Clause
// An open image: its layer, what lies below it, and its queues.
import FileKit
import Glibc
import PluginAPI
import PluginKit
import Synchronization

/// An image that is served read-only.
@safe
final class QCOWDevice: @unchecked Sendable {
    let host: PluginHost
    let disk: OpaquePointer?
    let layer: QCOWLayer
    let backing: BackingFile?
    let decryption: LibqcowFile?
    private let label: String
    private let cacheBytes: UInt64
    private let isLocked: Bool
    private let queueCount: Int
    let counters = QCOWCounters()

    /// The most queues: threads of the host that read at once.
    static let mostQueues = 16
    /// Memory that all handles of libqcow together may take for clusters.
    private static let handleMemory: UInt64 = 128 << 20

    init(host: PluginHost, opening: Opening) throws(PluginError) {
        guard opening.isReadOnly else {
            throw PluginError(
                EROFS,
                "QCOW images can only be read: attach the disk read-only, or convert the image to raw "
                    + "(qemu-img convert -O raw)")
        }
        cacheBytes = try opening[QCOWOption.cache]
        isLocked = try opening[QCOWOption.lock]
        let file = try ImageFile(fd: opening.fd)
        var cleanUp: [() -> Void] = [{ file.finish() }]
        do throws(PluginError) {
            if isLocked {
                try ImageLock.take(fd: file.fd, isReadOnly: true)
                cleanUp.append { ImageLock.release(fd: file.fd) }
            }
            let layer = try QCOWLayer(file)
            try Self.compare(opening.format, layer.header.version)
            if let reference = try ImageReference(backingOf: layer.header, opening: opening) {
                backing = try unsafe BackingFile(reference, host: host, disk: opening.disk, lock: isLocked)
            } else {
                backing = nil
            }
            decryption = try Self.decryption(layer, opening)
            self.layer = layer
        } catch {
            for step in cleanUp.reversed() { step() }
            throw error
        }
        self.host = host
        unsafe disk = opening.disk
        label = opening.label
        queueCount = Self.mostQueues
        report()
    }

    /// The configured format is believed, so the image must be of it.
    private static func compare(_ format: String, _ version: UInt32) throws(PluginError) {
        let actual = version == 1 ? "qcow" : "qcow2"
        guard format == actual else {
            throw PluginError(EINVAL, "the image is \(actual) (version \(version)), and \(format) was configured")
        }
    }

    private static func decryption(_ layer: QCOWLayer, _ opening: Opening) throws(PluginError) -> LibqcowFile? {
        guard layer.isEncrypted else { return nil }
        let password = try opening[QCOWOption.password].text
        guard !password.isEmpty else {
            throw PluginError(EACCES, "the image is encrypted with AES: give its password in the option 'password'")
        }
        let each = LibqcowFile.cachedClusters * layer.header.clusterSize
        let count = max(1, min(UInt64(mostQueues), handleMemory / each))
        return try LibqcowFile(
            fd: layer.file.fd, password: password, hasBackingFile: layer.header.backingName != nil, count: Int(count))
    }

    private func report() {
        if layer.size != layer.header.size {
            unsafe host.log(
                .warning, disk: disk,
                "the last \(layer.header.size - layer.size) bytes of the disk are not a whole sector and are left out")
        }
        if layer.header.incompatible & QCOWHeader.Incompatible.dirty != 0 {
            unsafe host.log(
                .warning, disk: disk, "the image was not closed by its last writer; qemu-img check -r leaks tidies it")
        }
        if layer.header.snapshotCount > 0 {
            unsafe host.log(
                .info, disk: disk,
                "the image has \(layer.header.snapshotCount) internal snapshots; its present state is served")
        }
    }

    /// All queues are closed.
    func close() {
        backing?.finish()
        if isLocked { ImageLock.release(fd: layer.file.fd) }
        layer.file.finish()
    }

    func describe(_ info: inout xbb_info) {
        info.size = layer.size
        info.logical_block = 512
        info.physical_block = 4096
        info.optimal_io = UInt32(truncatingIfNeeded: layer.header.clusterSize)
        // The host's threads share a sequential read then: one thread would inflate a long one alone.
        info.max_transfer = max(layer.header.clusterSize, 64 << 10)
        info.max_iov = 1024
        info.max_queues = UInt32(queueCount)
    }

    /// Makes a queue; any thread.
    func openQueue(_ handle: OpaquePointer, index: UInt32) -> QCOWQueue {
        unsafe QCOWQueue(self, handle: handle, number: Int(index), cacheBytes: cacheBytes)
    }

    /// Says once in a while what cannot be read, and what that shows about the image.
    func report(_ fault: ReadFault, at offset: UInt64) {
        let count = counters.faults.wrappingAdd(1, ordering: .relaxed).newValue
        let words = unsafe strerror(fault.code).map { unsafe String(cString: $0) } ?? "error \(fault.code)"
        unsafe host.log(
            .error, disk: disk,
            "\(label): cannot read at offset \(offset) of the disk: \(fault.cause) (offset \(fault.place) of the file): "
                + words)
        if count == 1, fault.code == EIO { unsafe host.notify(disk: disk, XBB_NOTIFY_CORRUPT) }
    }

    /// Sums over all queues that there ever were.
    func statistics() -> [(StaticString, UInt64)] {
        [
            ("table-reads", counters.tableReads.load(ordering: .relaxed)),
            ("inflated-clusters", counters.inflated.load(ordering: .relaxed)),
            ("backing-reads", counters.backingReads.load(ordering: .relaxed)),
            ("read-faults", counters.faults.load(ordering: .relaxed)),
        ]
    }
}

/// What the queues of a disk did.  None of it happens for a request whose cluster is stored as it is and in the map.
final class QCOWCounters: Sendable {
    /// Pieces of tables that were read from the file.
    let tableReads = Atomic<UInt64>(0)
    /// Clusters that were inflated.
    let inflated = Atomic<UInt64>(0)
    /// Reads of the backing file.
    let backingReads = Atomic<UInt64>(0)
    /// Requests that failed.
    let faults = Atomic<UInt64>(0)
}
