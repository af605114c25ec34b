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
    /// One bit for each page, set while it is free.
    private var freeBits: FixedArray<UInt64>
    /// No word before this one has a free page; always the index of a word.
    private var lowestWord = 0

    /// All pages free.
    init(pageCount: Int) {
        self.pageCount = pageCount
        let words = (pageCount + 63) / 64
        freeBits = FixedArray(zeroed: max(words, 1))
        for page in 0..<pageCount { freeBits[page >> 6] |= 1 << UInt64(page & 63) }
    }

    /// The first page of a free run of `count` pages, now in use; nil when there is none.
    @inline(__always)
    mutating func allocate(_ count: Int) -> Int? {
        if count == 1 && freeBits[lowestWord] != 0 {
            let bits = freeBits[lowestWord]
            freeBits[lowestWord] = bits & (bits &- 1)
            pagesInUse &+= 1
            return lowestWord &<< 6 &+ bits.trailingZeroBitCount
        }
        return allocateRun(count)
    }

    /// Takes `count` pages in at most `most` runs, the longest ones first as far as halving finds them.
    ///
    /// `take` gets each run; false, and nothing is in use that was not, where it would take more runs.
    mutating func allocateRuns(_ count: Int, most: Int, _ take: (BufferRun) -> Void) -> Bool {
        if pageCount &- pagesInUse < count { return false }
        var runs = InlineArray<8, BufferRun>(repeating: BufferRun(page: 0, pages: 0))
        var used = 0
        var left = count
        var size = count
        while left > 0 && used < min(most, 8) {
            size = min(size, left)
            while size > 1, firstRun(size) == nil { size = (size + 1) / 2 }
            guard let start = allocateRun(size) else { break }
            runs[used] = BufferRun(page: Int32(truncatingIfNeeded: start), pages: Int32(truncatingIfNeeded: size))
            used += 1
            left -= size
        }
        for index in 0..<used {
            if left > 0 { release(Int(runs[index].page), Int(runs[index].pages)) } else { take(runs[index]) }
        }
        return left == 0
    }

    /// Gives a run back.
    @inline(__always)
    mutating func release(_ start: Int, _ count: Int) {
        if count == 1 {
            freeBits[start &>> 6] |= 1 &<< UInt64(truncatingIfNeeded: start & 63)
        } else {
            releaseRun(start, count)
        }
        pagesInUse &-= count
        lowestWord = min(lowestWord, start &>> 6)
    }

    @inline(never)
    private mutating func allocateRun(_ count: Int) -> Int? {
        precondition(count > 0)
        guard let start = count == 1 ? firstFreePage() : firstRun(count) else { return nil }
        for page in start..<(start + count) { freeBits[page >> 6] &= ~(1 << UInt64(page & 63)) }
        pagesInUse += count
        return start
    }

    @inline(never)
    private mutating func releaseRun(_ start: Int, _ count: Int) {
        for page in start..<(start + count) { freeBits[page >> 6] |= 1 << UInt64(page & 63) }
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
        lowestWord = freeBits.count - 1
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
