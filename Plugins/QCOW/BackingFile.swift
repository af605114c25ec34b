// SPDX-License-Identifier: BSD-2-Clause
// The layer below an image, opened by the host.
import FileKit
import Glibc
import PluginAPI
import PluginKit

/// What `child_open()` gave.  Raw files are read here; disks of other formats by the host, through their own plugins.
@safe
final class BackingFile: @unchecked Sendable {
    /// Bytes; behind them the image sees zeroes.
    let size: UInt64
    private let file: ImageFile?
    private let child: OpaquePointer
    private let submit: HostChildSubmit

    /// Asks the host for the file that an image names.
    ///
    /// With `lock` nobody may write to a raw one; other formats lock it themselves.
    init(_ reference: ImageReference, host: PluginHost, disk: OpaquePointer?, lock: Bool) throws(PluginError) {
        var name = xbb_ref()
        try reference.fill(&name)
        let child = try unsafe host.openChild(&name, disk: disk)
        unsafe self.child = unsafe child
        guard let submit = unsafe host.childSubmit else { throw PluginError(ENOSYS, "the host has no child_submit()") }
        unsafe self.submit = unsafe submit
        let fd = unsafe host.descriptor(ofChild: child)
        if fd >= 0 {
            let file = try ImageFile(fd: fd)
            if lock { try ImageLock.take(fd: fd, isReadOnly: true) }
            (self.file, size) = (file, file.size)
        } else {
            file = nil
            size = try unsafe host.size(ofChild: child)
        }
    }

    func finish() { file?.finish() }

    /// Fills `buffer` from `offset`, with zeroes behind the end; on a queue's thread, for the request of that queue.
    ///
    /// - Returns: 0 or a negative errno.
    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64, queue: OpaquePointer) -> Int32 {
        let there = offset < size ? Int(min(UInt64(buffer.count), size - offset)) : 0
        let tail = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[there...])
        unsafe zero(tail)
        guard there > 0 else { return 0 }
        let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<there])
        if let file { return unsafe file.read(part, at: offset) }
        return unsafe ask(part, offset, queue)
    }

    /// A read through the host. In the queue of a blocking plugin it is done when child_submit() returns.
    private func ask(_ part: UnsafeMutableRawBufferPointer, _ offset: UInt64, _ queue: OpaquePointer) -> Int32 {
        var vector = unsafe iovec(iov_base: part.baseAddress, iov_len: part.count)
        var status: Int32 = -EINPROGRESS
        let code = unsafe withUnsafePointer(to: &vector) { vector in
            var request = unsafe xbb_req()
            unsafe request.offset = offset
            unsafe request.length = UInt64(part.count)
            unsafe request.iov = vector
            unsafe request.iovcnt = 1
            unsafe request.op = UInt8(XBB_OP_READ)
            return unsafe submit(
                queue, child, &request,
                { argument, _, status in
                    unsafe argument?.assumingMemoryBound(to: Int32.self).pointee = min(status, 0)
                }, &status)
        }
        return code != 0 ? min(code, -1) : status
    }
}

/// Fills with zeroes.
func zero(_ buffer: UnsafeMutableRawBufferPointer) {
    if let base = buffer.baseAddress { unsafe _ = memset(base, 0, buffer.count) }
}
