// SPDX-License-Identifier: BSD-2-Clause
// The file of an image: system calls, and the pointers that they want, behind functions that check lengths.
import CLinux
import FileKit
import Glibc
import ImageCore
import ImageWriting
import PluginKit
import Synchronization

/// A file or block device that is read, and may be written, by several threads at once.
///
/// Metadata and everything that is only read go through the page cache: several guests share a base image, and metadata is
/// not aligned as O_DIRECT wants it. The data of a disk that is written may go by O_DIRECT: then there are two open files, and
/// no page is ever reached by both at the same time, because a page belongs to one cluster.
package final class ImageFile: ImageStorage {
    /// For data.
    package let fd: Int32
    /// For metadata; the same one without O_DIRECT, and where metadata are whole sectors.
    private let metadataFD: Int32
    /// Metadata go through memory that is aligned for O_DIRECT.
    private let isAligning: Bool
    /// Data are read and written past the page cache.
    package let isDirect: Bool
    /// A device, whose size stays.
    package let isGrowable: Bool
    private let knownSize: KnownSize
    private let wasDirect: Bool

    /// How data reach the file.
    package enum Access {
        /// Through the page cache.
        case cached
        /// Past it, where the file can, and metadata through it: no page may have both.
        case direct
        /// Past it, where the file can, with metadata: they are read and written in whole sectors of 512 bytes.
        case directSectors
    }

    /// The open file at `fd`, which stays the caller's and open as long as this object.
    package init(fd: Int32, access: Access = .cached) throws(PluginError) {
        // The position is nobody's but ImageMark's, and stays.
        let position = lseek(fd, 0, SEEK_CUR)
        let end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END)
        if position >= 0 { _ = lseek(fd, position, SEEK_SET) }
        guard end >= 0 else {
            throw fd < 0 ? PluginError(EINVAL, "no file was given") : PluginError(system: "cannot examine the image")
        }
        var status = stat()
        guard unsafe fstat(fd, &status) == 0 else { throw PluginError(system: "cannot examine the image") }
        self.fd = fd
        knownSize = KnownSize(UInt64(end))
        isGrowable = status.st_mode & S_IFMT == S_IFREG
        wasDirect = DirectIO.isOn(fd: fd)
        if access != .cached, DirectIO.set(fd: fd, on: true), let alignment = DirectIO.alignment(fd: fd),
            alignment.memory <= 512, alignment.offset <= 512
        {
            if access == .directSectors {
                (metadataFD, isDirect, isAligning) = (fd, true, true)
                return
            }
            // A second open file of the same inode, for which no name is needed.
            let second = unsafe clinux_open("/proc/self/fd/\(fd)", O_RDWR | O_CLOEXEC, 0)
            if second >= 0 {
                (metadataFD, isDirect, isAligning) = (second, true, false)
                // What the kernel would read ahead of a table are data.
                _ = posix_fadvise(second, 0, 0, POSIX_FADV_RANDOM)
                return
            }
        }
        (metadataFD, isDirect, isAligning) = (fd, false, false)
        guard DirectIO.set(fd: fd, on: false) else { throw PluginError(system: "cannot switch O_DIRECT off") }
    }

    /// Seconds since 1970 of the last change; 0 where they cannot be told.
    package var modificationTime: Int64 {
        var status = stat()
        return unsafe fstat(fd, &status) == 0 ? Int64(status.st_mtim.tv_sec) : 0
    }

    /// Gives the descriptor back as it was.
    package func finish() {
        if metadataFD != fd { close(metadataFD) }
        if wasDirect != isDirect { _ = DirectIO.set(fd: fd, on: wasDirect) }
    }

    // MARK: ImageReader

    /// Bytes.
    package var size: UInt64 { knownSize.bytes }

    package func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        unsafe buffer.withUnsafeMutableBytes { bytes in unsafe read(bytes, at: offset) }
    }

    /// Fills all of `buffer` from `offset`; any thread.
    ///
    /// - Returns: 0 or a negative errno, -EIO at the end of the file: nothing is made up.
    package func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
        unsafe isAligning ? readSectors(buffer, at: offset) : read(buffer, at: offset, from: metadataFD)
    }

    /// Reads the sectors that have the bytes of `buffer`, of which the last may be cut off by the end of the file.
    private func readSectors(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
        guard offset <= size, UInt64(buffer.count) <= size - offset else { return -EIO }
        guard let bounce = Bounce(min(buffer.count + 1024, 1 << 20) & ~511) else { return -ENOMEM }
        var done = 0
        while done < buffer.count {
            let place = offset + UInt64(done)
            let skip = Int(place & 511)
            let count = min(buffer.count - done, bounce.count - skip)
            let code = bounce.with(0..<bounce.count) { memory in
                unsafe memory.withUnsafeMutableBytes { bytes -> Int32 in
                    let sectors = (skip + count + 511) & ~511
                    var there = 0
                    while there < skip + count {
                        guard let base = bytes.baseAddress else { return -EIO }
                        let moved = unsafe pread(
                            fd, base + there, sectors - there, off_t(truncatingIfNeeded: place) - skip + there)
                        if moved < 0, errno == EINTR { continue }
                        if moved <= 0 { return moved < 0 ? -errno : -EIO }
                        there += moved
                        // What the end cuts off within a sector cannot be continued.
                        if there & 511 != 0, there < skip + count { return -EIO }
                    }
                    let target = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
                    unsafe target.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[skip..<skip + count]))
                    return 0
                }
            }
            if code != 0 { return code }
            done += count
        }
        return 0
    }

    package func readData(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        unsafe buffer.withUnsafeMutableBytes { bytes in unsafe read(bytes, at: offset, from: fd) }
    }

    private func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64, from fd: Int32) -> Int32 {
        transfer(buffer.count, at: offset) { done, place in
            guard let base = buffer.baseAddress else { return 0 }
            return unsafe pread(fd, base + done, buffer.count - done, place)
        }
    }

    /// Repeats a system call until all of `count` bytes are done, which stand in the file: 0 or a negative errno. `move` gets the
    /// bytes that are done and the place of the next one, and says how many more there are. Nothing is written behind the end:
    /// the engine makes the file longer first.
    private func transfer(_ count: Int, at offset: UInt64, _ move: (_ done: Int, _ place: off_t) -> Int) -> Int32 {
        guard offset <= size, UInt64(count) <= size - offset else { return -EIO }
        var done = 0
        while done < count {
            let moved = move(done, off_t(truncatingIfNeeded: offset) + done)
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

    // MARK: ImageStorage

    package func write(_ bytes: RawSpan, at offset: UInt64) -> Int32 {
        isAligning ? aligned(bytes) { write($0, at: offset, to: fd) } : write(bytes, at: offset, to: metadataFD)
    }
    package func writeData(_ bytes: RawSpan, at offset: UInt64) -> Int32 { write(bytes, at: offset, to: fd) }

    private func write(_ bytes: RawSpan, at offset: UInt64, to fd: Int32) -> Int32 {
        unsafe bytes.withUnsafeBytes { buffer in
            transfer(buffer.count, at: offset) { done, place in
                guard let base = buffer.baseAddress else { return 0 }
                return unsafe pwrite(fd, base + done, buffer.count - done, place)
            }
        }
    }

    /// Lets `body` have the same bytes in memory that O_DIRECT can use.
    private func aligned(_ bytes: RawSpan, _ body: (RawSpan) -> Int32) -> Int32 {
        guard let bounce = Bounce(bytes.byteCount) else { return -ENOMEM }
        bounce.with(0..<bounce.count) { memory in
            unsafe memory.withUnsafeMutableBytes { target in
                unsafe bytes.withUnsafeBytes { unsafe target.copyMemory(from: $0) }
            }
        }
        return bounce.reading(0..<bounce.count, body)
    }

    package var cutOffSize: UInt64? {
        guard isGrowable else { return nil }
        return knownSize.cutOff {
            var status = stat()
            return unsafe fstat(metadataFD, &status) == 0 ? UInt64(clamping: status.st_size) : nil
        }
    }

    /// In one step, so that no process finds the file without its last bytes.
    package func extend(_ bytes: RawSpan, at offset: UInt64) -> Int32 {
        guard isGrowable, offset >= size, offset < UInt64(off_t.max) - UInt64(bytes.byteCount) else { return -EFBIG }
        let before = size
        return knownSize.change { set in
            set(offset + UInt64(bytes.byteCount))
            let code = write(bytes, at: offset)
            if code != 0 { _ = resize(to: before, set) }
            return code
        }
    }

    package func sync() -> Int32 { BlockingIO.sync(fd: metadataFD) }

    package func zero(_ offset: UInt64, _ length: UInt64) -> Int32 {
        let punched = change(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
        if punched != -EOPNOTSUPP { return punched }
        let zeroed = change(FALLOC_FL_ZERO_RANGE | (isGrowable ? FALLOC_FL_KEEP_SIZE : 0), offset, length)
        return zeroed == -EOPNOTSUPP ? BlockingIO.writeZeroes(fd: metadataFD, offset: offset, length: length) : zeroed
    }

    private func change(_ mode: Int32, _ offset: UInt64, _ length: UInt64) -> Int32 {
        BlockingIO.allocate(fd: metadataFD, mode: mode, offset: offset, length: length)
    }

    package func setSize(_ size: UInt64) -> Int32 {
        guard isGrowable, size <= UInt64(off_t.max) else { return -EFBIG }
        return knownSize.change { set in resize(to: size, set) }
    }

    private func resize(to size: UInt64, _ set: (UInt64) -> Void) -> Int32 {
        // What the size promises is there.
        let before = self.size
        if size < before { set(size) }
        while ftruncate(metadataFD, off_t(size)) != 0 {
            let code = errno
            if code == EINTR { continue }
            set(before)
            return -code
        }
        set(size)
        return 0
    }
}

extension PluginError {
    /// The refusal of an image, with the system's words where it is one of the system.
    package init(_ error: ImageError) {
        switch error.kind {
        case .unreadable(let code): self.init(system: error.message, code)
        default: self.init(error.code, error.message)
        }
    }
}

/// Runs what looks at an image.
package func examining<Result>(_ body: () throws(ImageError) -> Result) throws(PluginError) -> Result {
    do throws(ImageError) {
        return try body()
    } catch {
        throw PluginError(error)
    }
}
