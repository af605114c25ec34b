// SPDX-License-Identifier: BSD-2-Clause
// Reading an image file: the system calls and the pointers that they want, behind functions that check lengths.
import CLinux
import FileKit
import Glibc
import PluginKit

/// A file or block device that is only read, by several threads at once.
///
/// Reads go through the page cache: several guests share a base image, and metadata is not aligned as O_DIRECT wants it.
final class ImageFile: Sendable {
    let fd: Int32
    /// Bytes.
    let size: UInt64
    private let wasDirect: Bool

    /// The open file at `fd`, which stays the caller's and open as long as this object.
    init(fd: Int32) throws(PluginError) {
        let end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END)
        guard end >= 0 else {
            throw fd < 0 ? PluginError(EINVAL, "no file was given") : PluginError(system: "cannot examine the image")
        }
        self.fd = fd
        size = UInt64(end)
        wasDirect = DirectIO.isOn(fd: fd)
        guard DirectIO.set(fd: fd, on: false) else { throw PluginError(system: "cannot switch O_DIRECT off") }
    }

    /// Gives the descriptor back as it was.
    func finish() {
        if wasDirect { _ = DirectIO.set(fd: fd, on: true) }
    }

    /// A few bytes for `open()` and `inspect()`: as many as the file has of `count` at `offset`.
    func bytes(at offset: UInt64, count: Int) throws(PluginError) -> [UInt8] {
        guard offset < size, count > 0 else { return [] }
        let wanted = Int(min(UInt64(count), size - offset))
        var code: Int32 = 0
        let found = unsafe [UInt8](unsafeUninitializedCapacity: wanted) { buffer, filled in
            code = unsafe read(UnsafeMutableRawBufferPointer(buffer), at: offset)
            filled = code == 0 ? wanted : 0
        }
        guard code == 0 else { throw PluginError(system: "cannot read the image at offset \(offset)", -code) }
        return found
    }

    /// Those of `count` big-endian numbers of 8 bytes at `offset` that are not 0, with their indexes; for `open()`.
    func nonZeroWords(at offset: UInt64, count: Int) throws(PluginError) -> [(index: Int, word: UInt64)] {
        let found = try bytes(at: offset, count: count * 8)
        guard found.count == count * 8 else { throw PluginError(EIO, "the image was cut off while it was opened") }
        return unsafe found.withUnsafeBytes { raw in
            guard let base = raw.baseAddress else { return [] }
            // All bytes are like the first, and that is 0.
            if unsafe raw[0] == 0 && memcmp(base, base + 1, raw.count - 1) == 0 { return [] }
            return (0..<count).compactMap {
                let word = unsafe UInt64(bigEndian: raw.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self))
                return word == 0 ? nil : ($0, word)
            }
        }
    }

    /// Fills all of `buffer` from `offset`; any thread.
    ///
    /// - Returns: 0 or a negative errno, -EIO at the end of the file: nothing is made up.
    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
        guard offset <= size, UInt64(buffer.count) <= size - offset else { return -EIO }
        var done = 0
        while done < buffer.count {
            guard let base = buffer.baseAddress else { return -EIO }
            let moved = unsafe pread(fd, base + done, buffer.count - done, off_t(truncatingIfNeeded: offset) + done)
            if moved < 0 {
                let code = errno
                if code == EINTR { continue }
                return -code
            }
            // Somebody has cut the file off since it was opened.
            if moved == 0 { return -EIO }
            done += moved
        }
        return 0
    }
}
