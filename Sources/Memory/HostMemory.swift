// SPDX-License-Identifier: BSD-2-Clause
// Private memory for the data of requests.
import CLinux

/// A private, page-aligned, zeroed region that holds the data of requests between the guest and a plugin.
///
/// Pages that were never touched occupy no memory. Offsets are in bytes and checked.
@safe
public final class HostMemory: Sendable {
    /// `nonisolated(unsafe)`: the address is constant, and the owner of a range of bytes passes it between threads.
    @usableFromInline nonisolated(unsafe) let base: UnsafeMutableRawPointer
    /// Size in bytes, a multiple of the page size.
    public let byteCount: Int

    /// Reserves `byteCount` bytes, rounded up to whole pages; nil if the kernel refuses.
    public init?(byteCount: Int) {
        guard byteCount <= Int.max - 4095 else { return nil }
        let rounded = (max(byteCount, 1) + 4095) & ~4095
        let address = unsafe clinux_mmap(
            nil, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let address = unsafe address else { return nil }
        unsafe base = address
        self.byteCount = rounded
    }

    deinit {
        unsafe munmap(base, byteCount)
    }

    /// The address of `count` bytes at `offset`, valid as long as the region lives.
    @inlinable @inline(__always)
    @unsafe public func address(at offset: Int, count: Int) -> UnsafeMutableRawPointer {
        // As unsigned numbers, negative ones are larger than any size.
        precondition(UInt(bitPattern: count) <= UInt(bitPattern: byteCount))
        precondition(UInt(bitPattern: offset) <= UInt(bitPattern: byteCount &- count))
        return unsafe base + offset
    }

    /// Sets `count` bytes at `offset` to zero.
    public func clear(at offset: Int, count: Int) {
        _ = unsafe memset(address(at: offset, count: count), 0, count)
    }

    /// True if all of `count` bytes at `offset` are zero.
    public func isZero(at offset: Int, count: Int) -> Bool {
        guard count >= 8 else { return bytes(at: offset, count: count).allSatisfy { $0 == 0 } }
        let start = unsafe address(at: offset, count: count)
        // Each byte is the one eight before it, and the first eight are zero.
        return unsafe start.loadUnaligned(as: UInt64.self) == 0 && memcmp(start, start + 8, count - 8) == 0
    }

    /// Copies `count` bytes inside the region; the ranges may overlap.
    public func move(from source: Int, to target: Int, count: Int) {
        _ = unsafe memmove(address(at: target, count: count), address(at: source, count: count), count)
    }

    /// Returns the pages of a range to the kernel; they read as zeroes afterwards. Both numbers must be multiples of
    /// 4096: the kernel refuses other offsets and clears whole pages.
    public func discard(at offset: Int, count: Int) {
        precondition(offset & 4095 == 0 && count & 4095 == 0)
        _ = unsafe madvise(address(at: offset, count: count), count, MADV_DONTNEED)
    }

    /// The 64 bits at `offset`, a multiple of eight.
    @inlinable @inline(__always)
    public func load64(at offset: Int) -> UInt64 {
        precondition(offset & 7 == 0)
        return unsafe address(at: offset, count: 8).load(as: UInt64.self)
    }

    /// A private copy of `count` bytes at `offset`.
    public func bytes(at offset: Int, count: Int) -> [UInt8] {
        let start = unsafe address(at: offset, count: count)
        return unsafe [UInt8](UnsafeRawBufferPointer(start: start, count: count))
    }

    /// Writes `bytes` at `offset`.
    public func store(_ bytes: [UInt8], at offset: Int) {
        let target = unsafe address(at: offset, count: bytes.count)
        unsafe bytes.withUnsafeBytes { source in
            guard let from = source.baseAddress else { return }
            unsafe target.copyMemory(from: from, byteCount: source.count)
        }
    }
}
