// SPDX-License-Identifier: BSD-2-Clause
// Big-endian numbers in bytes that somebody else owns.

extension RawSpan {
    /// A number at an offset whose bytes lie within the span: behind its end it traps, as that is a bug of the reader.
    @inlinable @inline(__always)
    func number<Number: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, _ type: Number.Type = Number.self) -> Number
    {
        // Bytes of any value are an integer, and the span compares the place with its end.
        Number(bigEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: Number.self))
    }

    /// The byte at an offset within the span.
    @inlinable @inline(__always)
    func byte(_ offset: Int) -> UInt8 { number(offset) }
}
