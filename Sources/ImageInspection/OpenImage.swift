// SPDX-License-Identifier: BSD-2-Clause
// An image under examination: its first and last bytes for probe(), its descriptor for inspect().
import ImageCore
import PluginHost
import Base
import CLinux
import Glibc
import PluginAPI

/// An image, open for reading.
struct OpenImage: ~Copyable {
    private let file: DiskFile
    /// The length of the file or device, in bytes.
    let byteCount: UInt64
    /// The space that a file takes on its file system, in bytes.
    let allocatedByteCount: UInt64

    /// Opens a regular file or block device.
    init(_ path: String) throws(OperationError) {
        let opened = try DiskFile(path: path, readOnly: true, direct: false)
        var status = stat()
        let end = lseek(opened.descriptor, 0, SEEK_END)
        guard end >= 0, unsafe fstat(opened.descriptor, &status) == 0 else {
            throw OperationError(.open, "cannot tell the length of \(path)", .errno(errno))
        }
        byteCount = UInt64(end)
        allocatedByteCount = opened.isBlockDevice ? UInt64(end) : UInt64(max(status.st_blocks, 0)) * 512
        file = opened
    }

    /// The descriptor, on loan: closed with this value.
    var descriptor: Int32 { file.descriptor }

    /// What it is by its magic; nil where that tells nothing.
    func signature() throws(OperationError) -> ImageSignature? {
        let length = min(byteCount, UInt64(ImageSignature.tailBytes))
        return ImageSignature(
            head: try bytes(at: 0, Int(min(byteCount, UInt64(ImageSignature.headBytes)))),
            tail: try bytes(at: byteCount - length, Int(length)))
    }

    /// Asks each plugin about each of its formats.
    ///
    /// The plugin gets pointers to two arrays and a string that outlive the call.
    func matches(_ libraries: [PluginLibrary]) throws(OperationError) -> [FormatMatch] {
        let head = try bytes(at: 0, Int(min(byteCount, 64 << 10)))
        let tailLength = min(byteCount, 4 << 10)
        let tail = try bytes(at: byteCount - tailLength, Int(tailLength))
        var found: [FormatMatch] = []
        for library in libraries {
            for format in library.formats {
                let score = unsafe head.withUnsafeBufferPointer { head in
                    unsafe tail.withUnsafeBufferPointer { tail in
                        unsafe format.withCString { name in
                            var question = unsafe xbb_probe()
                            unsafe question.struct_size = UInt32(MemoryLayout<xbb_probe>.size)
                            unsafe question.head = head.baseAddress
                            unsafe question.head_len = UInt64(head.count)
                            unsafe question.tail = tail.baseAddress
                            unsafe question.tail_len = UInt64(tail.count)
                            unsafe question.file_size = byteCount
                            unsafe question.format = name
                            return unsafe library.table.probe?(&question) ?? 0
                        }
                    }
                }
                if let match = FormatMatch(format: format, plugin: library.name, score: score) { found.append(match) }
            }
        }
        return found
    }

    private func bytes(at offset: UInt64, _ count: Int) throws(OperationError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let got = unsafe bytes.withUnsafeMutableBytes { buffer in
                unsafe pread(
                    file.descriptor, buffer.baseAddress.map { unsafe $0 + done }, count - done,
                    off_t(offset) + off_t(done))
            }
            if got < 0 && errno == EINTR { continue }
            guard got > 0 else {
                throw OperationError(
                    .open, "cannot read the image: \(got == 0 ? "it became shorter" : errnoText(errno))")
            }
            done += got
        }
        return bytes
    }
}
