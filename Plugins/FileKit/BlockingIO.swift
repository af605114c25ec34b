// SPDX-License-Identifier: BSD-2-Clause
// Reads, writes and flushes that sleep until they are done.  For helper threads only.
import CLinux
import Glibc
import PluginKit

/// System calls for one request, repeated until all of it is done or an error is certain.
public enum BlockingIO {
    /// Transfers a READ or WRITE, of which `done` bytes are there already, with preadv2(2) or pwritev2(2).
    ///
    /// A partial result is continued from its last `alignment` boundary, so that the error behind it (the end of the
    /// device, no space) comes to light.  No progress is -EIO: the rest of a buffer is never made up.
    ///
    /// - Returns: 0 or a negative errno.
    public static func transfer(
        fd: Int32, _ request: borrowing Request, done start: UInt64, alignment: UInt64
    ) -> Int32 {
        let length = request.length
        let mask = alignment &- 1
        var done = start & ~mask
        while done < length {
            let moved = once(fd: fd, request, skip: done)
            if moved < 0 {
                let code = errno
                if code == EINTR { continue }
                return -code
            }
            var next = done &+ UInt64(moved)
            if next < length { next &= ~mask }
            guard next > done else { return -EIO }
            done = next
        }
        return done == length ? 0 : -EIO
    }

    /// Makes everything durable that was written: fdatasync(2).
    ///
    /// - Returns: 0 or a negative errno.
    public static func sync(fd: Int32) -> Int32 {
        while fdatasync(fd) != 0 {
            let code = errno
            if code != EINTR { return -code }
        }
        return 0
    }

    /// Changes which blocks of a file there are: fallocate(2), begun again after signals.
    ///
    /// - Returns: 0 or a negative errno.
    public static func allocate(fd: Int32, mode: Int32, offset: UInt64, length: UInt64) -> Int32 {
        while fallocate(fd, mode, off_t(truncatingIfNeeded: offset), off_t(truncatingIfNeeded: length)) != 0 {
            let code = errno
            if code != EINTR { return -code }
        }
        return 0
    }

    /// Writes `length` zero bytes at `offset` from a buffer of zeroes, for storage that has no faster way.
    ///
    /// - Returns: 0 or a negative errno.
    public static func writeZeroes(fd: Int32, offset: UInt64, length: UInt64) -> Int32 {
        var position = offset
        let end = offset &+ length
        while position < end {
            let count = Int(min(end &- position, UInt64(zeroes.count)))
            let moved = unsafe pwrite(fd, zeroes.base, count, off_t(truncatingIfNeeded: position))
            if moved < 0 {
                let code = errno
                if code == EINTR { continue }
                return -code
            }
            // A direct write that ends off a sector cannot be continued.
            guard moved > 0, moved % 512 == 0 || moved == count else { return -EIO }
            position &+= UInt64(moved)
        }
        return 0
    }

    /// Page-aligned zeroes of which nothing is ever written, so they cost one page table and no memory.
    private static let zeroes = ZeroBuffer()

    private static func once(fd: Int32, _ request: borrowing Request, skip: UInt64) -> Int {
        var (index, rest) = (0, skip)
        // The system calls take the buffers as the host gave them.
        let vectors = unsafe request.vectors
        let count = vectors.count
        guard let parts = vectors.baseAddress else { return 0 }
        while index < count, unsafe rest >= UInt64(parts[index].iov_len) {
            unsafe rest -= UInt64(parts[index].iov_len)
            index += 1
        }
        guard index < count else { return 0 }
        let isWrite = request.operation == .write
        let flags = isWrite && request.isForced ? clinux_RWF_DSYNC : 0
        let offset = off_t(truncatingIfNeeded: request.offset &+ skip)
        if rest > 0 {
            var part = unsafe parts[index]
            unsafe part.iov_base = unsafe part.iov_base?.advanced(by: Int(rest))
            unsafe part.iov_len -= Int(rest)
            return unsafe isWrite ? pwritev2(fd, &part, 1, offset, flags) : preadv2(fd, &part, 1, offset, flags)
        }
        let some = Int32(min(count - index, 1024))
        return unsafe isWrite
            ? pwritev2(fd, parts + index, some, offset, flags) : preadv2(fd, parts + index, some, offset, flags)
    }
}

/// One MiB of zeroes.
///
/// `@unchecked Sendable`: nothing is ever written there.
@safe
private struct ZeroBuffer: @unchecked Sendable {
    let count: Int
    let base: UnsafeMutableRawPointer?

    init() {
        let wanted = 1 << 20
        unsafe base = unsafe clinux_mmap(nil, wanted, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        unsafe count = base == nil ? 0 : wanted
    }
}
