// SPDX-License-Identifier: BSD-2-Clause
// Pages of a ring for tests, and the bytes of slots.
import CBlkifOracle
import Glibc
import Memory
import TestSupport

@testable import Blkif

/// Pages of 4096 bytes that a test's two sides share. Full of 0xA5, so that a byte that should be written shows.
final class TestPages: @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    let byteCount: Int

    init(pages: Int) {
        byteCount = pages * 4096
        base = .allocate(byteCount: byteCount, alignment: 4096)
        memset(base, 0xA5, byteCount)
    }

    deinit { base.deallocate() }

    var shared: SharedPages { SharedPages(base: base, byteCount: byteCount) }

    func byte(at offset: Int) -> UInt8 { base.load(fromByteOffset: offset, as: UInt8.self) }
    func word(at offset: Int) -> UInt32 { shared.load(at: offset) }
    func set(_ value: UInt32, at offset: Int) { shared.store(value, at: offset) }

    /// The first byte that is not the same, or nil.
    func firstDifference(from other: TestPages) -> Int? {
        if memcmp(base, other.base, byteCount) == 0 { return nil }
        return (0..<byteCount).first { byte(at: $0) != other.byte(at: $0) }
    }
}

extension RingABI {
    /// The C oracle of the ABI.
    var oracle: UnsafePointer<oracle> { self == .x86_32 ? oracle_x86_32() : oracle_x86_64() }
}

extension SlotBytes {
    /// A slot of random bytes.
    static func random(_ random: inout SplitMix64) -> SlotBytes {
        var slot = SlotBytes()
        for offset in stride(from: 0, to: byteCount, by: 8) { slot.store(random.next(), at: offset) }
        return slot
    }

    /// The first `count` bytes.
    func prefix(_ count: Int) -> [UInt8] { withUnsafeBytes(of: self) { Array($0.prefix(count)) } }

    /// True if the first `count` bytes are the same.
    func matches(_ other: SlotBytes, count: Int) -> Bool {
        withUnsafeBytes(of: self) { mine in
            withUnsafeBytes(of: other) { theirs in
                guard let first = mine.baseAddress, let second = theirs.baseAddress else { return false }
                return memcmp(first, second, count) == 0
            }
        }
    }

    /// Fills bytes of a range with random ones.
    mutating func scramble(_ range: Range<Int>, _ random: inout SplitMix64) {
        for offset in range { store(UInt8(truncatingIfNeeded: random.next()), at: offset) }
    }
}
