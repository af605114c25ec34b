// SPDX-License-Identifier: BSD-2-Clause
// Blocks that contain their own place and the number of their write, and show whether they are whole.
import Support

/// What is wrong with a block that was read back.
public enum VerifyFault: Error, Sendable, Equatable, CustomStringConvertible {
    /// The block does not begin with the magic number: never written, zeroed or foreign.
    case noHeader(offset: UInt64, found: UInt64, expected: UInt64)
    /// A block of another place.
    case misplaced(offset: UInt64, found: UInt64)
    /// A block of another run.
    case otherRun(offset: UInt64)
    /// A block of an older or a newer write.
    case wrongGeneration(offset: UInt64, found: UInt64, expected: UInt64)
    /// The bytes do not have the checksum of the header.
    case checksum(offset: UInt64, found: UInt32, expected: UInt32)

    /// One line with the place in bytes.
    public var description: String {
        switch self {
        case .noHeader(let offset, let found, let expected):
            "block at \(offset) has no header: it begins with 0x\(String(found, radix: 16)); "
                + "generation \(expected) was written"
        case .misplaced(let offset, let found): "block at \(offset) is the block of \(found)"
        case .otherRun(let offset): "block at \(offset) was written by another run"
        case .wrongGeneration(let offset, let found, let expected):
            "block at \(offset) has generation \(found), \(expected) was written"
        case .checksum(let offset, let found, let expected):
            "block at \(offset) has crc32c 0x\(String(found, radix: 16)), its header says "
                + "0x\(String(expected, radix: 16))"
        }
    }
}

/// Fills and checks blocks. A block is a header of 40 bytes and a random fill that depends on all of the header.
///
/// ```
///  0  mark         8  offset in bytes     16  generation    24  run     32  crc32c of the block with this field 0
/// ```
///
/// Unsafe code here reads and writes within the block that it is given.
public struct VerifyPattern: Sendable {
    /// The magic number, "XBBverfy".
    static let mark: UInt64 = 0x7966_7265_7642_4258
    /// Bytes of the header.
    public static let headerSize = 40
    /// A number that distinguishes this run's blocks from those of other runs.
    public let run: UInt64

    /// A pattern of the run.
    public init(run: UInt64) {
        self.run = run
    }

    /// Fills a block, at least 512 bytes long, for the place `offset`.
    @unsafe public func fill(_ block: UnsafeMutableRawBufferPointer, offset: UInt64, generation: UInt64) {
        var random = SplitMix64(seed: run ^ offset &* 0x9e37_79b9_7f4a_7c15 ^ generation << 32)
        var position = Self.headerSize
        while position + 8 <= block.count {
            unsafe block.storeBytes(of: random.next(), toByteOffset: position, as: UInt64.self)
            position += 8
        }
        unsafe block.storeBytes(of: Self.mark, toByteOffset: 0, as: UInt64.self)
        unsafe block.storeBytes(of: offset, toByteOffset: 8, as: UInt64.self)
        unsafe block.storeBytes(of: generation, toByteOffset: 16, as: UInt64.self)
        unsafe block.storeBytes(of: run, toByteOffset: 24, as: UInt64.self)
        unsafe block.storeBytes(of: 0, toByteOffset: 32, as: UInt64.self)
        let sum = unsafe CRC32C.checksum(UnsafeRawBufferPointer(block))
        unsafe block.storeBytes(of: UInt64(sum), toByteOffset: 32, as: UInt64.self)
    }

    /// Checks a block against what was written to this place. Sets the checksum field of the block to zero.
    @unsafe public func check(
        _ block: UnsafeMutableRawBufferPointer, offset: UInt64, generation: UInt64
    ) throws(VerifyFault) {
        let mark = unsafe block.load(fromByteOffset: 0, as: UInt64.self)
        guard mark == Self.mark else { throw .noHeader(offset: offset, found: mark, expected: generation) }
        let place = unsafe block.load(fromByteOffset: 8, as: UInt64.self)
        guard place == offset else { throw .misplaced(offset: offset, found: place) }
        guard unsafe block.load(fromByteOffset: 24, as: UInt64.self) == run else { throw .otherRun(offset: offset) }
        let found = unsafe block.load(fromByteOffset: 16, as: UInt64.self)
        guard found == generation else {
            throw .wrongGeneration(offset: offset, found: found, expected: generation)
        }
        let stored = unsafe block.load(fromByteOffset: 32, as: UInt64.self)
        unsafe block.storeBytes(of: 0, toByteOffset: 32, as: UInt64.self)
        let sum = unsafe CRC32C.checksum(UnsafeRawBufferPointer(block))
        guard stored == UInt64(sum) else {
            throw .checksum(offset: offset, found: sum, expected: UInt32(truncatingIfNeeded: stored))
        }
    }
}
