// SPDX-License-Identifier: BSD-2-Clause
// The file in the run directory that outlives the process.
import BlockQueue
import Base
import CLinux
import Glibc
import Memory

/// An open journal. Opened before the process is confined, sized and mapped when a frontend connects; control thread.
final class JournalFile {
    let path: String
    private let descriptor: Int32
    private var mapping: JournalMapping?
    /// The first page, while there is no ``mapping``.
    private var view: JournalMapping?

    /// Opens or makes the file.
    init(path: String) throws(OperationError) {
        self.path = path
        // The call reads the path as C text, which Swift keeps for it.
        descriptor = unsafe clinux_open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        if descriptor < 0 { throw OperationError(errno, "open journal \(path)") }
    }

    deinit {
        close(descriptor)
    }

    /// Queues of the connection that the file is of, for what must be had before it is read; at most 64.
    var queueCount: Int {
        guard let first = JournalMapping.map(descriptor, byteCount: JournalLayout.pageSize, entries: 0),
            size >= JournalLayout.pageSize, first.pages.load64(at: JournalLayout.magicOffset) == JournalLayout.magic
        else { return 0 }
        return min(Int(first.pages.load(at: JournalLayout.queueCountOffset)), JournalLayout.mostQueues)
    }

    /// Throws if the file says that other images were served than those of `connection`; false if it names none.
    func compareStorage(_ connection: JournalConnection) throws(OperationError) -> Bool {
        guard size >= JournalLayout.pageSize,
            let first = JournalMapping.map(descriptor, byteCount: JournalLayout.pageSize, entries: 0)
        else { return false }
        return try connection.compareStorage(with: first.pages)
    }

    private var size: Int {
        var status = stat()
        // The kernel fills the structure, which is ours.
        return unsafe fstat(descriptor, &status) == 0 ? Int(status.st_size) : 0
    }

    /// What an earlier process wrote, if it is of this connection.
    func adopt(_ connection: JournalConnection) throws(OperationError) -> JournalMapping {
        let size = size
        guard size >= JournalLayout.pageSize else { throw OperationError(.journal, "it is empty or cut off") }
        guard size <= JournalLayout.fileSize(queues: JournalLayout.mostQueues, entries: JournalLayout.mostEntries)
        else { throw OperationError(.journal, "it is too long") }
        guard let mapping = JournalMapping.map(descriptor, byteCount: size, entries: connection.entries) else {
            throw OperationError(.journal, "it cannot be mapped", .errno(errno))
        }
        try connection.compare(with: mapping.pages)
        // Before the first request is taken: what is in flight from here on was not handed over.
        mapping.pages.storeRelease(0, at: JournalLayout.handOverProcessOffset)
        self.mapping = mapping
        return mapping
    }

    /// Begins anew for a connection; what was there is gone. Not complete before ``complete()``.
    ///
    /// The first page stays until it is written anew, so that at no moment it is unknown which images were served.
    func begin(_ connection: JournalConnection) throws(OperationError) -> JournalMapping {
        mapping = nil
        let bytes = JournalLayout.fileSize(queues: connection.rings.count, entries: connection.entries)
        if size >= JournalLayout.pageSize {
            // The old page becomes the new one before anything can fail.
            let first = JournalMapping.map(descriptor, byteCount: JournalLayout.pageSize, entries: 0)
            first?.pages.storeRelease(0, at: JournalLayout.stateOffset)
            if let first { connection.writeFirstPage(to: first.pages) }
        }
        if ftruncate(descriptor, off_t(min(size, JournalLayout.pageSize))) != 0 {
            throw OperationError(errno, "empty journal \(path)")
        }
        // All of its blocks are had now: a full file system must not become a fault when the memory is written.
        let code = posix_fallocate(descriptor, 0, off_t(bytes))
        if code != 0 {
            throw OperationError(code, "reserve \(bytes) bytes for journal \(path)")
        }
        guard let made = JournalMapping.map(descriptor, byteCount: bytes, entries: connection.entries) else {
            throw OperationError(errno, "map journal \(path)")
        }
        connection.write(to: made.pages)
        mapping = made
        return made
    }

    /// Writes down that `process` has nothing in flight any more. Stores in this order: the time, then the number, which
    /// decides.
    func noteHandOver(of process: ServingProcess) {
        guard let pages = firstPage else { return }
        pages.store64(process.startTicks, at: JournalLayout.handOverStartOffset)
        pages.storeRelease(process.process, at: JournalLayout.handOverProcessOffset)
    }

    /// The last process that served is `process`, and it has left nothing in flight.
    func hasHandedOver(_ process: ServingProcess) -> Bool {
        guard let pages = firstPage else { return false }
        return pages.loadAcquire(at: JournalLayout.handOverProcessOffset) == process.process
            && pages.load64(at: JournalLayout.handOverStartOffset) == process.startTicks
    }

    /// nil where no journal was begun yet.
    private var firstPage: SharedPages? {
        if let mapping { return mapping.pages }
        guard size >= JournalLayout.pageSize,
            let first = JournalMapping.map(descriptor, byteCount: JournalLayout.pageSize, entries: 0),
            first.pages.load64(at: JournalLayout.magicOffset) == JournalLayout.magic
        else { return nil }
        view = first
        return first.pages
    }

    /// All queues have begun theirs: from here on a successor can go on with it.
    func complete() {
        mapping?.pages.storeRelease(1, at: JournalLayout.stateOffset)
    }
}
