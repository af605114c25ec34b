// SPDX-License-Identifier: BSD-2-Clause
// Bytes in memory that are moved to and from requests, for disks and caches in memory.
import Glibc
import PluginAPI

/// Memory that reads as zeroes until it is written; pages exist once they are touched.
///
/// It is used with `Request.read(from:)`, `write(to:)` and `zero(in:)`. Queues are on several threads: put it in a `Mutex`.
@safe
public struct DiskMemory: ~Copyable, @unchecked Sendable {
    /// Bytes.
    public let size: UInt64
    let base: UnsafeMutableRawPointer

    /// `size` bytes; an error if there is no room for them, where an array would end the process.
    public init(size: UInt64) throws(PluginError) {
        guard size > 0, let count = Int(exactly: size) else { throw .invalid("a disk in memory of \(size) bytes") }
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        let place = unsafe mmap(nil, count, PROT_READ | PROT_WRITE, flags, -1, 0)
        guard let place = unsafe place, unsafe place != MAP_FAILED else {
            throw PluginError(system: "no memory for the disk")
        }
        self.size = size
        unsafe base = unsafe place
    }

    deinit { unsafe _ = munmap(base, Int(size)) }
}
