// SPDX-License-Identifier: BSD-2-Clause
// Checks that the dynamic linker can be given a file. It maps a library without looking at the file's length: for a
// plugin that was copied only in part, the process would end with SIGBUS instead of an error.
import Base
import CLinux
import Glibc

/// Checks of a file that should be a shared library.
enum PluginFile {
    private static let headerBytes = 64
    private static let programHeaderBytes = 56
    private static let loadable: UInt64 = 1

    /// Throws if the file is not 64-bit ELF, or is too short for what would be mapped of it. dlopen() checks everything
    /// else.
    static func check(_ path: String) throws(OperationError) {
        func failure(_ what: String) -> OperationError {
            OperationError(.incompatible, "cannot load plugin \(path): \(what); install it again")
        }
        let file = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0)
        guard file >= 0 else { throw failure(errnoText(errno)) }
        defer { close(file) }
        var status = stat()
        guard unsafe fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw failure("it is no file")
        }
        let length = UInt64(max(status.st_size, 0))
        guard let header = read(file, headerBytes, at: 0),
            header.starts(with: [0x7f, UInt8(ascii: "E"), UInt8(ascii: "L"), UInt8(ascii: "F"), 2, 1])
        else { throw failure("it is no shared library") }
        let table = number(header, 32, 8)
        let count = number(header, 56, 2)
        guard number(header, 54, 2) == UInt64(programHeaderBytes), table <= UInt64(Int64.max / 2),
            let entries = read(file, Int(count) * programHeaderBytes, at: off_t(table))
        else { throw failure("it is cut off, its \(length) bytes end before its program headers") }
        for start in stride(from: 0, to: entries.count, by: programHeaderBytes)
        where number(entries, start, 4) == loadable {
            let (end, overflow) = number(entries, start + 8, 8).addingReportingOverflow(number(entries, start + 32, 8))
            guard !overflow, end <= length else {
                throw failure("it is cut off, \(length) bytes of at least \(end) are there")
            }
        }
    }

    /// `count` bytes at an offset; nil if there are fewer.
    private static func read(_ file: Int32, _ count: Int, at offset: off_t) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: count)
        let got = unsafe bytes.withUnsafeMutableBytes { unsafe pread(file, $0.baseAddress, $0.count, offset) }
        return got == count ? bytes : nil
    }

    /// A little-endian number of `size` bytes, which must lie within `bytes`.
    private static func number(_ bytes: [UInt8], _ offset: Int, _ size: Int) -> UInt64 {
        bytes[offset..<offset + size].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
}
