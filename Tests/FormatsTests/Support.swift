// SPDX-License-Identifier: BSD-2-Clause
// Images in memory: what qemu-img writes, and what is changed in it.
import Glibc
import ImageCore
import QCOW2
import Testing

/// An image that is an array.
final class ArrayReader: ImageReader {
    let bytes: [UInt8]
    /// A negative errno that every read ends with; 0: none.
    let failure: Int32

    init(_ bytes: [UInt8], failure: Int32 = 0) {
        self.bytes = bytes
        self.failure = failure
    }

    var size: UInt64 { UInt64(bytes.count) }

    func read(into buffer: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        guard failure == 0 else { return failure }
        guard offset <= size, UInt64(buffer.byteCount) <= size - offset else { return -EIO }
        buffer.withUnsafeMutableBytes { target in
            bytes.withUnsafeBytes { target.copyMemory(from: .init(rebasing: $0[Int(offset)...].prefix(target.count))) }
        }
        return 0
    }
}

extension [UInt8] {
    /// A big-endian number, found without the code that is tested.
    func number(at offset: Int, bytes: Int) -> UInt64 {
        self[offset..<offset + bytes].reduce(0) { $0 * 256 + UInt64($1) }
    }

    /// With other bytes at `offset`.
    func patched(_ offset: Int, _ new: [UInt8]) -> [UInt8] {
        var copy = self
        copy.replaceSubrange(offset..<offset + new.count, with: new)
        return copy
    }
}

/// What a command prints and how it ends.
@discardableResult
func run(_ command: String) throws -> String {
    let pipe = try #require(popen("(\(command)) 2>&1", "r"))
    var output: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 4096)
    while case let count = fread(&chunk, 1, chunk.count, pipe), count > 0 { output += chunk[..<count] }
    let words = String(decoding: output, as: UTF8.self)
    try #require(pclose(pipe) == 0, "\(command): \(words)")
    return words
}

/// A folder that vanishes with its owner.
final class Folder {
    let path: String

    init() throws {
        var template = Array("/tmp/xbb-formats-XXXXXX".utf8CString)
        path = String(cString: try #require(mkdtemp(&template)))
    }

    deinit { _ = try? run("rm -rf \(path)") }

    /// All bytes of a file in it.
    func bytes(_ name: String) throws -> [UInt8] {
        let file = try #require(fopen("\(path)/\(name)", "r"))
        defer { fclose(file) }
        var found: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        while case let count = fread(&chunk, 1, chunk.count, file), count > 0 { found += chunk[..<count] }
        return found
    }

    /// What qemu-img makes of these options.
    func image(_ format: String, _ options: String = "", size: String = "1M") throws -> [UInt8] {
        try run("cd \(path) && rm -f image && qemu-img create -q -f \(format) \(options) image \(size)")
        return try bytes("image")
    }
}

/// What `QCOWImage` makes of these bytes: nothing, or the refusal.
func refusal(_ bytes: [UInt8]) -> ImageError? {
    do throws(ImageError) {
        _ = try QCOWImage(ArrayReader(bytes))
        return nil
    } catch {
        return error
    }
}
