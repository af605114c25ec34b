// SPDX-License-Identifier: BSD-2-Clause
// Bytes in memory that are moved to and from requests, for disks and caches in memory.
import Glibc
import PluginAPI

/// Memory that reads as zeroes until it is written; pages exist once they are touched.
///
/// It is used with `Request.read(from:)`, `write(to:)` and `zero(in:)`. Queues are on several threads: put it in a `Mutex`.
///
/// `@unchecked Sendable`: it has one owner, and whoever has it may be any thread.
@safe
public struct DiskMemory: ~Copyable, @unchecked Sendable {
    /// Bytes.
    public let size: UInt64
    let base: UnsafeMutableRawPointer
    /// The bytes are a file's.
    private let isKept: Bool

    /// `size` bytes; an error if there is no room for them, where an array would end the process. With `file` they are those
    /// of the file at that path, so that they outlive the process; it grows to `size`.
    public init(size: UInt64, keptIn file: String? = nil) throws(PluginError) {
        guard size > 0, let count = Int(exactly: size) else { throw .invalid("a disk in memory of \(size) bytes") }
        var fd: Int32 = -1
        if let file {
            fd = unsafe open(file, O_RDWR | O_CLOEXEC)
            var status = stat()
            guard fd >= 0, unsafe fstat(fd, &status) == 0,
                status.st_size >= off_t(count) || ftruncate(fd, off_t(count)) == 0
            else {
                let failure = PluginError(system: "cannot keep the disk in \(file)")
                if fd >= 0 { close(fd) }
                throw failure
            }
        }
        let flags = file != nil ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        let place = unsafe mmap(nil, count, PROT_READ | PROT_WRITE, flags, fd, 0)
        if fd >= 0 { close(fd) }
        guard let place = unsafe place, unsafe place != MAP_FAILED else {
            throw PluginError(system: "no memory for the disk")
        }
        self.size = size
        isKept = file != nil
        unsafe base = unsafe place
    }

    deinit { unsafe _ = munmap(base, Int(size)) }

    /// Fills a range, which lies within, with zeroes. Whole pages go back to the system, which is the way to zeroes without
    /// touching them; of a file they would come again as they were.
    mutating func zero(_ offset: Int, _ length: Int) {
        let page = 4096
        let end = offset + length
        let first = min((offset + page - 1) & ~(page - 1), end)
        let last = max(end & ~(page - 1), first)
        unsafe memset(base + offset, 0, first - offset)
        if last > first, unsafe isKept || madvise(base + first, last - first, MADV_DONTNEED) != 0 {
            unsafe memset(base + first, 0, last - first)
        }
        unsafe memset(base + last, 0, end - last)
    }
}
