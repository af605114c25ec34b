// SPDX-License-Identifier: BSD-2-Clause
// A file that others read while it is written again and again.
import Base
import CLinux
import Glibc

/// A file that all may read (0644) and that is replaced as a whole.
public enum PublishedFile {
    /// Writes the file beside `path`, under a hidden name, and gives it that name: a reader sees the old content or all of the
    /// new. The folder may belong to somebody else: no link in it is followed.
    public static func replace(_ path: String, with bytes: [UInt8]) throws(ControlError) {
        do throws(OperationError) {
            try write(path, bytes)
        } catch {
            throw ControlError("\(error)")
        }
    }

    private static func write(_ path: String, _ bytes: [UInt8]) throws(OperationError) {
        let place = path.lastIndex(of: "/").map { path.index(after: $0) } ?? path.startIndex
        let new = "\(path[..<place]).\(path[place...]).\(getpid())"
        unsafe unlink(new)
        let flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW
        let file = try Descriptor(unsafe clinux_open(new, flags, 0o644), "make \(new)")
        do throws(OperationError) {
            // Whatever the umask is.
            if fchmod(file.raw, 0o644) != 0 { throw OperationError(errno, "set the mode of \(new)") }
            try write(bytes, to: file.raw, new)
            if unsafe rename(new, path) != 0 { throw OperationError(errno, "rename \(new) to \(path)") }
        } catch {
            unsafe unlink(new)
            throw error
        }
    }

    /// Writes all of it to standard output.
    public static func print(_ bytes: [UInt8]) throws(ControlError) {
        do throws(OperationError) {
            try write(bytes, to: 1, "standard output")
        } catch {
            throw ControlError("\(error)")
        }
    }

    private static func write(_ bytes: [UInt8], to file: Int32, _ name: String) throws(OperationError) {
        var left = bytes[...]
        while !left.isEmpty {
            // Within the closure the bytes are valid, and their number is passed on.
            let count = unsafe left.withUnsafeBytes { unsafe Glibc.write(file, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            if count <= 0 { throw OperationError(count < 0 ? errno : ENOSPC, "write \(name)") }
            left = left.dropFirst(count)
        }
    }
}
