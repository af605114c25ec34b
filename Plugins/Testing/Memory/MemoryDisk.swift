// SPDX-License-Identifier: BSD-2-Clause
// A disk in memory, for the plugins that test the host.
import CLinux
import Glibc
import PluginAPI
import PluginKit

/// Memory that reads as zeroes until it is written; pages exist once they are touched.
@safe
public final class MemoryDisk {
    /// Bytes.
    public let size: UInt64
    private let base: UnsafeMutableRawPointer
    private let isKept: Bool

    /// Reserves `size` bytes of address space, a multiple of 512 and not 0. With `file` they are that file's, so that
    /// they outlive the process; it grows to `size`.
    public init(size: UInt64, file: String? = nil) throws(PluginError) {
        guard size > 0, size % 512 == 0, size <= UInt64(Int.max) else {
            throw PluginError(EINVAL, "size must be a multiple of 512 and not 0")
        }
        var opened: Int32 = -1
        if let file {
            opened = unsafe clinux_open(file, O_RDWR | O_CLOEXEC, 0)
            var status = stat()
            guard opened >= 0, unsafe fstat(opened, &status) == 0,
                status.st_size >= off_t(size) || ftruncate(opened, off_t(size)) == 0
            else { throw PluginError(system: "cannot keep the disk in \(file)") }
        }
        defer { if opened >= 0 { close(opened) } }
        let flags = file == nil ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED
        guard let base = unsafe clinux_mmap(nil, Int(size), PROT_READ | PROT_WRITE, flags, opened, 0) else {
            throw PluginError(system: "no memory for the disk")
        }
        isKept = file != nil
        self.size = size
        unsafe self.base = unsafe base
    }

    deinit { unsafe _ = munmap(base, Int(size)) }

    /// What the disk can do.
    public static let capabilities =
        XBB_CAP_WRITE | XBB_CAP_FLUSH | XBB_CAP_FUA | XBB_CAP_DISCARD | XBB_CAP_DISCARD_ZEROES | XBB_CAP_WRITE_ZEROES

    /// Fills in the limits of the disk.
    public func describe(_ info: inout xbb_info, isReadOnly: Bool) {
        info.caps = isReadOnly ? 0 : MemoryDisk.capabilities
        info.size = size
        info.logical_block = 512
        info.physical_block = 4096
        info.max_queues = 16
    }

    /// Performs a request; a READ or WRITE only for its first `limit` bytes.
    ///
    /// - Returns: 0 or a negative errno.
    public func perform(_ request: UnsafeMutablePointer<xbb_req>, limit: UInt64 = .max) -> Int32 {
        let (offset, length) = unsafe (request.pointee.offset, request.pointee.length)
        guard offset <= size, length <= size - offset else { return -EIO }
        switch unsafe Int(request.pointee.op) {
        case XBB_OP_READ, XBB_OP_WRITE: unsafe transfer(request, limit: min(length, limit))
        case XBB_OP_FLUSH: break
        case XBB_OP_DISCARD, XBB_OP_WRITE_ZEROES: zero(offset, length)
        default: return -EOPNOTSUPP
        }
        return 0
    }

    private func transfer(_ request: UnsafeMutablePointer<xbb_req>, limit: UInt64) {
        var place = unsafe base + Int(request.pointee.offset)
        var left = Int(limit)
        let isWrite = unsafe request.pointee.op == UInt8(XBB_OP_WRITE)
        for index in unsafe 0..<Int(request.pointee.iovcnt) {
            guard left > 0, let part = unsafe request.pointee.iov?[index], let memory = unsafe part.iov_base else {
                return
            }
            let count = unsafe min(part.iov_len, left)
            unsafe memcpy(isWrite ? place : memory, isWrite ? memory : place, count)
            unsafe place += count
            left -= count
        }
    }

    /// Whole pages go back to the system, which is the way to zeroes without touching them.
    private func zero(_ offset: UInt64, _ length: UInt64) {
        let page: UInt64 = 4096
        let end = offset + length
        let first = min((offset + page - 1) & ~(page - 1), end)
        let last = max(end & ~(page - 1), first)
        unsafe memset(base + Int(offset), 0, Int(first - offset))
        // A kept disk is not private: what is given back would come again from the file.
        if last > first, unsafe isKept || madvise(base + Int(first), Int(last - first), MADV_DONTNEED) != 0 {
            unsafe memset(base + Int(first), 0, Int(last - first))
        }
        unsafe memset(base + Int(last), 0, Int(end - last))
    }
}
