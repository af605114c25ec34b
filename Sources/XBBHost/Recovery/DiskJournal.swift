// SPDX-License-Identifier: BSD-2-Clause
// Which journal the queues of a connection write: an earlier process's, a new one, or memory. docs/recovery.md explains
// the protocol.
import BlockQueue
import Base
import Glibc
import Support
import XenBus

/// The journal of a disk. Opened while files can still be opened; a disk is served without one, too. Control thread only.
final class DiskJournal {
    private let path: String?
    private let file: JournalFile?
    /// Why there is no file although there should be one.
    private let problem: String?
    private let log: Log
    /// What the queues write down now is in the file.
    private(set) var isKept = false
    /// Why a successor finds nothing of what the queues write down; nil: it does, or is not meant to.
    private(set) var missing: String?

    /// Opens or makes the file at `path`; nil for no file. `reserve` sizes it for a confined process.
    init(path: String?, reserve: JournalFile.Reservation?, log: Log) {
        self.path = path
        self.log = log
        guard let path else {
            (file, problem) = (nil, nil)
            return
        }
        do throws(OperationError) {
            (file, problem) = (try JournalFile(path: path, reserve: reserve), nil)
        } catch {
            (file, problem) = (nil, error.description)
            missing = problem
            log.error("\(error); if this process is killed, the guest loses its disk")
        }
    }

    /// Queues of the connection that an earlier process served, at most 64; 0 where there was none.
    var queueCount: Int { file?.queueCount ?? 0 }

    /// The process is about to be confined, and the disk is its own.
    func seal() { file?.seal() }

    /// Where each queue of a connection writes down what it does, and what it finds there. `isStorageKnown`: the images are
    /// known to be those that were served. `isExchanged`: xbbd has given the disk other images, so that it does not matter
    /// which were served; requests in flight are done on the new ones.
    func sources(
        _ connection: JournalConnection, _ origin: VBDMachine.RingOrigin, after predecessor: Predecessor,
        isStorageKnown: Bool, isExchanged: Bool
    ) throws(OperationError) -> [QueueJournalSource] {
        if origin == .inherited, isExchanged {
            file?.rename(connection)
        } else if origin == .inherited {
            // The guest goes on with what it has read, so nothing but the same images will do: also where nothing is in
            // flight, where the journal is of no use otherwise, and where the process before handed over.
            let isCompared = try file?.compareStorage(connection) ?? false
            if !isCompared && !isStorageKnown && !connection.storage.isEmpty {
                throw OperationError(
                    .journal,
                    "nothing says which image was served: neither \(BackendKey.storage) of the backend's node nor the "
                        + "journal")
            }
        }
        var inheritance = QueueJournalSource.Inheritance.nothing
        if origin == .inherited, path != nil {
            do throws(OperationError) {
                guard let file else { throw OperationError(.journal, problem ?? "there is none") }
                let mapping = try file.adopt(connection)
                isKept = true
                missing = nil
                return connection.rings.indices.map {
                    QueueJournalSource(mapping: mapping, index: $0, inheritance: .journal(predecessor))
                }
            } catch {
                // After a clean hand-over nothing is outstanding, so the ring alone is authoritative.
                if predecessor != .handedOver { inheritance = .unusable(error.description) }
                log.info("journal \(path ?? ""): \(error)")
            }
        }
        let mapping = try begin(connection)
        return connection.rings.indices.map {
            QueueJournalSource(mapping: mapping, index: $0, inheritance: inheritance)
        }
    }

    private func begin(_ connection: JournalConnection) throws(OperationError) -> JournalMapping {
        defer { KillPoint.reach(.journalBegun) }
        isKept = false
        if let file {
            do throws(OperationError) {
                let mapping = try file.begin(connection)
                isKept = true
                missing = nil
                return mapping
            } catch {
                missing = error.description
                log.error("\(error); if this process is killed, the guest loses its disk")
            }
        }
        guard let mapping = JournalMapping.anonymous(queues: connection.rings.count, entries: connection.entries) else {
            throw OperationError(ENOMEM, "reserve memory for \(connection.rings.count) queues")
        }
        return mapping
    }

    /// The connection is over; the next one tries to have a file again.
    func end() {
        isKept = false
        missing = problem
    }

    /// All queues have begun theirs: from here on a successor can go on with it.
    func complete() {
        file?.complete()
    }
}
