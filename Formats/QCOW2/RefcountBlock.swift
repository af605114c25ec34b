// SPDX-License-Identifier: BSD-2-Clause
// The refcounts of a range of clusters, as they stand in a block: 1 to 64 bits each, big-endian; below 8 bits the first one
// is in the lowest bits of a byte.

/// A refcount block in memory. Indexes are below the number of refcounts that fit.
public struct RefcountBlock: Sendable, Equatable {
    /// As in the file.
    public private(set) var bytes: [UInt8]
    private let order: UInt64

    /// A block from the file; `order` is the width of a refcount in bits, as a power of two.
    public init(_ bytes: [UInt8], order: UInt64) {
        self.bytes = bytes
        self.order = order
    }

    /// Refcounts in it.
    public var count: Int { order >= 3 ? bytes.count >> Int(order - 3) : bytes.count << Int(3 - order) }

    /// The bytes that a refcount stands in.
    public func place(of index: Int) -> Range<Int> {
        guard order >= 3 else {
            let byte = index >> Int(3 - order)
            return byte..<byte + 1
        }
        let width = 1 << Int(order - 3)
        return index * width..<(index + 1) * width
    }

    /// A refcount; 0 outside of the block.
    public subscript(index: Int) -> UInt64 {
        get {
            let place = place(of: index)
            guard index >= 0, place.upperBound <= bytes.count else { return 0 }
            if order < 3 { return UInt64(bytes[place.lowerBound]) >> shift(of: index) & mask }
            return bytes[place].reduce(0) { $0 << 8 | UInt64($1) }
        }
        set {
            let place = place(of: index)
            guard index >= 0, place.upperBound <= bytes.count else { return }
            if order < 3 {
                let (old, shift) = (UInt64(bytes[place.lowerBound]), shift(of: index))
                bytes[place.lowerBound] = UInt8(truncatingIfNeeded: old & ~(mask << shift) | (newValue & mask) << shift)
                return
            }
            var rest = newValue
            for byte in place.reversed() {
                bytes[byte] = UInt8(truncatingIfNeeded: rest)
                rest >>= 8
            }
        }
    }

    /// True if a refcount is not 0.
    public var isUsed: Bool { bytes.contains { $0 != 0 } }

    private var mask: UInt64 { (1 << (1 << order)) - 1 }
    private func shift(of index: Int) -> UInt64 { UInt64(index & ((1 << Int(3 - order)) - 1)) << order }
}
