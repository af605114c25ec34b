// SPDX-License-Identifier: BSD-2-Clause
// The file in the run directory that outlives the process.
import BlockQueue
import Base
import CLinux
import Glibc
import Memory

/// An open journal. Opened and mapped before the process is confined, sized when a frontend connects; control thread.
///
/// A confined process has no descriptor of it, but only what it has mapped: with a descriptor it could fill the file system of
/// all disks' journals. Then `reserve` asks the keeper for the size, who gives no more than ``JournalLayout/mostBytes``.
final class JournalFile {
    /// Empties the file but for its first page, and makes it so many bytes long.
    typealias Reservation = (_ bytes: Int) throws(OperationError) -> Void

    let path: String
    /// nil in a confined process.
    private var descriptor: Descriptor?
    /// All that a journal can be. Only what the file has can be touched.
    private let whole: JournalMapping
    private var mapping: JournalMapping?
    private let reservation: Reservation?
    /// Bytes of the file, once there is no descriptor any more.
    private var knownSize = 0

    /// Opens or makes the file. `reserve` sizes it when this process has no descriptor any more.
    init(path: String, reserve: Reservation? = nil) throws(OperationError) {
        self.path = path
        reservation = reserve
        // The call reads the path as C text, which Swift keeps for it.
        let file = try Descriptor(
            unsafe clinux_open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600), "open journal \(path)")
        guard let whole = JournalMapping.map(file.raw, byteCount: JournalLayout.mostBytes, entries: 0) else {
            throw OperationError(errno, "map journal \(path)")
        }
        self.whole = whole
        descriptor = file
    }

    /// Gives the descriptor up, if the file can be sized without it. No other process sizes the file any more.
    func seal() {
        guard reservation != nil else { return }
        knownSize = size
        descriptor = nil
    }

    /// Queues of the connection that the file is of, for what must be had before it is read; at most 64.
    var queueCount: Int {
        guard let pages = firstPage, pages.load64(at: JournalLayout.magicOffset) == JournalLayout.magic else {
            return 0
        }
        return min(Int(pages.load(at: JournalLayout.queueCountOffset)), JournalLayout.mostQueues)
    }

    /// Throws if the file says that other images were served than those of `connection`; false if it names none.
    @discardableResult
    func compareStorage(_ connection: JournalConnection) throws(OperationError) -> Bool {
        guard let pages = firstPage else { return false }
        return try connection.compareStorage(with: pages)
    }

    /// Says that the images of `connection` are those that are served, whichever were before.
    func rename(_ connection: JournalConnection) {
        guard let pages = firstPage, pages.load64(at: JournalLayout.magicOffset) == JournalLayout.magic,
            pages.load(at: JournalLayout.versionOffset) == JournalLayout.version
        else { return }
        connection.rename(in: pages)
    }

    /// nil where the file is shorter.
    private var firstPage: SharedPages? {
        guard size >= JournalLayout.pageSize else { return nil }
        return whole.beginning(byteCount: JournalLayout.pageSize, entries: 0)?.pages
    }

    private var size: Int {
        guard let descriptor else { return knownSize }
        var status = stat()
        // The kernel fills the structure, which is ours.
        return unsafe fstat(descriptor.raw, &status) == 0 ? Int(status.st_size) : 0
    }

    private func reserve(_ bytes: Int) throws(OperationError) {
        if let descriptor {
            let code = clinux_reserve_file(descriptor.raw, UInt64(JournalLayout.pageSize), UInt64(bytes))
            if code != 0 { throw OperationError(code, "reserve \(bytes) bytes for journal \(path)") }
            return
        }
        // What is left if it fails: nothing behind the first page is relied on then.
        knownSize = min(knownSize, JournalLayout.pageSize)
        do throws(OperationError) {
            try reservation?(bytes)
        } catch {
            throw OperationError(error.code, "reserve \(bytes) bytes for journal \(path)")
        }
        knownSize = bytes
    }

    /// What an earlier process wrote, if it is of this connection.
    func adopt(_ connection: JournalConnection) throws(OperationError) -> JournalMapping {
        let size = size
        guard size >= JournalLayout.pageSize else { throw OperationError(.journal, "it is empty or cut off") }
        guard size <= JournalLayout.mostBytes else { throw OperationError(.journal, "it is too long") }
        guard let mapping = whole.beginning(byteCount: size, entries: connection.entries) else {
            throw OperationError(.journal, "it cannot be mapped")
        }
        try connection.compare(with: mapping.pages)
        self.mapping = mapping
        return mapping
    }

    /// Begins anew for a connection; what was there is gone. Not complete before ``complete()``.
    ///
    /// The first page stays until it is written anew, so that at no moment it is unknown which images were served.
    func begin(_ connection: JournalConnection) throws(OperationError) -> JournalMapping {
        mapping = nil
        let bytes = JournalLayout.fileSize(queues: connection.rings.count, entries: connection.entries)
        if let pages = firstPage {
            // The old page becomes the new one before anything can fail.
            pages.storeRelease(0, at: JournalLayout.stateOffset)
            connection.writeFirstPage(to: pages)
        }
        // All of its blocks are had now: a full file system must not become a fault when the memory is written.
        try reserve(bytes)
        guard let made = whole.beginning(byteCount: bytes, entries: connection.entries) else {
            throw OperationError(.journal, "the connection is larger than any that journal \(path) can be of")
        }
        connection.write(to: made.pages)
        mapping = made
        return made
    }

    /// All queues have begun theirs: from here on a successor can go on with it.
    func complete() {
        mapping?.pages.storeRelease(1, at: JournalLayout.stateOffset)
    }
}
