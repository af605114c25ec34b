// SPDX-License-Identifier: BSD-2-Clause
// Pages that another domain reads and writes while we do.
//
// The rule of this file: no reference, span or pointer to these bytes gets out. The accessors below read each byte
// once, into private memory, and only the private copy is checked and used.
public import CRing

/// Pages shared with another domain: a mapped ring.
///
/// A view: its creator unmaps the pages after the last use. Offsets are in bytes, within the pages and multiples of
/// four; anything else is a bug of ours and traps. The other side may change the bytes at any time.
///
/// `@unchecked Sendable`: the pointer is constant, and its bytes are reached only by the accessors below, which expect
/// them to change at any time.
@safe
public struct SharedPages: @unchecked Sendable {
    @usableFromInline let base: UnsafeMutableRawPointer
    /// Bytes that are shared.
    public let byteCount: Int

    /// A view of `byteCount` bytes at `base`, which must be page-aligned and stay mapped while the view is used. At least
    /// one slot long.
    @unsafe public init(base: UnsafeMutableRawPointer, byteCount: Int) {
        // So that no accessor's size is larger.
        precondition(byteCount >= SlotBytes.byteCount)
        unsafe self.base = base
        self.byteCount = byteCount
    }

    /// Where the pages are mapped; for C code that has accessors of its own.
    @unsafe public var address: UnsafeMutableRawPointer { unsafe base }

    @inlinable @inline(__always)
    func at(_ offset: Int, _ size: Int) -> UnsafeMutableRawPointer {
        // As an unsigned number, a negative offset is larger than any.
        precondition(UInt(bitPattern: offset) <= UInt(bitPattern: byteCount &- size) && offset & 3 == 0)
        return unsafe base + offset
    }

    /// Loads 32 bits; later reads are not moved before it.
    @inlinable @inline(__always)
    public func loadAcquire(at offset: Int) -> UInt32 {
        unsafe cring_load32_acquire(at(offset, 4))
    }

    /// Loads 32 bits with no ordering.
    @inlinable @inline(__always)
    public func load(at offset: Int) -> UInt32 {
        unsafe cring_load32_relaxed(at(offset, 4))
    }

    /// Stores 32 bits after everything that was written before.
    @inlinable @inline(__always)
    public func storeRelease(_ value: UInt32, at offset: Int) {
        unsafe cring_store32_release(at(offset, 4), value)
    }

    /// Stores 32 bits with no ordering.
    @inlinable @inline(__always)
    public func store(_ value: UInt32, at offset: Int) {
        unsafe cring_store32_relaxed(at(offset, 4), value)
    }

    /// Loads 64 bits with no ordering; the offset is a multiple of eight.
    @inlinable @inline(__always)
    public func load64(at offset: Int) -> UInt64 {
        precondition(offset & 7 == 0)
        return unsafe cring_load64_relaxed(at(offset, 8))
    }

    /// Stores 64 bits with no ordering; the offset is a multiple of eight.
    @inlinable @inline(__always)
    public func store64(_ value: UInt64, at offset: Int) {
        precondition(offset & 7 == 0)
        unsafe cring_store64_relaxed(at(offset, 8), value)
    }

    /// Stores 64 bits after everything that was written before; the offset is a multiple of eight.
    @inlinable @inline(__always)
    public func storeRelease64(_ value: UInt64, at offset: Int) {
        precondition(offset & 7 == 0)
        unsafe cring_store64_release(at(offset, 8), value)
    }

    /// Writes the 12 bytes of a response and, with `hasTail`, four zero bytes behind them.
    @inlinable @inline(__always)
    public func storeResponse(_ id: UInt64, _ rest: UInt32, hasTail: Bool, at offset: Int) {
        // A slot is longer than any response, so that the tail's bytes are inside in either case.
        let target = unsafe at(offset, 16)
        unsafe cring_store32_relaxed(target, UInt32(truncatingIfNeeded: id))
        unsafe cring_store32_relaxed(target + 4, UInt32(truncatingIfNeeded: id >> 32))
        unsafe cring_store32_relaxed(target + 8, rest)
        if hasTail { unsafe cring_store32_relaxed(target + 12, 0) }
    }

    /// Orders all earlier accesses before all later ones.
    @inlinable @inline(__always)
    public static func fullFence() {
        cring_full_fence()
    }

    /// Writes the first `byteCount` bytes of a slot, a multiple of four. For frontends.
    @inlinable @inline(__always)
    public func storeSlot(_ slot: SlotBytes, at offset: Int, byteCount: Int) {
        precondition(byteCount >= 0 && byteCount <= SlotBytes.byteCount && byteCount & 3 == 0)
        let target = unsafe at(offset, byteCount)
        unsafe withUnsafeBytes(of: slot.words) { source in
            guard let base = source.baseAddress else { return }
            unsafe target.copyMemory(from: base, byteCount: byteCount)
        }
    }

    /// Copies a slot of `byteCount` bytes, a multiple of four and at most 112, each word read exactly once.
    @inlinable @inline(__always)
    public func copySlot(at offset: Int, byteCount: Int, into copy: inout SlotBytes) {
        precondition(byteCount >= 0 && byteCount <= SlotBytes.byteCount && byteCount & 3 == 0)
        let source = unsafe at(offset, byteCount)
        unsafe withUnsafeMutableBytes(of: &copy.words) { target in
            guard let base = target.baseAddress else { return }
            if byteCount == SlotBytes.byteCount && offset & 7 == 0 {
                unsafe cring_copy_in_112(base, source)
            } else {
                unsafe cring_copy_in(base, source, byteCount / 4)
            }
        }
    }
}

/// A private copy of one ring slot: 112 bytes, the size of the largest one.
public struct SlotBytes: BitwiseCopyable, Sendable {
    /// Size in bytes.
    public static let byteCount = 112
    @usableFromInline var words: InlineArray<14, UInt64>

    /// All bytes zero.
    public init() {
        words = InlineArray(repeating: 0)
    }

    /// Reads an integer of at most 64 bits at a byte offset, which need not be aligned. Little-endian, like every Xen
    /// host that blkif runs on.
    @inlinable @inline(__always)
    public func load<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type, at offset: Int) -> T {
        precondition(offset >= 0 && offset <= Self.byteCount - MemoryLayout<T>.size && MemoryLayout<T>.size <= 8)
        // Shifts whole words: a pointer to the bytes would copy the slot for each integer.
        let index = offset >> 3
        let shift = UInt64(truncatingIfNeeded: (offset & 7) << 3)
        var bits = words[index] &>> shift
        if (offset & 7) + MemoryLayout<T>.size > 8 { bits |= words[index + 1] &<< (64 &- shift) }
        return T(truncatingIfNeeded: bits)
    }

    /// Writes an integer at a byte offset. For frontends and tests.
    public mutating func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at offset: Int) {
        precondition(offset >= 0 && offset <= Self.byteCount - MemoryLayout<T>.size)
        unsafe withUnsafeMutableBytes(of: &words) { unsafe $0.storeBytes(of: value, toByteOffset: offset, as: T.self) }
    }
}
