// SPDX-License-Identifier: BSD-2-Clause
// The layer below an image, opened by the host.
import FileKit
import Glibc
import PluginKit

/// What the host opened.  Raw files are read here; disks of other formats by the host, through their own plugins.
final class BackingFile: Sendable {
    /// Bytes; behind them the image sees zeroes.
    let size: UInt64
    private let file: ImageFile?
    private let child: ChildDisk

    /// Asks the host for the file that an image names.
    ///
    /// With `lock` nobody may write to a raw one; other formats lock it themselves.
    init(_ name: ImageFileName, opening: Opening, lock: Bool) throws(PluginError) {
        child = try opening.child(name)
        if let fd = child.descriptor {
            let file = try ImageFile(fd: fd)
            if lock { try ImageLock.take(fd: fd, isReadOnly: true, isSuccessor: opening.isSuccessor) }
            (self.file, size) = (file, file.size)
        } else {
            file = nil
            size = try child.size()
        }
    }

    func finish() { file?.finish() }

    /// Fills `buffer` from `offset`, with zeroes behind the end; on a queue's thread, for the request of that queue.
    ///
    /// - Returns: 0 or a negative errno.
    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64, queue: HostQueue) -> Int32 {
        let there = offset < size ? Int(min(UInt64(buffer.count), size - offset)) : 0
        let tail = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[there...])
        unsafe zero(tail)
        guard there > 0 else { return 0 }
        let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<there])
        if let file { return unsafe file.read(part, at: offset) }
        return unsafe child.read(part, at: offset, on: queue)
    }
}

/// Fills with zeroes.
func zero(_ buffer: UnsafeMutableRawBufferPointer) {
    if let base = buffer.baseAddress { unsafe _ = memset(base, 0, buffer.count) }
}
