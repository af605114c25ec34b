// SPDX-License-Identifier: BSD-2-Clause
// The statistics of a disk in a file of the run directory, where a successor of the process finds them.
//
// Nothing in the file is trusted: the process before may have been corrupted. What is damaged counts as zero; no number
// in it is used as a size or an index before it was compared.
import Base
import CLinux
import CRing
import Glibc
import Memory

/// Statistics of a disk's queues and what `xbbctl set` changed. Control thread only, but for the cells of the queues.
///
/// A fence for unsafe memory: a mapping that is as long as the file can become and is used only as far as the file
/// reaches. Unchecked, because it has a pointer, which is constant.
@safe
package final class StatisticsArea: @unchecked Sendable {
    private let path: String
    /// -1 once it is sealed.
    private var descriptor: Int32
    /// Bytes that a sealed file has.
    private var sealedSize = 0
    private let base: UnsafeMutableRawPointer
    private let pages: SharedPages
    /// Of queues that have cells; 0 also before ``adopt(identity:)`` or ``begin(identity:)``.
    package private(set) var queueCount = 0
    private var isReady = false

    /// Opens or makes the file; nothing in it is looked at.
    package init(path: String) throws(OperationError) {
        self.path = path
        // The call reads the path as C text, which Swift keeps for it.
        let file = unsafe clinux_open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        if file < 0 { throw OperationError(errno, "open \(path)") }
        let bytes = StatisticsLayout.fileSize(queues: StatisticsLayout.mostQueues)
        guard let mapped = unsafe clinux_mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) else {
            let code = errno
            close(file)
            throw OperationError(code, "map \(path)")
        }
        descriptor = file
        unsafe base = unsafe mapped
        pages = unsafe SharedPages(base: mapped, byteCount: bytes)
    }

    deinit {
        unsafe munmap(base, StatisticsLayout.fileSize(queues: StatisticsLayout.mostQueues))
        if descriptor >= 0 { close(descriptor) }
    }

    /// Reserves what `queues` queues need and closes the file, which stays mapped: a process that was taken over cannot fill the
    /// file system with it. Before the process is confined. Where the space cannot be had, nothing is kept.
    package func seal(queues: Int) throws(OperationError) {
        guard descriptor >= 0 else { return }
        let wanted = StatisticsLayout.fileSize(queues: min(max(queues, 1), StatisticsLayout.mostQueues))
        try reserve(max(wanted, StatisticsLayout.pageSize))
        sealedSize = size
        close(descriptor)
        descriptor = -1
    }

    private var size: Int {
        if descriptor < 0 { return sealedSize }
        var status = stat()
        // The kernel fills the structure, which is ours.
        return unsafe fstat(descriptor, &status) == 0 ? Int(status.st_size) : 0
    }

    private func reserve(_ bytes: Int) throws(OperationError) {
        if descriptor < 0 {
            if bytes <= sealedSize { return }
            throw OperationError(ENOSPC, "reserve \(bytes) bytes for \(path)")
        }
        // All of its blocks are had now: a full file system must not become a fault when the memory is written.
        let code = posix_fallocate(descriptor, 0, off_t(bytes))
        if code != 0 { throw OperationError(code, "reserve \(bytes) bytes for \(path)") }
    }

    // MARK: Beginning

    /// Goes on with what an earlier process of the same disk left. Throws why that cannot be, and nothing is changed then.
    package func adopt(identity: UInt64) throws(OperationError) {
        func refuse(_ why: String) -> OperationError { OperationError(.journal, "statistics in \(path): \(why)") }
        guard size >= StatisticsLayout.pageSize else { throw refuse("there are none") }
        guard pages.load64(at: StatisticsLayout.magicOffset) == StatisticsLayout.magic,
            pages.load(at: StatisticsLayout.versionOffset) == StatisticsLayout.version
        else { throw refuse("they are of another version, or none") }
        guard pages.load64(at: StatisticsLayout.identityOffset) == identity else {
            throw refuse("they are of another disk")
        }
        let count = pages.load(at: StatisticsLayout.queueCountOffset)
        guard pages.load(at: StatisticsLayout.stateOffset) == 1, count <= UInt32(StatisticsLayout.mostQueues),
            size >= StatisticsLayout.fileSize(queues: Int(count))
        else { throw refuse("they are incomplete") }
        let queues = Int(count)
        try reserve(StatisticsLayout.fileSize(queues: queues))
        let names = text(at: StatisticsLayout.namesOffset, atMost: StatisticsLayout.namesSize)
        for queue in 0..<queues where !hasPossibleCells(queue) { throw refuse("they are damaged") }
        if names != Self.names {
            // A version with other counters wrote them. Whoever is killed in between leaves nothing that counts.
            pages.storeRelease(0, at: StatisticsLayout.stateOffset)
            for queue in 0..<queues { translate(queue, names.split(separator: "\n").map(String.init)) }
            store(Self.names, at: StatisticsLayout.namesOffset, atMost: StatisticsLayout.namesSize)
            pages.storeRelease(1, at: StatisticsLayout.stateOffset)
        }
        for queue in 0..<queues { forgetInFlight(queue) }
        queueCount = queues
        isReady = true
    }

    /// Begins at zero.
    package func begin(identity: UInt64) throws(OperationError) {
        isReady = false
        queueCount = 0
        if size >= StatisticsLayout.pageSize { pages.storeRelease(0, at: StatisticsLayout.stateOffset) }
        if descriptor < 0 {
            // The mapping is as long as that at least.
            unsafe _ = memset(base, 0, min(sealedSize, StatisticsLayout.fileSize(queues: StatisticsLayout.mostQueues)))
        } else if ftruncate(descriptor, 0) != 0 {
            throw OperationError(errno, "empty \(path)")
        }
        try reserve(StatisticsLayout.pageSize)
        pages.store64(StatisticsLayout.magic, at: StatisticsLayout.magicOffset)
        pages.store(StatisticsLayout.version, at: StatisticsLayout.versionOffset)
        pages.store64(identity, at: StatisticsLayout.identityOffset)
        store(Self.names, at: StatisticsLayout.namesOffset, atMost: StatisticsLayout.namesSize)
        pages.storeRelease(1, at: StatisticsLayout.stateOffset)
        isReady = true
    }

    /// The disk is over: nobody goes on with these.
    package func end() {
        if isReady { pages.storeRelease(0, at: StatisticsLayout.stateOffset) }
    }

    /// The statistics of a queue, new ones where it has none yet; in memory of the process where the file cannot have them.
    package func queue(_ index: Int) -> QueueStatistics {
        guard isReady, index >= 0, index < StatisticsLayout.mostQueues else { return QueueStatistics() }
        if index >= queueCount {
            do throws(OperationError) {
                try reserve(StatisticsLayout.fileSize(queues: index + 1))
            } catch {
                return QueueStatistics()
            }
            queueCount = index + 1
            pages.storeRelease(UInt32(queueCount), at: StatisticsLayout.queueCountOffset)
        }
        return unsafe QueueStatistics(cells(index), of: self)
    }

    // MARK: Cells

    private static let names = QueueCounter.allCases.map { "\($0)\n" }.joined()

    private func cells(_ queue: Int) -> UnsafeMutablePointer<UInt64> {
        precondition(queue >= 0 && queue < StatisticsLayout.mostQueues)
        let offset = StatisticsLayout.pageSize + queue * StatisticsLayout.queueBytes
        return unsafe (base + offset).assumingMemoryBound(to: UInt64.self)
    }

    /// No counter that counts for years comes to 2^56. Sums of times, and what stands behind the counters, may be any number.
    private func hasPossibleCells(_ queue: Int) -> Bool {
        let cells = unsafe cells(queue)
        for cell in 0..<StatisticsLayout.lastErrorCell where unsafe cring_load64_relaxed(cells + cell) >> 56 != 0 {
            guard let counter = QueueCounter(rawValue: cell), counter.isSum else { return false }
        }
        return true
    }

    /// Puts counters that are called `names` where those of the same names are now.
    private func translate(_ queue: Int, _ names: [String]) {
        let cells = unsafe cells(queue)
        var values: [String: UInt64] = [:]
        for (cell, name) in names.prefix(StatisticsLayout.counterCells).enumerated() {
            values[name] = unsafe cring_load64_relaxed(cells + cell)
        }
        for cell in 0..<StatisticsLayout.counterCells { unsafe cring_store64_relaxed(cells + cell, 0) }
        for counter in QueueCounter.allCases {
            unsafe cring_store64_relaxed(cells + counter.rawValue, values["\(counter)"] ?? 0)
        }
    }

    /// Requests that were on their way are counted once more when they are done again.
    private func forgetInFlight(_ queue: Int) {
        let cells = unsafe cells(queue)
        let completed = unsafe cring_load64_relaxed(cells + QueueCounter.reqs_completed.rawValue)
        for counter in [QueueCounter.reqs_received, .reqs_queued_for_completion] {
            unsafe cring_store64_relaxed(cells + counter.rawValue, completed)
        }
    }

    // MARK: What xbbctl changed

    /// Names and values as ``store(changes:)`` got them; whoever uses them checks them.
    package var changes: [(name: String, value: String)] {
        guard isReady else { return [] }
        let current = Int(pages.load(at: StatisticsLayout.currentChangesOffset) & 1)
        let size = StatisticsLayout.changesSize
        let text = text(at: StatisticsLayout.changesOffset + current * size, atMost: size)
        return text.split(separator: "\n").compactMap { line in
            let parts = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            return parts.count == 2 ? (parts[0], parts[1]) : nil
        }
    }

    /// Notes what was changed: small names and values without '=' and line feeds. A process that is killed meanwhile
    /// leaves what was noted before.
    package func store(changes: [(name: String, value: String)]) {
        guard isReady else { return }
        let next = pages.load(at: StatisticsLayout.currentChangesOffset) & 1 ^ 1
        let size = StatisticsLayout.changesSize
        let text = changes.map { "\($0.name)=\($0.value)\n" }.joined()
        store(text, at: StatisticsLayout.changesOffset + Int(next) * size, atMost: size)
        pages.storeRelease(next, at: StatisticsLayout.currentChangesOffset)
    }

    // MARK: Limits

    /// What ``DiskLimiter/debtUntil(now:)`` said when the last process let go of a frontend; any number.
    package var limitDebt: UInt64 { isReady ? pages.load64(at: StatisticsLayout.limitDebtOffset) : 0 }

    /// Notes it for a successor.
    package func store(limitDebt moment: UInt64) {
        if isReady { pages.store64(moment, at: StatisticsLayout.limitDebtOffset) }
    }

    // MARK: Text

    /// A copy of a text of the first page; as much as `limit` bytes with its length hold.
    private func text(at offset: Int, atMost limit: Int) -> String {
        precondition(offset >= 0 && limit >= 4 && offset + limit <= StatisticsLayout.pageSize)
        let count = Int(min(pages.load(at: offset), UInt32(limit - 4)))
        let bytes = unsafe [UInt8](UnsafeRawBufferPointer(start: base + offset + 4, count: count))
        return String(decoding: bytes, as: UTF8.self)
    }

    private func store(_ text: String, at offset: Int, atMost limit: Int) {
        precondition(offset >= 0 && limit >= 4 && offset + limit <= StatisticsLayout.pageSize)
        let bytes = Array(text.utf8.prefix(limit - 4))
        unsafe bytes.withUnsafeBytes { source in
            guard let start = source.baseAddress else { return }
            unsafe (base + offset + 4).copyMemory(from: start, byteCount: source.count)
        }
        pages.storeRelease(UInt32(bytes.count), at: offset)
    }
}
