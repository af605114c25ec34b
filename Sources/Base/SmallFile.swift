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
