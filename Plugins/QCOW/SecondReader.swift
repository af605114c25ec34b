// SPDX-License-Identifier: BSD-2-Clause
// libqcow as a second, independent reader of images: over an open descriptor, since who compares can open nothing by name.
import CQCOW
import Glibc
import PluginKit
import QCOW2

/// An image, open in libqcow. One thread.
@safe
final class SecondReader {
    private let fd: Int32
    private let fileSize: UInt64
    private let needsParent: Bool
    private var image = unsafe cqcow_image()
    /// libqcow reads nothing of an image that names a backing file before it has a parent; this one is never read from.
    private var parent = unsafe cqcow_image()
    /// Clusters that it may come to keep in memory before it is opened again: its caches have no other limit than their number.
    private let mostClusters: UInt64
    private var read: UInt64 = 0
    private let clusterSize: UInt64

    private static let mostMemory: UInt64 = 16 << 20

    /// Opens the image with this header in the file of `fileSize` bytes at `fd`, which stays the caller's.
    init(fd: Int32, fileSize: UInt64, _ header: QCOWHeader) throws(PluginError) {
        self.fd = fd
        self.fileSize = fileSize
        needsParent = header.backingName != nil
        clusterSize = header.clusterSize
        mostClusters = max(2, min(256, Self.mostMemory / header.clusterSize))
        try open()
    }

    deinit { close() }

    /// What of an image libqcow cannot read, in words; nil: nothing that the header tells.
    static func missing(_ header: QCOWHeader) -> String? {
        let known = QCOWHeader.Incompatible.dirty | QCOWHeader.Incompatible.corrupt
        let unknown = header.incompatible & ~known
        let named = QCOWHeader.Incompatible.names.filter { unknown & $0.bit != 0 }
        var features = named.map { $0.bit == QCOWHeader.Incompatible.compressionType ? "zstd compression" : $0.name }
        let rest = named.reduce(unknown) { $0 & ~$1.bit }
        features += (0..<64).filter { rest & 1 << UInt64($0) != 0 }.map { "the unknown incompatible feature \($0)" }
        switch header.encryption {
        case 0: break
        case 1: return "the image is encrypted with AES, which both readers leave to libqcow"
        case 2: features.append("LUKS")
        default: features.append("encryption method \(header.encryption)")
        }
        return features.isEmpty ? nil : "libqcow cannot read images with \(features.joined(separator: ", "))"
    }

    private func open() throws(PluginError) {
        var words = [CChar](repeating: 0, count: 200)
        if needsParent, unsafe cqcow_open_descriptor(&parent, fd, fileSize, nil, &words, words.count) == 0 {
            throw Self.refusal(words)
        }
        guard unsafe cqcow_open_descriptor(&image, fd, fileSize, parent.file, &words, words.count) != 0 else {
            throw Self.refusal(words)
        }
    }

    private func close() {
        unsafe cqcow_close_image(&image)
        unsafe cqcow_close_image(&parent)
    }

    private static func refusal(_ words: [CChar]) -> PluginError {
        let text = String(decoding: words.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return PluginError(
            EIO,
            text.isEmpty ? "this build of libqcow cannot read from an open file" : "libqcow cannot open it: \(text)")
    }

    /// Bytes of the disk.
    var size: UInt64 { unsafe cqcow_disk_size(image.file) }

    /// Fills all of `buffer` from `offset` of the disk; false: it cannot.
    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(PluginError) -> Bool {
        let clusters = UInt64(buffer.count) / clusterSize + 2
        if read + clusters > mostClusters, read > 0 {
            close()
            try open()
            read = 0
        }
        read += clusters
        return unsafe cqcow_read(image.file, buffer.baseAddress, buffer.count, offset, nil, 0) == Int64(buffer.count)
    }
}
