// SPDX-License-Identifier: BSD-2-Clause
// O_DIRECT on a descriptor that somebody else opened: whether it is on, switching it, and what alignment it wants.
import CLinux
import Glibc

/// Direct I/O of one file descriptor.
public enum DirectIO {
    /// What direct requests must be multiples of, in bytes; powers of two.
    public struct Alignment: Equatable, Sendable {
        /// Address and length of each buffer.
        public let memory: UInt32
        /// Offset and length of a request.
        public let offset: UInt32
    }

    /// True if the open file description is in O_DIRECT mode: fcntl F_GETFL.
    public static func isOn(fd: Int32) -> Bool {
        let flags = clinux_fcntl_int(fd, F_GETFL, 0)
        return flags >= 0 && flags & clinux_O_DIRECT != 0
    }

    /// Switches O_DIRECT with fcntl F_SETFL, for everybody who shares the open file description.
    ///
    /// - Returns: false if the file cannot, with the reason in errno.
    public static func set(fd: Int32, on: Bool) -> Bool {
        let flags = clinux_fcntl_int(fd, F_GETFL, 0)
        guard flags >= 0 else { return false }
        let wanted = on ? flags | clinux_O_DIRECT : flags & ~clinux_O_DIRECT
        return wanted == flags || clinux_fcntl_int(fd, F_SETFL, wanted) == 0
    }

    /// The alignment that a descriptor in O_DIRECT mode wants: statx(2) where the kernel answers, else what a read of
    /// the first sectors shows.
    ///
    /// - Returns: nil if direct I/O does not work.
    public static func alignment(fd: Int32) -> Alignment? {
        var (memory, offset): (UInt32, UInt32) = (0, 0)
        switch unsafe clinux_direct_alignment(fd, &memory, &offset) {
        case 1 where memory & (memory &- 1) == 0 && offset & (offset &- 1) == 0:
            return Alignment(memory: memory, offset: offset)
        case 0:
            return nil
        default:
            return probe(fd: fd)
        }
    }

    /// Reads with 512 and 4096 bytes.  At the end of a short file a read gives less, which is no failure.
    private static func probe(fd: Int32) -> Alignment? {
        var memory: UnsafeMutableRawPointer?
        guard unsafe posix_memalign(&memory, 8192, 8192) == 0, let base = unsafe memory else { return nil }
        defer { unsafe free(base) }
        for step in [512, 4096] where unsafe pread(fd, base + step, step, off_t(step)) >= 0 {
            return Alignment(memory: UInt32(step), offset: UInt32(step))
        }
        return nil
    }
}
