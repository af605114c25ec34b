// SPDX-License-Identifier: BSD-2-Clause
// Where the disks' open files are while xbbd is restarted: in the service manager's descriptor store (sd_notify(3),
// FDSTORE), or in the workers that go on. A file each in the run directory says what they are.
import Base
import CLinux
import Glibc
import StorageKeeping
import Support

/// Copies of what xbbd keeps.
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
        let path = directory.workerStorage(address)
        do throws(OperationError) {
            let identities = StorageIdentity.text(storage.identities)
            try SmallFile.replace(path, with: Array(identities.utf8) + [0] + storage.manifest)
        } catch {
            log.warning("\(error); \(address) is opened by name if xbbd and its worker die")
            return
        }
        guard manager.isPresent else { return }
        manager.removeStored(name(address))
        manager.store(storage.files, as: name(address))
    }

    /// Forgets the files of a disk.
    func remove(_ address: VBDAddress) {
        if manager.isPresent { manager.removeStored(name(address)) }
        unsafe unlink(directory.workerStorage(address))
    }

    /// The files that an earlier xbbd has stored for a disk; nil if there are none, or if they are not what their
    /// description says.
    func take(_ address: VBDAddress) -> KeptStorage? {
        guard let files = restored.removeValue(forKey: name(address)) else { return nil }
        if let description = description(address), let storage = description.storage(files),
            storage.files.count == files.count
        {
            return storage
        }
        log.warning("\(address): the service manager's descriptors are not those of this disk, and are closed")
        remove(address)
        return nil
    }

    /// The same of a worker that an earlier xbbd has started and that goes on: out of the worker itself (pidfd_getfd(2)). nil
    /// where the system does not allow it.
    ///
    /// What the worker has is not believed: the files must be those of the description, which xbbd alone writes.
    func take(_ address: VBDAddress, from worker: WorkerProcess) -> KeptStorage? {
        guard let description = description(address) else { return nil }
        var files: [Descriptor] = []
        for number in DirectoryListing.names(in: "/proc/\(worker.process)/fdinfo").compactMap({ Int32($0) }).sorted() {
            let text = SmallFile.contents("/proc/\(worker.process)/fdinfo/\(number)", limit: 4096) ?? []
            guard description.mayBe(String(decoding: text, as: UTF8.self)) else { continue }
            let raw = clinux_pidfd_getfd(worker.pidfd.raw, number)
            if raw >= 0 { files.append(Descriptor(owning: raw)) }
        }
        return description.storage(outOf: files)
    }

    private func description(_ address: VBDAddress) -> StorageDescription? {
        SmallFile.contents(directory.workerStorage(address), limit: 256 << 10).flatMap { StorageDescription($0) }
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

/// What stands in the run directory of a disk's files: their identities, and their formats and paths.
private struct StorageDescription {
    private let identities: [Substring]
    private let manifest: ArraySlice<UInt8>

    init?(_ text: [UInt8]) {
        guard let end = text.firstIndex(of: 0) else { return nil }
        identities = String(decoding: text[..<end], as: UTF8.self).split(separator: " ")
        manifest = text[(end + 1)...]
    }

    /// False if an open file is none of these, by what proc_pid_fdinfo(5) says: that does not touch the file, which may be on
    /// a server that does not answer.
    func mayBe(_ information: String) -> Bool {
        // A device's number does not stand there.
        if identities.contains(where: { $0.hasPrefix("0:") }) { return true }
        let numbers = identities.compactMap { $0.split(separator: ":").last }
        return information.split(separator: "\n").contains { line in
            line.hasPrefix("ino:") && line.split(separator: "\t").last.map(numbers.contains) == true
        }
    }

    /// The storage, if all of it is among `files`, in any order, and nothing else is. A file may be open twice, once only to be read: what
    /// requests go to is open for writing where anything is, and the other one is its witness.
    func storage(_ files: [Descriptor]) -> KeptStorage? {
        let writable = files.filter(Self.isWritable)
        let readable = files.filter { !Self.isWritable($0) }
        return storage(served: writable + readable, witnesses: readable)
    }

    /// The same out of all that a worker has open. Its plugin may have opened an image once more by itself, in whatever order: what
    /// requests go to has the lock, and witnesses say that they are that. A plugin's claim of a device that were kept as one would
    /// keep all successors out.
    func storage(outOf files: [Descriptor]) -> KeptStorage? {
        let writable = files.filter(Self.isWritable)
        let locked = writable.filter(Self.isLocked)
        return storage(
            served: locked + writable + files.filter { !Self.isWritable($0) },
            witnesses: files.filter(KeptStorage.Image.isWitness))
    }

    private func storage(served files: [Descriptor], witnesses: [Descriptor]) -> KeptStorage? {
        let names = files.map { file in StorageIdentity(file: file.raw).map { StorageIdentity.text([$0]) } }
        let ordered = identities.compactMap { identity in
            names.firstIndex { $0.map { $0 == identity } ?? false }.map { files[$0] }
        }
        return KeptStorage(manifest: manifest, files: ordered)?.witnessed(by: witnesses)
    }

    private static func isWritable(_ file: Descriptor) -> Bool {
        clinux_fcntl_int(file.raw, F_GETFL, 0) & O_ACCMODE != O_RDONLY
    }

    /// An open file's own locks (F_OFD_SETLK) stand among what the kernel says of it.
    private static func isLocked(_ file: Descriptor) -> Bool {
        let text = SmallFile.contents("/proc/self/fdinfo/\(file.raw)", limit: 4096) ?? []
        return String(decoding: text, as: UTF8.self).contains("\nlock:")
    }
}
