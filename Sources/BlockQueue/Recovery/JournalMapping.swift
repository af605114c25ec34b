// SPDX-License-Identifier: BSD-2-Clause
// Memory of a journal: of a file that outlives the process, or of nothing that does.
import CLinux
import Glibc
import Memory

/// Mapped memory of a journal: of its file, or of nothing that outlives the process.
///
/// Unchecked, because it has a pointer: that and the size are constant, and the bytes are reached by ``SharedPages`` alone.
@safe
package final class JournalMapping: @unchecked Sendable {
    package let pages: SharedPages
    private let base: UnsafeMutableRawPointer
    private let entries: Int
    /// The mapping that this one is the beginning of, and that is unmapped with it.
    private let whole: JournalMapping?

    private init(_ base: UnsafeMutableRawPointer, byteCount: Int, entries: Int, of whole: JournalMapping? = nil) {
        unsafe self.base = unsafe base
        self.entries = entries
        self.whole = whole
        pages = unsafe SharedPages(base: base, byteCount: byteCount)
    }

    /// Maps `byteCount` bytes of a file; nil where the kernel refuses.
    package static func map(_ descriptor: Int32, byteCount: Int, entries: Int) -> JournalMapping? {
        guard byteCount > 0,
            let base = unsafe clinux_mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        else { return nil }
        return unsafe JournalMapping(base, byteCount: byteCount, entries: entries)
    }

    /// The first bytes of the mapping, at most all of them, as a journal of queues with `entries` slots. Bytes behind the end
    /// of the file must not be touched.
    package func beginning(byteCount: Int, entries: Int) -> JournalMapping? {
        guard byteCount > 0, byteCount <= pages.byteCount else { return nil }
        return unsafe JournalMapping(base, byteCount: byteCount, entries: entries, of: self)
    }

    /// Memory that ends with the process, for a disk without a journal: the way of a request is one and the same.
    package static func anonymous(queues: Int, entries: Int) -> JournalMapping? {
        let bytes = JournalLayout.fileSize(queues: queues, entries: entries)
        let flags = MAP_PRIVATE | MAP_ANONYMOUS
        guard let base = unsafe clinux_mmap(nil, bytes, PROT_READ | PROT_WRITE, flags, -1, 0) else { return nil }
        return unsafe JournalMapping(base, byteCount: bytes, entries: entries)
    }

    deinit {
        if whole == nil { unsafe munmap(base, pages.byteCount) }
    }

    /// The part of a queue, which must be one of those that the mapping was made for.
    func queue(_ index: Int) -> SharedPages {
        let size = JournalLayout.queueSize(entries: entries)
        let offset = JournalLayout.pageSize + index * size
        precondition(index >= 0 && offset <= pages.byteCount - size)
        return unsafe SharedPages(base: base + offset, byteCount: size)
    }
}
