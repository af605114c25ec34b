// SPDX-License-Identifier: BSD-2-Clause
// What stands in a sector, as one number.
import Glibc

@testable import BlockQueue

/// A sector full of one number's pattern: 0 for zeroes. Whoever sees a mixture of two sectors sees ``torn``.
enum SectorTag {
    static let size = 512
    /// No number's pattern.
    static let torn = UInt64.max

    /// Fills a sector with the pattern of `tag`.
    static func fill(_ sector: UnsafeMutableRawPointer, _ tag: UInt64) {
        memset(sector, Int32(tag & 0xff), size)
        sector.storeBytes(of: tag, as: UInt64.self)
        (sector + size - 8).storeBytes(of: ~tag, as: UInt64.self)
        if tag == 0 { memset(sector, 0, size) }
    }

    /// The number whose pattern a sector has.
    static func read(_ sector: UnsafeRawPointer) -> UInt64 {
        let tag = sector.loadUnaligned(as: UInt64.self)
        let end = (sector + size - 8).loadUnaligned(as: UInt64.self)
        let byte = (sector + 8).load(as: UInt8.self)
        guard byte == UInt8(truncatingIfNeeded: tag), end == (tag == 0 ? 0 : ~tag),
            memcmp(sector + 8, sector + 9, size - 17) == 0
        else { return torn }
        return tag
    }
}
