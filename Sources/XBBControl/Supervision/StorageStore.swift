// SPDX-License-Identifier: BSD-2-Clause
// Where the disks' open files are while xbbd is restarted: in the service manager's descriptor store (sd_notify(3),
// FDSTORE), with a file each in the run directory that says what they are.
import Base
import CLinux
import Glibc
import StorageKeeping
import Support

/// Copies of what xbbd keeps. Does nothing where there is no service manager.
final class StorageStore {
    private let manager: ServiceManager
    private let directory: RunDirectory
    private let log: Log
    /// What the manager has given back and nobody has asked for yet.
    private var restored: [String: [Descriptor]]

    init(_ manager: ServiceManager, _ directory: RunDirectory, _ log: Log) {
        self.manager = manager
        self.directory = directory
        self.log = log
        restored = manager.takeStored().filter { $0.key.hasPrefix(Self.prefix) }
    }

    private static let prefix = "storage-"

    private func name(_ address: VBDAddress) -> String { Self.prefix + address.fileName }

    /// Stores the files of a disk.
    func put(_ storage: KeptStorage, of address: VBDAddress) {
        guard manager.isPresent else { return }
        let path = directory.workerStorage(address)
        do throws(OperationError) {
            let identities = StorageIdentity.text(storage.identities)
            try SmallFile.replace(path, with: Array(identities.utf8) + [0] + storage.manifest)
        } catch {
            log.warning("\(error); \(address) is opened by name if xbbd and its worker die")
            return
        }
        manager.removeStored(name(address))
        manager.store(storage.images.map(\.file), as: name(address))
    }

    /// Forgets the files of a disk.
    func remove(_ address: VBDAddress) {
        guard manager.isPresent else { return }
        manager.removeStored(name(address))
        unsafe unlink(directory.workerStorage(address))
    }

    /// The files that an earlier xbbd has stored for a disk; nil if there are none, or if they are not what their
    /// description says.
    func take(_ address: VBDAddress) -> KeptStorage? {
        guard let files = restored.removeValue(forKey: name(address)) else { return nil }
        if let storage = describe(files, SmallFile.contents(directory.workerStorage(address), limit: 256 << 10)) {
            return storage
        }
        log.warning("\(address): the service manager's descriptors are not those of this disk, and are closed")
        remove(address)
        return nil
    }

    /// The manager does not say in which order the files were stored.
    private func describe(_ files: [Descriptor], _ text: [UInt8]?) -> KeptStorage? {
        guard let text, let end = text.firstIndex(of: 0) else { return nil }
        let names = String(decoding: text[..<end], as: UTF8.self).split(separator: " ")
        let ordered = names.compactMap { name in
            files.first { file in StorageIdentity(file: file.raw).map { StorageIdentity.text([$0]) == name } ?? false }
        }
        guard ordered.count == files.count else { return nil }
        return KeptStorage(manifest: text[(end + 1)...], files: ordered)
    }

    /// Closes what belongs to no disk that there is.
    func dropRest() {
        for name in restored.keys.sorted() {
            log.info("\(name) of the service manager's descriptor store belongs to no disk")
            manager.removeStored(name)
        }
        restored = [:]
    }
}
