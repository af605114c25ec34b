// SPDX-License-Identifier: BSD-2-Clause
// The layer below an image, opened by the host.
import FileKit
import Glibc
import ImageCore
import ImageWriting
import PluginKit

/// What the host opened: a raw file, or an image of this plugin's own formats. Any thread.
package final class BackingFile<Disk: StorageDisk & LowerLayer>: LowerLayer {
    /// Bytes; behind them the image sees zeroes.
    package let size: UInt64
    private let source: Source

    private enum Source {
        case raw(ImageFile)
        case image(Disk)
    }

    /// Asks the host for the file that an image names.
    ///
    /// With `lock` nobody may write to a raw one; an image locks its own file.
    /// nil: it is of a format that is not the plugin's.
    package init?(_ name: ImageFileName, opening: Opening, lock: Bool) throws(PluginError) {
        let child = try opening.child(name)
        if let fd = child.descriptor {
            let file = try ImageFile(fd: fd)
            do throws(PluginError) {
                if lock { try ImageLock.take(fd: fd, isReadOnly: true, isSuccessor: opening.isSuccessor) }
            } catch {
                file.finish()
                throw PluginError(
                    error.code, "the backing file '\(String(decoding: name.name, as: UTF8.self))': \(error.message)")
            }
            (source, size) = (.raw(file), file.size)
        } else if let device = child.device(as: Disk.self) {
            (source, size) = (.image(device), device.size)
        } else {
            return nil
        }
    }

    /// The disk, if it is an image.
    package var disk: Disk? { if case .image(let disk) = source { disk } else { nil } }

    package func finish() { if case .raw(let file) = source { file.finish() } }

    package func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        let there = offset < size ? Int(min(UInt64(buffer.byteCount), size - offset)) : 0
        return unsafe buffer.withUnsafeMutableBytes { bytes in
            let tail = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[there...])
            if let base = tail.baseAddress { unsafe _ = memset(base, 0, tail.count) }
            guard there > 0 else { return 0 }
            let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[..<there])
            switch source {
            case .raw(let file): return unsafe file.read(part, at: offset)
            case .image(let device):
                var span = unsafe part.mutableBytes
                return device.read(into: &span, at: offset)
            }
        }
    }
}
