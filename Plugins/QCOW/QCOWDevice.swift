// SPDX-License-Identifier: BSD-2-Clause
// An open image: its layer, what lies below it, and its queues.
import FileKit
import Glibc
import ImageCore
import PluginKit
import QCOW2
import Synchronization

/// An image that is served read-only.
final class QCOWDevice: CountingDisk {
    private let host: HostDisk
    let file: ImageFile
    let image: QCOWImage
    let backing: BackingFile?
    let decryption: LibqcowFile?
    private let label: String
    private let cacheBytes: UInt64
    let counters = QCOWCounters()

    /// The most queues: threads of the host that read at once.
    private static let mostQueues = 16
    /// Memory that all handles of libqcow together may take for clusters.
    private static let handleMemory: UInt64 = 128 << 20

    init(_ opening: Opening) throws(PluginError) {
        guard opening.isReadOnly else {
            throw PluginError(
                EROFS,
                "QCOW images can only be read: attach the disk read-only, or convert the image to raw "
                    + "(qemu-img convert -O raw)")
        }
        cacheBytes = try opening[QCOWOption.cache]
        let isLocked = try opening[QCOWOption.lock]
        let file = try ImageFile(fd: opening.fd)
        do throws(PluginError) {
            if isLocked { try ImageLock.take(fd: file.fd, isReadOnly: true, isSuccessor: opening.isSuccessor) }
            let image = try examining { () throws(ImageError) in try QCOWImage(file) }
            // The configured format is believed, so the image must be of it.
            guard opening.format == image.header.format else {
                throw PluginError.invalid(
                    "the image is \(image.header.format) (version \(image.header.version)), and \(opening.format) was "
                        + "configured")
            }
            if let name = try Self.backingName(image.header, opening) {
                backing = try BackingFile(name, opening: opening, lock: isLocked)
            } else {
                backing = nil
            }
            decryption = try Self.decryption(file, image, opening)
            self.image = image
        } catch {
            file.finish()
            throw error
        }
        self.file = file
        host = opening.hostDisk
        label = opening.label
        report()
    }

    /// The backing file, with the format that the image or else the administrator gives; nil without one.
    private static func backingName(_ header: QCOWHeader, _ opening: Opening) throws(PluginError) -> ImageFileName? {
        guard let reference = header.references.first(where: { $0.kind == .backing }) else { return nil }
        let chosen = try opening[QCOWOption.backingFormat]
        return ImageFileName(reference, format: chosen == .none ? [] : Array(chosen.rawValue.utf8))
    }

    private static func decryption(
        _ file: ImageFile, _ image: QCOWImage, _ opening: Opening
    ) throws(PluginError) -> LibqcowFile? {
        guard image.isEncrypted else { return nil }
        let password = try opening[QCOWOption.password].text
        guard !password.isEmpty else {
            throw PluginError(EACCES, "the image is encrypted with AES: give its password in the option 'password'")
        }
        let each = LibqcowFile.cachedClusters * image.header.clusterSize
        let count = max(1, min(UInt64(mostQueues), handleMemory / each))
        return try LibqcowFile(
            fd: file.fd, password: password, hasBackingFile: image.header.backingName != nil, count: Int(count))
    }

    private func report() {
        let header = image.header
        if image.size != header.size {
            host.log(
                .warning,
                "the last \(header.size - image.size) bytes of the disk are not a whole sector and are left out")
        }
        if header.incompatible & QCOWHeader.Incompatible.dirty != 0 {
            host.log(.warning, "the image was not closed by its last writer; qemu-img check -r leaks tidies it")
        }
        if header.snapshotCount > 0 {
            host.log(.info, "the image has \(header.snapshotCount) internal snapshots; its present state is served")
        }
    }

    func close() {
        backing?.finish()
        file.finish()
    }

    var info: DiskInfo {
        var info = DiskInfo(size: image.size)
        info.physicalBlock = 4096
        info.optimalTransfer = UInt32(truncatingIfNeeded: image.header.clusterSize)
        // The host's threads share a sequential read then: one thread would inflate a long one alone.
        info.maxTransfer = max(image.header.clusterSize, 64 << 10)
        info.maxBuffers = 1024
        info.maxQueues = UInt32(Self.mostQueues)
        return info
    }

    func openQueue(_ parameters: QueueParameters) throws(PluginError) -> QCOWQueue {
        try QCOWQueue(self, parameters, cacheBytes: cacheBytes)
    }

    /// Says once in a while what cannot be read, and what that shows about the image.
    func report(_ fault: ReadFault, at offset: UInt64) {
        let count = counters.faults.wrappingAdd(1, ordering: .relaxed).newValue
        let place = "\(fault.cause) (offset \(fault.place) of the file)"
        host.log(
            .error,
            PluginError(system: "\(label): cannot read at offset \(offset) of the disk: \(place)", fault.code).message)
        if count == 1, fault.code == EIO { host.notify(.corrupt) }
    }

    var statistics: [(StaticString, UInt64)] {
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
