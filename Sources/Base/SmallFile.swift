// SPDX-License-Identifier: BSD-2-Clause
// Small files and folders of the host's own, read whole.
import CLinux
import Glibc

/// A file that is read whole.
public enum SmallFile {
    /// Its first `limit` bytes; nil where there is no file or nothing in it.
    public static func contents(_ path: String, limit: Int) -> [UInt8]? {
        let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var bytes = [UInt8](repeating: 0, count: limit)
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe read(file, $0.baseAddress, $0.count) }
        return count > 0 ? Array(bytes[..<count]) : nil
    }

    /// Writes a file (0600) beside `path` and gives it that name: a reader sees the old content or all of the new.
    public static func replace(_ path: String, with bytes: [UInt8]) throws(OperationError) {
        let new = path + ".new"
        let flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW
        let file = try Descriptor(unsafe clinux_open(new, flags, 0o600), "make \(new)")
        let count = unsafe bytes.withUnsafeBytes { unsafe write(file.raw, $0.baseAddress, $0.count) }
        if count != bytes.count { throw OperationError(count < 0 ? errno : ENOSPC, "write \(new)") }
        if unsafe rename(new, path) != 0 { throw OperationError(errno, "rename \(new) to \(path)") }
    }
}

/// The names in a folder.
public enum DirectoryListing {
    /// Without "." and ".."; none where there is no folder.
    public static func names(in directory: String) -> [String] {
        guard let stream = unsafe opendir(directory) else { return [] }
        defer { unsafe closedir(stream) }
        var names: [String] = []
        while let entry = unsafe readdir(stream) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { field in
                unsafe field.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }
}
