// SPDX-License-Identifier: BSD-2-Clause
// libqcow: the one file of the plugin that calls it.
//
// libqcow decrypts.  It is not asked for anything that it is known to get wrong; docs/qcow.md lists what that is.
import CQCOW
import Glibc
import PluginKit
import Synchronization

/// Handles of libqcow for one image, made in `open()`, while files can be opened.  A handle serves one read at a time.
///
/// `@unchecked Sendable`: libqcow locks a handle while it is read from.
@safe
final class LibqcowFile: @unchecked Sendable {
    private let handles: [UnsafeMutablePointer<libqcow_file_t>]
    /// A handle that is never read from: libqcow wants a parent before it reads an image that names one.
    private let parent: UnsafeMutablePointer<libqcow_file_t>?

    /// Chooses a handle: a thread that takes one in use waits for it.
    private let next = Atomic<Int>(0)

    /// How many bytes of clusters a handle of libqcow 20201213 may come to keep, as many clusters as that are.
    static let cachedClusters: UInt64 = 2 * 128

    /// Opens the image at `fd` `count` times with the key that `password` gives.
    init(fd: Int32, password: String, hasBackingFile: Bool, count: Int) throws(PluginError) {
        // The first 16 bytes of the password are the key.
        var key = [UInt8](repeating: 0, count: 16)
        for (index, byte) in password.utf8.prefix(16).enumerated() { key[index] = byte }
        let path = "/proc/self/fd/\(fd)"
        unsafe parent = unsafe hasBackingFile ? try Self.open(path, key, nil) : nil
        var opened: [UnsafeMutablePointer<libqcow_file_t>] = unsafe []
        do throws(PluginError) {
            for _ in 0..<max(count, 1) { unsafe opened.append(try Self.open(path, key, parent)) }
        } catch {
            for index in unsafe opened.indices { unsafe cqcow_close(opened[index]) }
            if let parent = unsafe parent { unsafe cqcow_close(parent) }
            throw error
        }
        unsafe handles = unsafe opened
    }

    deinit {
        for index in unsafe handles.indices { unsafe cqcow_close(handles[index]) }
        if let parent = unsafe parent { unsafe cqcow_close(parent) }
    }

    private static func open(
        _ path: String, _ key: [UInt8], _ parent: UnsafeMutablePointer<libqcow_file_t>?
    ) throws(PluginError) -> UnsafeMutablePointer<libqcow_file_t> {
        var words = [CChar](repeating: 0, count: 200)
        guard let handle = unsafe cqcow_open(path, key, parent, &words, words.count) else {
            throw PluginError(EIO, "libqcow cannot open the encrypted image: \(Self.text(words))")
        }
        return unsafe handle
    }

    /// Fills `buffer` from `offset` of the disk, within one cluster.
    ///
    /// - Returns: 0 or -EIO.
    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
        let number = Int(next.wrappingAdd(1, ordering: .relaxed).newValue & 0xffff)
        let handle = unsafe handles[number % handles.count]
        let count = unsafe cqcow_read(handle, buffer.baseAddress, buffer.count, offset, nil, 0)
        return count == Int64(buffer.count) ? 0 : -EIO
    }

    private static func text(_ words: [CChar]) -> String {
        String(decoding: words.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
