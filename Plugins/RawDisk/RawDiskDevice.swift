// SPDX-License-Identifier: BSD-2-Clause
// An open block device: its limits, its size, and the ioctls that discard and zero blocks.
import CLinux
import FileKit
import Glibc
import PluginAPI
import PluginKit

/// A block device in O_DIRECT mode.
final class RawDiskDevice: StorageDevice {
    private let limits: BlockLimits
    private let memoryAlignment: UInt32
    private let mayDiscard: Bool
    private let changedDirect: Bool

    /// Two, so that a long discard does not hold up the rest of a partial transfer.
    private static let threadCount = 2

    init(host: PluginHost, opening: Opening) throws(PluginError) {
        let fd = opening.fd
        let number = try RawDiskDevice.checkedDeviceNumber(opening)
        let discards = try opening[RawDiskOption.discard]
        limits = try BlockLimits(fd: fd, device: number)
        changedDirect = !DirectIO.isOn(fd: fd)
        guard DirectIO.set(fd: fd, on: true) else { throw PluginError(system: "the device has no direct I/O") }
        memoryAlignment = DirectIO.alignment(fd: fd)?.memory ?? limits.logicalBlock
        mayDiscard = discards && limits.canDiscard
        let size = RawDiskDevice.size(fd: fd, block: limits.logicalBlock) ?? 0
        super.init(
            host: host, opening: opening, isAsynchronous: true, blockSize: UInt64(limits.logicalBlock),
            byteCount: size, threadCount: RawDiskDevice.threadCount)
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

    override func finish() {
        if changedDirect { _ = DirectIO.set(fd: fd, on: false) }
    }

    // MARK: Description

    private static func size(fd: Int32, block: UInt32) -> UInt64? {
        var size: UInt64 = 0
        guard unsafe clinux_ioctl_pointer(fd, clinux_BLKGETSIZE64, &size) == 0 else { return nil }
        return size & ~UInt64(block - 1)
    }

    override func measureSize() -> UInt64? { RawDiskDevice.size(fd: fd, block: limits.logicalBlock) }

    override func describe(_ info: inout xbb_info) {
        if !isReadOnly {
            // FUA is right on every device: the kernel flushes where the device has no FUA of its own.
            info.caps = XBB_CAP_WRITE | XBB_CAP_FUA | XBB_CAP_WRITE_ZEROES
            if limits.hasVolatileCache { info.caps |= XBB_CAP_FLUSH }
            if mayDiscard { info.caps |= XBB_CAP_DISCARD }
            if mayDiscard && limits.canEraseSecurely { info.caps |= XBB_CAP_DISCARD_SECURE }
        }
        if limits.isRotational { info.caps |= XBB_CAP_ROTATIONAL }
        info.logical_block = limits.logicalBlock
        info.physical_block = limits.physicalBlock
        info.optimal_io = limits.optimalIO
        info.mem_align = memoryAlignment
        info.max_transfer = 1 << 30
        info.max_iov = 1024
        info.max_queues = 64
        info.discard_granularity = limits.discardGranularity
        info.discard_offset = limits.discardOffset
        // The kernel splits, but a part at a time leaves the threads free for others in between.
        info.max_discard = 64 << 30
        info.max_write_zeroes = limits.zeroesWithoutWriting ? 64 << 30 : 1 << 30
    }

    // MARK: Blocks

    override func deallocate(_ request: UnsafeMutablePointer<xbb_req>) -> Int32 {
        let flags = unsafe Int(request.pointee.flags)
        let (offset, length) = unsafe (request.pointee.offset, request.pointee.length)
        if unsafe Int(request.pointee.op) == XBB_OP_DISCARD {
            return control(flags & XBB_REQ_SECURE != 0 ? clinux_BLKSECDISCARD : clinux_BLKDISCARD, offset, length)
        }
        if flags & XBB_REQ_MAY_UNMAP != 0, mayDiscard {
            // On a block device: unmap if that gives zeroes, else fail; never writes.
            let mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            if fallocate(fd, mode, off_t(truncatingIfNeeded: offset), off_t(truncatingIfNeeded: length)) == 0 {
                return 0
            }
        }
        if flags & XBB_REQ_NO_FALLBACK != 0, !limits.zeroesWithoutWriting { return -EOPNOTSUPP }
        return control(clinux_BLKZEROOUT, offset, length)
    }

    private func control(_ command: UInt, _ offset: UInt64, _ length: UInt64) -> Int32 {
        var range = (offset, length)
        return unsafe clinux_ioctl_pointer(fd, command, &range) == 0 ? 0 : -errno
    }
}
