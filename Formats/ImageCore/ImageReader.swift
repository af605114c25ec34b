// SPDX-License-Identifier: BSD-2-Clause
// How a format reaches the bytes of its image: whoever has the file reads it.
import Glibc

/// The bytes of an image: a file, a block device, or an array in a test. Any thread, and several at once.
public protocol ImageReader: AnyObject, Sendable {
    /// Bytes.
    var size: UInt64 { get }
    /// Fills all of `buffer` from `offset`.
    ///
    /// - Returns: 0 or a negative errno; -EIO for what is not in the file. Nothing is made up.
    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32
}

extension ImageReader {
    /// Calls `body` for each of `count` big-endian numbers of 8 bytes at `offset` that is not 0, with its index. The table is read a
    /// part at a time: it may have 32 MiB, most of it often zeroes.
    public func forEachNonZeroWord(
        at offset: UInt64, count: Int, _ body: (_ index: Int, _ word: UInt64) throws(ImageError) -> Void
    ) throws(ImageError) {
        var done = 0
        while done < count {
            let part = min(count - done, 8192)
            for (index, word) in try nonZeroWords(at: offset + UInt64(done) * 8, count: part) {
                try body(done + index, word)
            }
            done += part
        }
    }

    /// As many bytes as the file has of `count` at `offset`, in an array: for headers and tables, not for data.
    public func bytes(at offset: UInt64, count: Int) throws(ImageError) -> [UInt8] {
        guard offset < size, count > 0 else { return [] }
        var found = [UInt8](repeating: 0, count: Int(min(UInt64(count), size - offset)))
        var span = found.mutableSpan
        // Bytes of any value are valid elements.
        var raw = unsafe span.mutableBytes
        let code = read(into: &raw, at: offset)
        guard code == 0 else { throw ImageError(.unreadable(-code), "cannot read the image at offset \(offset)") }
        return found
    }

    /// Those of `count` big-endian numbers of 8 bytes at `offset` that are not 0, with their indexes.
    public func nonZeroWords(at offset: UInt64, count: Int) throws(ImageError) -> [(index: Int, word: UInt64)] {
        let found = try bytes(at: offset, count: count * 8)
        guard found.count == count * 8 else {
            throw ImageError(.corrupt, "the image was cut off while it was opened")
        }
        // Most of a large table is often zeroes: memcmp finds that out in a moment also in a debug build. All loads lie
        // within `raw`, whose length was compared above.
        return unsafe found.withUnsafeBytes { raw in
            guard let base = raw.baseAddress else { return [] }
            // All bytes are like the first, and that is 0.
            if unsafe raw[0] == 0 && memcmp(base, base + 1, raw.count - 1) == 0 { return [] }
            return (0..<count).compactMap {
                let word = unsafe UInt64(bigEndian: raw.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self))
                return word == 0 ? nil : ($0, word)
            }
        }
    }
}
