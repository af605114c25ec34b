// SPDX-License-Identifier: BSD-2-Clause
// Big-endian numbers at places that may be wrong.

/// The first bytes of an image, read by offset. Nothing behind their end is read: that is an error.
public struct ByteReader: Sendable {
    private let bytes: [UInt8]
    /// Bytes.
    public var count: Int { bytes.count }

    /// A reader of these bytes.
    public init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// The bytes of a range, or none if it is not all there.
    public func slice(_ offset: UInt64, _ length: UInt64) -> [UInt8] {
        guard offset <= UInt64(bytes.count), length <= UInt64(bytes.count) - offset else { return [] }
        return Array(bytes[Int(offset)..<Int(offset + length)])
    }

    /// One byte.
    public func u8(_ offset: UInt64) throws(ImageError) -> UInt8 { UInt8(truncatingIfNeeded: try number(offset, 1)) }
    /// Two bytes.
    public func u16(_ offset: UInt64) throws(ImageError) -> UInt16 { UInt16(truncatingIfNeeded: try number(offset, 2)) }
    /// Four bytes.
    public func u32(_ offset: UInt64) throws(ImageError) -> UInt32 { UInt32(truncatingIfNeeded: try number(offset, 4)) }
    /// Eight bytes.
    public func u64(_ offset: UInt64) throws(ImageError) -> UInt64 { try number(offset, 8) }

    private func number(_ offset: UInt64, _ length: UInt64) throws(ImageError) -> UInt64 {
        let part = slice(offset, length)
        guard !part.isEmpty else {
            throw .damaged("it ends after \(bytes.count) bytes, in the middle of its header")
        }
        return part.reduce(0) { $0 << 8 | UInt64($1) }
    }
}
