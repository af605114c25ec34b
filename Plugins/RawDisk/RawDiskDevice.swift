// SPDX-License-Identifier: BSD-2-Clause
// An open block device: its limits, its size, and the ioctls that discard and zero blocks.
import CLinux
import FileKit
import Glibc
import PluginKit

/// A block device in O_DIRECT mode.
///
/// `@unchecked Sendable`: as its base, and what it adds never changes.
final class RawDiskDevice: DescriptorDisk, @unchecked Sendable {
    private let limits: BlockLimits
    private let memoryAlignment: UInt32
    private let mayDiscard: Bool
    private let changedDirect: Bool
    /// Keeps the claim on a device that is written; -1 without one.
    private let claim: Int32

    /// Two, so that a long discard does not hold up the rest of a partial transfer.
    private static let threadCount = 2

    init(_ opening: Opening) throws(PluginError) {
        let fd = opening.fd
        let number = try RawDiskDevice.checkedDeviceNumber(opening)
        let discards = try opening[RawDiskOption.discard]
        let locks = try opening[RawDiskOption.lock]
        limits = try BlockLimits(fd: fd, device: number)
        changedDirect = !DirectIO.isOn(fd: fd)
        guard DirectIO.set(fd: fd, on: true) else { throw PluginError(system: "the device has no direct I/O") }
        memoryAlignment = DirectIO.alignment(fd: fd)?.memory ?? limits.logicalBlock
        mayDiscard = discards && limits.canDiscard
        let size = RawDiskDevice.size(fd: fd, block: limits.logicalBlock) ?? 0
        claim = !opening.isReadOnly && locks ? try RawDiskDevice.claim(opening) : -1
        super.init(
            opening: opening, isAsynchronous: true, blockSize: UInt64(limits.logicalBlock), byteCount: size,
            threadCount: RawDiskDevice.threadCount)
        guard size > 0 else {
            finish()
            throw PluginError(ENXIO, "the device has no size: no medium, or nothing attached (losetup, lvchange -ay)")
        }
    }

    private static func checkedDeviceNumber(_ opening: Opening) throws(PluginError) -> UInt64 {
        guard opening.fd >= 0 else { throw PluginError(EINVAL, "no device was given") }
        var status = stat()
        guard unsafe fstat(opening.fd, &status) == 0 else { throw PluginError(system: "cannot examine the device") }
        switch status.st_mode & S_IFMT {
        case S_IFBLK: break
        case S_IFREG: throw PluginError(ENOTBLK, "this is a regular file; use the plugin file for it")
        case S_IFCHR: throw PluginError(ENOTBLK, "this is a character device; give the block device of the disk")
        case S_IFDIR: throw PluginError(ENOTBLK, "this is a directory; give a block device such as /dev/vg/volume")
        default: throw PluginError(ENOTBLK, "this is not a block device")
        }
        guard !opening.isReadOnly else { return UInt64(status.st_rdev) }
        let flags = clinux_fcntl_int(opening.fd, F_GETFL, 0)
        var isReadOnly: Int32 = 0
        guard flags >= 0, flags & O_ACCMODE == O_RDWR,
            unsafe clinux_ioctl_pointer(opening.fd, clinux_BLKROGET, &isReadOnly) == 0, isReadOnly == 0
        else { throw PluginError(EROFS, "the device is read-only; attach the disk read-only") }
        return UInt64(status.st_rdev)
    }

    /// Claims the device for this process as mounts, swap and device mapper do, so that none of them gets it meanwhile.
    ///
    /// - Returns: the descriptor that holds the claim, or -1 where there is no /proc to get one.
    private static func claim(_ opening: Opening) throws(PluginError) -> Int32 {
        // Others may hold it for a moment, such as a process before this one that is about to be gone.
        for attempt in 1...25 {
            let claimed = unsafe clinux_open(
                "/proc/self/fd/\(opening.fd)", O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK, 0)
            if claimed >= 0 { return claimed }
            let code = errno
            if code == ENOENT || code == EACCES {
                opening.hostDisk.log(.warning, "the device is not claimed: others may mount it")
                return -1
            }
            guard code == EBUSY else {
                throw PluginError(system: "the device cannot be claimed (lock=off goes without)", code)
            }
            if attempt < 25 { usleep(10_000) }
        }
        throw PluginError(
            EBUSY,
            "the device is in use in this domain: mounted, swap, part of another device or claimed by a program (lock=off "
                + "goes without the claim)")
    }

    override func finish() {
        if claim >= 0 { _ = Glibc.close(claim) }
        if changedDirect { _ = DirectIO.set(fd: fd, on: false) }
    }

    // MARK: Description

    private static func size(fd: Int32, block: UInt32) -> UInt64? {
        var size: UInt64 = 0
        guard unsafe clinux_ioctl_pointer(fd, clinux_BLKGETSIZE64, &size) == 0 else { return nil }
        return size & ~UInt64(block - 1)
    }

    override func measureSize() -> UInt64? { RawDiskDevice.size(fd: fd, block: limits.logicalBlock) }

    override func describe(_ info: inout DiskInfo) {
        // FUA is right on every device: the kernel flushes where the device has no FUA of its own.
        info.capabilities = [.write, .force, .writeZeroes]
        if limits.hasVolatileCache { info.capabilities.insert(.flush) }
        if mayDiscard { info.capabilities.insert(.discard) }
        if mayDiscard && limits.canEraseSecurely { info.capabilities.insert(.secureDiscard) }
        if limits.isRotational { info.capabilities.insert(.rotational) }
        info.logicalBlock = limits.logicalBlock
        info.physicalBlock = limits.physicalBlock
        info.optimalTransfer = limits.optimalIO
        info.memoryAlignment = memoryAlignment
        info.maxTransfer = 1 << 30
        info.maxBuffers = 1024
        info.maxQueues = 64
        info.discardGranularity = limits.discardGranularity
        info.discardOffset = limits.discardOffset
        // The kernel splits, but a part at a time leaves the threads free for others in between.
        info.maxDiscard = 64 << 30
        info.maxWriteZeroes = limits.zeroesWithoutWriting ? 64 << 30 : 1 << 30
    }

    // MARK: Blocks

    override func deallocate(_ request: borrowing Request) -> Int32 {
        let (offset, length) = (request.offset, request.length)
        if request.operation == .discard {
            return control(request.isSecure ? clinux_BLKSECDISCARD : clinux_BLKDISCARD, offset, length)
        }
        if request.mayDeallocate, mayDiscard {
            // On a block device: unmap if that gives zeroes, else fail; never writes.
            let mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            if fallocate(fd, mode, off_t(truncatingIfNeeded: offset), off_t(truncatingIfNeeded: length)) == 0 {
                return 0
            }
        }
        if request.mustBeFast, !limits.zeroesWithoutWriting { return -EOPNOTSUPP }
        return control(clinux_BLKZEROOUT, offset, length)
    }

    private func control(_ command: UInt, _ offset: UInt64, _ length: UInt64) -> Int32 {
        var range = (offset, length)
        return unsafe clinux_ioctl_pointer(fd, command, &range) == 0 ? 0 : -errno
    }
}
