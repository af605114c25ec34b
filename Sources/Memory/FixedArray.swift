// SPDX-License-Identifier: BSD-2-Clause
// An array of plain values whose size and address never change.

/// A fixed number of plain values at a fixed address, allocated once and zeroed.
///
/// Swift's `Array` may move, grow and count references. A pool on the hot path must do none of this, and a plugin keeps
/// the addresses of requests. Indices are checked: an index out of bounds is a bug of ours and traps.
@safe
public struct FixedArray<Element: BitwiseCopyable>: ~Copyable {
    @usableFromInline let base: UnsafeMutablePointer<Element>
    /// The number of elements.
    public let count: Int

    /// Allocates `count` elements whose bytes are all zero.
    ///
    /// `alignment` is in bytes; 64, a cache line, by default.
    public init(zeroed count: Int, alignment: Int = 64) {
        precondition(count >= 0)
        let bytes = max(count * MemoryLayout<Element>.stride, 1)
        let raw = UnsafeMutableRawPointer.allocate(
            byteCount: bytes, alignment: max(alignment, MemoryLayout<Element>.alignment))
        unsafe raw.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
        unsafe base = raw.assumingMemoryBound(to: Element.self)
        self.count = count
    }

    deinit {
        unsafe UnsafeMutableRawPointer(base).deallocate()
    }

    /// One comparison covers both ends: as an unsigned number, a negative index is larger than any count.
    @inlinable @inline(__always)
    func checkIndex(_ index: Int) {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: count))
    }

    /// The element at `index`, in place.
    @inlinable
    public subscript(index: Int) -> Element {
        @inline(__always) unsafeAddress {
            checkIndex(index)
            return unsafe UnsafePointer(base + index)
        }
        @inline(__always) unsafeMutableAddress {
            checkIndex(index)
            return unsafe base + index
        }
    }

    /// The address of the element at `index`, valid as long as the array lives.
    @inlinable @inline(__always)
    @unsafe public func address(of index: Int) -> UnsafeMutablePointer<Element> {
        checkIndex(index)
        return unsafe base + index
    }
}

/// `@unchecked`: the array owns its memory alone, so it may be passed on wherever its elements may.
extension FixedArray: @unchecked Sendable where Element: Sendable {}
