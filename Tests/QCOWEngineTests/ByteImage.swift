// SPDX-License-Identifier: BSD-2-Clause
// The bytes of a simulated file, in plain memory: thousands of states are copied and compared.
import Foundation

/// Sectors are what a disk writes whole.
let sectorSize = 512

/// A file in memory that grows. For one thread; whoever shares it locks it.
final class ByteImage: @unchecked Sendable {
    private var memory: UnsafeMutableRawPointer
    private var capacity: Int
    /// Bytes.
    private(set) var count: Int

    /// So many zeroes.
    init(count: Int = 0) {
        capacity = max(count, 4096)
        memory = ByteImage.zeroes(capacity)
        self.count = count
    }

    /// What a file has.
    convenience init(contentsOf path: String) throws {
        let data = try Data(contentsOf: URL(fileURLWithPath: path))
        self.init(count: data.count)
        data.copyBytes(to: UnsafeMutableRawBufferPointer(start: memory, count: count))
    }

    deinit { memory.deallocate() }

    private static func zeroes(_ count: Int) -> UnsafeMutableRawPointer {
        let new = UnsafeMutableRawPointer.allocate(byteCount: count, alignment: 4096)
        memset(new, 0, count)
        return new
    }

    /// Another file of the same content.
    func copy() -> ByteImage {
        let other = ByteImage(count: 0)
        other.take(self)
        return other
    }

    /// Becomes equal to another file.
    func take(_ other: ByteImage) {
        if capacity < other.count {
            memory.deallocate()
            capacity = other.count + other.count / 4
            memory = ByteImage.zeroes(capacity)
        } else if count > other.count {
            memset(memory + other.count, 0, count - other.count)
        }
        memcpy(memory, other.memory, other.count)
        count = other.count
    }

    /// Longer by zeroes, or cut off.
    func resize(_ size: Int) {
        if size < count {
            memset(memory + size, 0, count - size)
        } else if size > capacity {
            let room = size + size / 4
            let new = ByteImage.zeroes(room)
            memcpy(new, memory, count)
            memory.deallocate()
            (memory, capacity) = (new, room)
        }
        count = size
    }

    /// Puts bytes at an offset; the file grows to hold them.
    func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
        guard let base = bytes.baseAddress, bytes.count > 0 else { return }
        if offset + bytes.count > count { resize(offset + bytes.count) }
        memcpy(memory + offset, base, bytes.count)
    }

    /// The same of an array.
    func write(_ bytes: [UInt8], at offset: Int) { bytes.withUnsafeBytes { write($0, at: offset) } }

    /// Makes a range zeroes, as much of it as is in the file.
    func zero(_ offset: Int, _ length: Int) {
        guard offset < count else { return }
        memset(memory + offset, 0, min(length, count - offset))
    }

    /// All bytes.
    var all: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: memory, count: count) }

    /// Those of a range that are in the file.
    func part(_ offset: Int, _ length: Int) -> UnsafeRawBufferPointer {
        guard offset >= 0, offset < count else { return UnsafeRawBufferPointer(start: nil, count: 0) }
        return UnsafeRawBufferPointer(start: memory + offset, count: min(length, count - offset))
    }

    /// A big-endian number of 8 bytes; 0 behind the end.
    func u64(_ offset: Int) -> UInt64 {
        guard offset >= 0, offset <= count - 8 else { return 0 }
        return UInt64(bigEndian: memory.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    /// A big-endian number of 4 bytes; 0 behind the end.
    func u32(_ offset: Int) -> UInt32 {
        guard offset >= 0, offset <= count - 4 else { return 0 }
        return UInt32(bigEndian: memory.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    /// A big-endian number of 2 bytes; 0 behind the end.
    func u16(_ offset: Int) -> UInt16 {
        guard offset >= 0, offset <= count - 2 else { return 0 }
        return UInt16(bigEndian: memory.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }

    /// One byte; 0 behind the end.
    func u8(_ offset: Int) -> UInt8 {
        offset >= 0 && offset < count ? memory.load(fromByteOffset: offset, as: UInt8.self) : 0
    }

    /// Puts one byte.
    func put8(_ value: UInt8, at offset: Int) { withUnsafeBytes(of: value) { write($0, at: offset) } }

    /// Puts a big-endian number of 8 bytes.
    func put64(_ value: UInt64, at offset: Int) {
        withUnsafeBytes(of: value.bigEndian) { write($0, at: offset) }
    }

    /// Puts a big-endian number of 4 bytes.
    func put32(_ value: UInt32, at offset: Int) {
        withUnsafeBytes(of: value.bigEndian) { write($0, at: offset) }
    }

    /// True where both have the same bytes in a range.
    func isEqual(to other: ByteImage, _ offset: Int, _ length: Int) -> Bool {
        let (mine, theirs) = (part(offset, length), other.part(offset, length))
        guard mine.count == theirs.count else { return false }
        guard let a = mine.baseAddress, let b = theirs.baseAddress else { return true }
        return memcmp(a, b, mine.count) == 0
    }

    /// Where it differs from another file of the same length, in words of 8 bytes.
    func differences(from other: ByteImage) -> [String] {
        stride(from: 0, to: count - 7, by: 8).filter { u64($0) != other.u64($0) }
            .map { "\($0): \(String(other.u64($0), radix: 16)) became \(String(u64($0), radix: 16))" }
    }

    /// Writes all of it to a file of the machine, with holes where it has zeroes.
    func save(_ path: String) throws {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        guard descriptor >= 0 else { throw SimulationError("cannot write \(path): errno \(errno)") }
        defer { close(descriptor) }
        guard ftruncate(descriptor, count) == 0 else { throw SimulationError("cannot size \(path): errno \(errno)") }
        var offset = 0
        while offset < count {
            let length = min(65536, count - offset)
            if !isZero(offset, length), pwrite(descriptor, memory + offset, length, offset) != length {
                throw SimulationError("cannot write \(path): errno \(errno)")
            }
            offset += length
        }
    }

    /// True where a range has zeroes only.
    func isZero(_ offset: Int, _ length: Int) -> Bool { part(offset, length).isZero }
}

extension UnsafeRawBufferPointer {
    /// True where there are zeroes only.
    var isZero: Bool {
        guard let baseAddress, count > 0 else { return true }
        return self[0] == 0 && memcmp(baseAddress, baseAddress + 1, count - 1) == 0
    }
}

/// Something that a test needs did not work, or a history went wrong.
struct SimulationError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}
