// SPDX-License-Identifier: BSD-2-Clause
// Numbers on their way into the file, and memory that direct I/O can use.
import Glibc
import ImageCore

/// Lets a negative errno of the storage end what is going on. `words` say what could not be done.
public func check(_ code: Int32, _ words: String) throws(ImageError) {
    if code != 0 { throw ImageError(.unreadable(code < 0 ? -code : EIO), words) }
}

extension Collection<UInt64> {
    /// As they stand in tables.
    public var bigEndianBytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count * 8)
        for word in self {
            for shift in stride(from: UInt64(56), through: 0, by: -8) {
                bytes.append(UInt8(truncatingIfNeeded: word >> shift))
            }
        }
        return bytes
    }
}

extension ImageStorage {
    /// Writes bytes of an array.
    public func write(_ bytes: some Collection<UInt8>, at offset: UInt64) -> Int32 {
        let array = ContiguousArray(bytes)
        // Bytes of any value are valid elements.
        return write(unsafe array.span.bytes, at: offset)
    }

    /// Writes one number of 8 bytes. It never straddles a sector, because its place is a multiple of 8.
    @inline(__always)
    public func write(number: UInt64, at offset: UInt64) -> Int32 {
        var word = number.bigEndian
        return unsafe withUnsafeBytes(of: &word) { bytes in write(unsafe bytes.bytes, at: offset) }
    }
}

/// Memory for whole clusters on their way, aligned for direct I/O.
@safe
public final class Bounce {
    private let base: UnsafeMutableRawPointer
    /// Bytes.
    public let count: Int

    /// nil: no memory.
    public init?(_ count: Int) {
        var memory: UnsafeMutableRawPointer?
        guard unsafe posix_memalign(&memory, 4096, max(count, 1)) == 0, let base = unsafe memory else { return nil }
        unsafe self.base = base
        self.count = count
    }

    deinit { unsafe free(base) }

    /// The bytes of a range of it, to be changed.
    public func with<Result>(_ range: Range<Int>, _ body: (inout MutableRawSpan) -> Result) -> Result {
        let range = range.clamped(to: 0..<count)
        var span = unsafe UnsafeMutableRawBufferPointer(start: base + range.lowerBound, count: range.count).mutableBytes
        return body(&span)
    }

    /// The same, to be read.
    public func reading<Result>(_ range: Range<Int>, _ body: (RawSpan) -> Result) -> Result {
        let range = range.clamped(to: 0..<count)
        return body(unsafe UnsafeRawBufferPointer(start: base + range.lowerBound, count: range.count).bytes)
    }

    /// Makes a range zeroes.
    public func zero(_ range: Range<Int>) {
        let range = range.clamped(to: 0..<count)
        unsafe _ = memset(base + range.lowerBound, 0, range.count)
    }
}
