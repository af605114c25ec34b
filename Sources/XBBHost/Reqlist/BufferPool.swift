// SPDX-License-Identifier: BSD-2-Clause
// Which pages of a queue's data memory are in use.
import Memory

/// Contiguous runs of pages of a queue's ``HostMemory``, first fit.
///
/// First fit hands out the same few pages again while the load is small, so they stay in the cache and the rest of
/// the memory stays untouched. The size is fixed: when no run is free, the caller keeps the request and waits.
struct BufferPool: ~Copyable {
    static let pageSize = 4096
    let pageCount: Int
    private(set) var pagesInUse = 0
    private(set) var mostPagesInUse = 0
    /// One bit for each page, set while it is free.
    private var freeBits: FixedArray<UInt64>
    /// No word before this one has a free page.
    private var lowestWord = 0

    /// All pages free.
    init(pageCount: Int) {
        self.pageCount = pageCount
        let words = (pageCount + 63) / 64
        freeBits = FixedArray(zeroed: max(words, 1))
        for page in 0..<pageCount { freeBits[page >> 6] |= 1 << UInt64(page & 63) }
    }

    /// The first page of a free run of `count` pages, now in use; nil when there is none.
    mutating func allocate(_ count: Int) -> Int? {
        precondition(count > 0)
        guard let start = count == 1 ? firstFreePage() : firstRun(count) else { return nil }
        for page in start..<(start + count) { freeBits[page >> 6] &= ~(1 << UInt64(page & 63)) }
        pagesInUse += count
        if pagesInUse > mostPagesInUse { mostPagesInUse = pagesInUse }
        return start
    }

    /// Gives a run back.
    mutating func release(_ start: Int, _ count: Int) {
        for page in start..<(start + count) { freeBits[page >> 6] |= 1 << UInt64(page & 63) }
        pagesInUse -= count
        if start >> 6 < lowestWord { lowestWord = start >> 6 }
    }

    private mutating func firstFreePage() -> Int? {
        var word = lowestWord
        while word < freeBits.count {
            let bits = freeBits[word]
            if bits != 0 {
                lowestWord = word
                return word << 6 + bits.trailingZeroBitCount
            }
            word += 1
        }
        lowestWord = freeBits.count
        return nil
    }

    private func firstRun(_ count: Int) -> Int? {
        var page = lowestWord << 6
        var length = 0
        while page < pageCount {
            let bits = freeBits[page >> 6]
            if bits == 0 && page & 63 == 0 {
                length = 0
                page += 64
                continue
            }
            if bits & (1 << UInt64(page & 63)) != 0 {
                length += 1
                if length == count { return page - count + 1 }
            } else {
                length = 0
            }
            page += 1
        }
        return nil
    }
}
