// SPDX-License-Identifier: BSD-2-Clause
// Bitmaps of blocks of which some sectors are the image's own: read when they are needed, written through, never dirty.
//
// A queue looks without a lock: a place has a number that changes before and after its content does. Bits are only ever set, so
// what a queue saw set stays set. Helper threads read and change bitmaps under a lock of the place.
import Glibc
import ImageCore
import ImageWriting
import Synchronization
import VHD

/// What a bitmap says of a range.
enum BitRange {
    case allSet
    case noneSet
    case mixed
    /// The bitmap is not in memory.
    case unknown
}

/// `@unchecked Sendable`: the memory never moves; what is in it is atomic, and changed under a lock.
@safe
final class BitmapCache: @unchecked Sendable {
    /// Sectors of a block.
    let sectors: Int
    private let wordCount: Int
    private let bitmapSize: Int
    /// A power of two.
    private let placeCount: Int
    /// For each place: a number in the upper half, odd while its content changes, and the block in the lower.
    private let tags: UnsafeMutablePointer<Atomic<UInt64>>
    private let words: UnsafeMutablePointer<Atomic<UInt64>>
    private let locks: [PlaceLock]

    private final class PlaceLock: Sendable { let mutex = Mutex(()) }
    private static let noBlock: UInt64 = 0xffff_ffff

    /// `memory`: bytes at most, for at least 16 bitmaps.
    init(_ header: VHDHeader, memory: UInt64) {
        sectors = Int(header.blockSize / 512)
        wordCount = (sectors + 63) / 64
        bitmapSize = Int(header.bitmapSize)
        let most = min(max(Int(clamping: memory) / (wordCount * 8 + 8), 16), Int(header.entryCount))
        var count = 1
        while count * 2 <= most { count *= 2 }
        placeCount = count
        unsafe tags = .allocate(capacity: count)
        for index in 0..<count { unsafe (tags + index).initialize(to: Atomic(Self.noBlock)) }
        // From calloc memory that is not used takes nothing.
        let bytes = unsafe calloc(count * wordCount, 8)
        if let bytes = unsafe bytes {
            unsafe words = bytes.bindMemory(to: Atomic<UInt64>.self, capacity: count * wordCount)
        } else {
            unsafe words = .allocate(capacity: count * wordCount)
            unsafe memset(words, 0, count * wordCount * 8)
        }
        locks = (0..<64).map { _ in PlaceLock() }
    }

    deinit {
        unsafe tags.deallocate()
        unsafe free(words)
    }

    /// What is known of sectors of a block without waiting.
    @inline(__always)
    func look(_ block: Int, _ range: Range<Int>) -> BitRange {
        let place = block & (placeCount - 1)
        let before = unsafe tags[place].load(ordering: .acquiring)
        guard before & 0xffff_ffff == UInt64(block), before >> 32 & 1 == 0 else { return .unknown }
        let found = judge(place, range)
        atomicMemoryFence(ordering: .acquiring)
        return unsafe tags[place].load(ordering: .relaxed) == before ? found : .unknown
    }

    private func judge(_ place: Int, _ range: Range<Int>) -> BitRange {
        let base = unsafe words + place * wordCount
        var (allSet, noneSet) = (true, true)
        var sector = range.lowerBound
        while sector < range.upperBound {
            let end = min((sector | 63) + 1, range.upperBound)
            let mask = Self.mask(sector..<end)
            let word = unsafe base[sector >> 6].load(ordering: .relaxed)
            if word & mask != mask { allSet = false }
            if word & mask != 0 { noneSet = false }
            sector = end
        }
        return allSet ? .allSet : noneSet ? .noneSet : .mixed
    }

    /// Bits of sectors that are in one word; the highest bit is the first sector.
    private static func mask(_ range: Range<Int>) -> UInt64 {
        (UInt64.max >> UInt64(64 - range.count)) << UInt64(63 - (range.upperBound - 1) & 63)
    }

    /// The first sectors of a range that are alike: whether they are set, and how many. Reads the bitmap if it is not here; throws the
    /// negative errno of that. `isFull` is true where all of the block is set.
    func run(
        _ block: Int, _ entry: BlockEntry, _ range: Range<Int>, _ storage: any ImageStorage
    ) throws(ImageError) -> (isSet: Bool, count: Int, isFull: Bool) {
        let place = block & (placeCount - 1)
        return try locked(place) { () throws(ImageError) in
            if try loadIfAbsent(place, block, entry, storage) { return (true, range.count, true) }
            let base = unsafe words + place * wordCount
            func bit(_ sector: Int) -> Bool {
                unsafe base[sector >> 6].load(ordering: .relaxed) >> UInt64(63 - sector & 63) & 1 == 1
            }
            let first = bit(range.lowerBound)
            var end = range.lowerBound + 1
            while end < range.upperBound, bit(end) == first { end += 1 }
            return (first, end - range.lowerBound, false)
        }
    }

    /// Sets bits in the file and then here. Throws where the file could not be written: whether it has them is not known then.
    ///
    /// - Returns: true if all bits of the block are set.
    func set(
        _ block: Int, _ entry: BlockEntry, _ ranges: [Range<Int>], _ storage: any ImageStorage
    ) throws(ImageError) -> Bool {
        let place = block & (placeCount - 1)
        return try locked(place) { () throws(ImageError) -> Bool in
            if try loadIfAbsent(place, block, entry, storage) { return true }
            let base = unsafe words + place * wordCount
            var new = (0..<wordCount).map { unsafe base[$0].load(ordering: .relaxed) }
            let old = new
            for range in ranges {
                var sector = range.lowerBound
                while sector < range.upperBound {
                    let end = min((sector | 63) + 1, range.upperBound)
                    new[sector >> 6] |= Self.mask(sector..<end)
                    sector = end
                }
            }
            // Whole sectors of the file, and only those that change.
            for first in stride(from: 0, to: wordCount, by: 64) {
                let part = first..<min(first + 64, wordCount)
                guard new[part] != old[part] else { continue }
                var bytes = new[part].bigEndianBytes
                bytes += [UInt8](repeating: 0, count: 512 - bytes.count)
                try check(
                    storage.write(bytes, at: entry.place + UInt64(first * 8)), "cannot write the bitmap of a block")
            }
            for index in 0..<wordCount where new[index] != old[index] {
                unsafe base[index].store(new[index], ordering: .relaxed)
            }
            return isFull(place)
        }
    }

    private func locked<Result: Sendable>(_ place: Int, _ body: () throws(ImageError) -> Result) throws(ImageError)
        -> Result
    {
        try locks[place & 63].mutex.withLock { _ throws(ImageError) in try body() }
    }

    private func isFull(_ place: Int) -> Bool { judge(place, 0..<sectors) == .allSet }

    /// Brings a block's bitmap to its place. With its lock.
    ///
    /// - Returns: true if all of it is set.
    private func loadIfAbsent(
        _ place: Int, _ block: Int, _ entry: BlockEntry, _ storage: any ImageStorage
    ) throws(ImageError) -> Bool {
        let tag = unsafe tags[place].load(ordering: .relaxed)
        if tag & 0xffff_ffff == UInt64(block) { return isFull(place) }
        let bytes = try storage.bytes(at: entry.place, count: wordCount * 8)
        guard bytes.count == wordCount * 8 else {
            throw ImageError(.corrupt, "the image was cut off while it was open")
        }
        let turn = tag >> 32 &+ 1
        unsafe tags[place].store(turn << 32 | Self.noBlock, ordering: .relaxed)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        for index in 0..<wordCount {
            let word = bytes[index * 8..<index * 8 + 8].reduce(0) { $0 << 8 | UInt64($1) }
            unsafe words[place * wordCount + index].store(word, ordering: .relaxed)
        }
        unsafe tags[place].store((turn &+ 1) << 32 | UInt64(block), ordering: .releasing)
        return isFull(place)
    }
}
