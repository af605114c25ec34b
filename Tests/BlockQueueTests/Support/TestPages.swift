// SPDX-License-Identifier: BSD-2-Clause
// Page-aligned memory of a test.
import Glibc
import Memory

@testable import BlockQueue

/// Pages on the heap, full of `filling`.
final class TestPages: @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    let byteCount: Int

    init(pages: Int, filling: UInt8 = 0xA5) {
        byteCount = pages * 4096
        base = .allocate(byteCount: byteCount, alignment: 4096)
        memset(base, Int32(filling), byteCount)
    }

    deinit { base.deallocate() }

    var shared: SharedPages { SharedPages(base: base, byteCount: byteCount) }
}
