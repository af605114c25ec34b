// SPDX-License-Identifier: BSD-2-Clause
// How much of the kernel's asynchronous I/O a disk takes. All processes of the machine share it: fs.aio-max-nr.
import CLinux
import Glibc
import PluginKit

/// The room for requests in the kernel, which a disk takes when it is opened, and not when a guest connects: a guest's ring
/// may be large, and the room is everybody's.
package enum AsynchronousRoom {
    /// The most requests of a queue that are in the kernel at once. More of them make no disk faster; the host keeps the rest
    /// in order until there is room.
    package static let depth = 128
    /// Threads of a disk that the kernel has no room for.
    package static let threadCount = 8

    /// Takes the room of one queue, for the first that opens. False where the system has none left: the disk is served by
    /// threads then.
    ///
    /// The host is told that, and by the one disk that passes the mark that four fifths of the system's room are in use.
    package static func reserve(for host: HostDisk) -> Bool {
        let (used, most) = (number("aio-nr"), number("aio-max-nr"))
        let code = KernelContexts.reserve(depth: depth)
        if code != 0 {
            host.log(.warning, refusal(code))
            return false
        }
        guard let used, let most, let now = number("aio-nr") else { return true }
        let mark = most / 5 * 4
        if used < mark, now >= mark {
            host.log(
                .warning,
                "\(now) of the \(most) asynchronous requests that this system has room for are taken: further disks will "
                    + "be served by threads, which are slower; raise the sysctl fs.aio-max-nr")
        }
        return true
    }

    /// What the host is told of a disk or a queue that gets no room.
    package static func refusal(_ code: Int32) -> String {
        let reason =
            if code == EAGAIN, let most = number("aio-max-nr") {
                "all of the system's room for asynchronous requests, \(most), is taken (sysctl fs.aio-max-nr)"
            } else {
                "the kernel gives no room for asynchronous requests (io_setup: error \(code))"
            }
        return "\(reason): served by threads, which are slower"
    }

    /// A number of /proc/sys/fs; nil where it cannot be read, as in a confined process.
    private static func number(_ name: String) -> UInt64? {
        let fd = unsafe clinux_open("/proc/sys/fs/\(name)", O_RDONLY | O_CLOEXEC, 0)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        var bytes = [UInt8](repeating: 0, count: 32)
        // Within the closure the buffer is valid, and its size is passed on.
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe read(fd, $0.baseAddress, $0.count) }
        guard count > 0 else { return nil }
        return UInt64(String(decoding: bytes[..<count].prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self))
    }
}
