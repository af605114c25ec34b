// SPDX-License-Identifier: BSD-2-Clause
// The open files of the disks, which outlive their workers here and, by way of the service manager, xbbd.
import Base
import Glibc
import StorageKeeping
import Support

extension Supervisor {
    /// Follows the channel of the process that has become the worker.
    func listen(to channel: StorageChannel?, _ record: Record) {
        if let old = record.storageChannel { loop.remove(old.socket.raw) }
        record.storageChannel = channel
        // It need not leave what it was given.
        record.storageOrigin = record.storage == nil ? .nobody : .earlierWorker
        guard let channel else { return }
        do throws(OperationError) {
            try loop.add(channel.socket.raw) { [unowned self, unowned record] in take(from: channel, record) }
        } catch {
            log(record.address).warning("\(record.address): its storage is not kept for a successor: \(error)")
        }
    }

    private func take(from channel: StorageChannel, _ record: Record) {
        guard channel === record.storageChannel else { return }
        switch channel.receive() {
        case .nothing: break
        case .message(.keep(let storage)) where mayKeep(storage, record):
            record.storageOrigin = .worker
            record.storage = storage
            record.images = storage.images.map { ServedImage(path: $0.path, identity: $0.identity) }
            storageStore?.put(storage, of: record.address)
            log(record.address).debug(
                "\(record.address): \(storage.identities.count) open files are kept for a successor")
        case .message(.release):
            letStorageGo(record)
            if record.storageOrigin == .earlierWorker { record.storageOrigin = .nobody }
            channel.send(.released)
        case .message, .invalid:
            log(record.address).warning("\(record.address): the worker broke the rules of its channel for storage")
            stopListening(record)
        case .ended: stopListening(record)
        }
    }

    /// Once from each worker, which sends before it is confined. Files of images stay those of the first worker; what a plugin keeps
    /// of a disk without a file is new with each.
    private func mayKeep(_ storage: KeptStorage, _ record: Record) -> Bool {
        switch record.storageOrigin {
        case .nobody: true
        case .earlierWorker: storage.images.isEmpty && record.storage?.images.isEmpty != false
        case .worker: false
        }
    }

    /// Gets the files of a worker that an earlier xbbd has started, if the service manager did not have them.
    func takeStorage(from process: WorkerProcess, _ record: Record) {
        guard record.storage == nil, let storage = storageStore?.take(record.address, from: process) else { return }
        record.storage = storage
        storageStore?.put(storage, of: record.address)
        log(record.address).debug(
            "\(record.address): \(storage.identities.count) open files were taken from the worker")
    }

    private func stopListening(_ record: Record) {
        guard let channel = record.storageChannel else { return }
        loop.remove(channel.socket.raw)
        record.storageChannel = nil
    }

    /// Closes the files of a disk that is over, or that is closed by its worker.
    func letStorageGo(_ record: Record) {
        guard record.storage != nil else { return }
        record.storage = nil
        storageStore?.remove(record.address)
    }
}
