// SPDX-License-Identifier: BSD-2-Clause
// Reading an image file: the system calls and the pointers that they want, behind functions that check lengths.
import CLinux
import FileKit
import Glibc
import ImageCore
import PluginKit
import Synchronization

/// A file or block device that is only read, by several threads at once.
///
/// Reads go through the page cache: several guests share a base image, and metadata is not aligned as O_DIRECT wants it.
final class ImageFile: ImageReader {
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

    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        unsafe buffer.withUnsafeMutableBytes { bytes in unsafe read(bytes, at: offset) }
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

/// The tables of an image, as a queue's map reads them: counted.
final class CountedTables: ImageReader {
    private let file: ImageFile
    private let counters: QCOWCounters

    init(_ file: ImageFile, _ counters: QCOWCounters) {
        self.file = file
        self.counters = counters
    }

    var size: UInt64 { file.size }

    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        counters.tableReads.wrappingAdd(1, ordering: .relaxed)
        return file.read(into: &buffer, at: offset)
    }
}

extension PluginError {
    /// The refusal of an image, with the system's words where it is one of the system.
    init(_ error: ImageError) {
        switch error.kind {
        case .unreadable(let code): self.init(system: error.message, code)
        default: self.init(error.code, error.message)
        }
    }
}

/// Runs what looks at an image.
func examining<Result>(_ body: () throws(ImageError) -> Result) throws(PluginError) -> Result {
    do throws(ImageError) {
        return try body()
    } catch {
        throw PluginError(error)
    }
}
