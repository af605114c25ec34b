// SPDX-License-Identifier: BSD-2-Clause
// An open image file: how it is accessed, its size, and how blocks of it are given back or zeroed.
import CLinux
import FileKit
import Glibc
import PluginKit

/// A raw image in a regular file.
///
/// `@unchecked Sendable`: as its base, and what it adds never changes.
final class FileDevice: DescriptorDisk, ResizableDisk, MappedDisk, @unchecked Sendable {
    private let logicalBlock: UInt64
    private let memoryAlignment: UInt32
    private let preferredBlock: UInt32
    private let canPunch: Bool
    /// O_DIRECT was switched by us, so `finish()` sets it back.
    private let changedDirect: Bool

    init(_ opening: Opening) throws(PluginError) {
        let status = try FileDevice.checkedStatus(opening)
        let (direct, threads) = (try opening[FileOption.direct], Int(clamping: try opening[FileOption.threads]))
        let discards = try opening[FileOption.discard]
        if try opening[FileOption.lock] {
            try ImageLock.take(fd: opening.fd, isReadOnly: opening.isReadOnly, isSuccessor: opening.isSuccessor)
        }
        let wasDirect = DirectIO.isOn(fd: opening.fd)
        let alignment = try FileDevice.chooseAccess(direct, opening)
        changedDirect = DirectIO.isOn(fd: opening.fd) != wasDirect
        logicalBlock = UInt64(max(alignment?.offset ?? 512, 512))
        memoryAlignment = alignment?.memory ?? 1
        preferredBlock = UInt32(truncatingIfNeeded: status.st_blksize)
        canPunch =
            !opening.isReadOnly && discards
            && FileDevice.canPunch(opening.fd, behind: status.st_size)

        let size = UInt64(status.st_size) & ~(logicalBlock - 1)
        // With asynchronous I/O the threads only discard, zero and finish partial transfers.
        super.init(
            opening: opening, isAsynchronous: alignment != nil, blockSize: logicalBlock, byteCount: size,
            threadCount: alignment != nil ? min(threads, 2) : threads)
        guard size > 0 else {
            finish()
            throw PluginError(EINVAL, "the image is smaller than one sector of \(logicalBlock) bytes")
        }
        if size != UInt64(status.st_size) {
            host.log(
                .warning,
                "the last \(UInt64(status.st_size) - size) bytes of the image are not a whole sector and are left out")
        }
        host.log(.debug, alignment != nil ? "direct, asynchronous I/O" : "page cache, \(threads) threads")
    }

    // MARK: Opening

    private static func checkedStatus(_ opening: Opening) throws(PluginError) -> stat {
        guard opening.fd >= 0 else { throw PluginError(EINVAL, "no file was given") }
        var status = stat()
        guard unsafe fstat(opening.fd, &status) == 0 else { throw PluginError(system: "cannot examine the image") }
        switch status.st_mode & S_IFMT {
        case S_IFREG: break
        case S_IFDIR: throw PluginError(EISDIR, "the image is a directory; give the file in it")
        case S_IFBLK: throw PluginError(EINVAL, "this is a block device; use the plugin rawdisk for it")
        default: throw PluginError(EINVAL, "the image is not a regular file")
        }
        guard status.st_size > 0 else {
            throw PluginError(EINVAL, "the image is empty; give it its size first (truncate -s, qemu-img create)")
        }
        let flags = clinux_fcntl_int(opening.fd, F_GETFL, 0)
        guard flags >= 0, flags & O_APPEND == 0 else {
            throw PluginError(EINVAL, "the image was opened in append mode")
        }
        guard opening.isReadOnly || flags & O_ACCMODE == O_RDWR else {
            throw PluginError(EACCES, "the image was opened read-only; attach the disk read-only or allow writing")
        }
        return status
    }

    /// Puts the descriptor in the mode that `choice` asks for; the alignment of direct I/O, or nil for the page cache.
    private static func chooseAccess(
        _ choice: DirectChoice, _ opening: Opening
    ) throws(PluginError) -> DirectIO.Alignment? {
        let fd = opening.fd
        // Whether O_DIRECT does harm on this storage is the host's to know; the option overrules it.
        if choice == .on || choice == .auto && DirectIO.isOn(fd: fd) {
            if DirectIO.set(fd: fd, on: true), let alignment = DirectIO.alignment(fd: fd) {
                // A disk of 512-byte sectors stays one, also on storage of 4096: partition tables depend on it.
                if alignment.offset <= 512 || choice == .on, alignment.offset <= 4096 { return alignment }
                opening.hostDisk.log(
                    .info,
                    "direct I/O would need \(alignment.offset)-byte sectors: using the page cache (direct=on forces)")
            }
            if choice == .on {
                throw PluginError(EINVAL, "this file system has no usable direct I/O; use direct=auto or direct=off")
            }
        }
        guard DirectIO.set(fd: fd, on: false) else { throw PluginError(system: "cannot switch O_DIRECT off") }
        return nil
    }

    /// Asks for a hole behind the end of the file, which changes nothing.
    private static func canPunch(_ fd: Int32, behind size: off_t) -> Bool {
        let (offset, overflow) = (size | 0xf_ffff).addingReportingOverflow(1)
        return !overflow && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, 4096) == 0
    }

    override func finish() {
        if changedDirect { _ = DirectIO.set(fd: fd, on: !DirectIO.isOn(fd: fd)) }
    }

    // MARK: Description

    override func measureSize() -> UInt64? {
        var status = stat()
        guard unsafe fstat(fd, &status) == 0, status.st_size >= 0 else { return nil }
        return UInt64(status.st_size) & ~(logicalBlock - 1)
    }

    override func describe(_ info: inout DiskInfo) {
        // Without FUA: a write that is a sync of its own would be told an error of writing back that is another's.
        info.capabilities = [.write, .flush, .writeZeroes]
        if canPunch { info.capabilities.formUnion([.discard, .discardZeroes]) }
        info.logicalBlock = UInt32(logicalBlock)
        info.physicalBlock = 4096
        info.optimalTransfer = preferredBlock > 4096 && preferredBlock <= 1 << 24 ? preferredBlock : 0
        info.memoryAlignment = memoryAlignment
        info.maxTransfer = 1 << 30
        info.maxBuffers = 1024
        info.maxQueues = 64
        info.discardGranularity = 4096
        // Zeroing may have to write: a part at a time, so that other requests get their turn on the threads.
        info.maxWriteZeroes = 1 << 30
    }

    // MARK: Blocks

    override func deallocate(_ request: borrowing Request) -> Int32 {
        let (offset, length) = (request.offset, request.length)
        if request.operation == .discard {
            guard !request.isSecure else { return -EOPNOTSUPP }
            return change(FALLOC_FL_PUNCH_HOLE, offset, length)
        }
        if request.mayDeallocate, canPunch, change(FALLOC_FL_PUNCH_HOLE, offset, length) == 0 { return 0 }
        let status = change(FALLOC_FL_ZERO_RANGE, offset, length)
        guard status == -EOPNOTSUPP, !request.mustBeFast else { return status }
        return BlockingIO.writeZeroes(fd: fd, offset: offset, length: length)
    }

    private func change(_ mode: Int32, _ offset: UInt64, _ length: UInt64) -> Int32 {
        BlockingIO.allocate(fd: fd, mode: mode | FALLOC_FL_KEEP_SIZE, offset: offset, length: length)
    }

    // MARK: Control

    /// Sets the length of the file.
    func resize(to newSize: UInt64) throws(PluginError) {
        guard !isReadOnly else { throw PluginError(EROFS, "the disk is read-only") }
        guard newSize > 0, newSize % logicalBlock == 0, newSize <= UInt64(off_t.max) else {
            throw PluginError(EINVAL, "the size must be a multiple of \(logicalBlock) and not 0")
        }
        guard ftruncate(fd, off_t(newSize)) == 0 else { throw PluginError(system: "cannot resize the image") }
        checkSize()
    }

    /// Reports what of a range is allocated, with lseek SEEK_DATA and SEEK_HOLE, until `report` gives false.
    ///
    /// The descriptor's file position moves, which no other part of the plugin uses.
    func map(from start: UInt64, length: UInt64, _ report: (MappedRange) -> Bool) throws(PluginError) {
        let size = self.size
        guard start < size else { return }
        let end = start + min(length, size - start)
        var position = start
        while position < end {
            let data = try seek(clinux_SEEK_DATA, position) ?? end
            if data > position {
                let hole = min(data, end)
                guard report(MappedRange(position, hole - position, [.hole, .zeroes])) else { return }
                position = hole
                continue
            }
            let next = min(max(try seek(clinux_SEEK_HOLE, position) ?? end, position + 1), end)
            guard report(MappedRange(position, next - position)) else { return }
            position = next
        }
    }

    /// nil behind the last data.
    private func seek(_ whence: Int32, _ offset: UInt64) throws(PluginError) -> UInt64? {
        let found = lseek(fd, off_t(truncatingIfNeeded: offset), whence)
        if found >= 0 { return UInt64(found) }
        guard errno == ENXIO else { throw PluginError(system: "cannot find the holes of the image") }
        return nil
    }
}
