// SPDX-License-Identifier: BSD-2-Clause
// New blocks: reserved ahead behind the end of what the file has, and made durable by one sync for many.
//
// A reserved block stands between the last block of the table and the footer, where nothing else can be. Its data begin with a page.
// The file is made longer by writing the footer at its new end: the old one stays until then, and in front of the first new block also
// after that, so that no moment leaves the file without one.
import Glibc
import ImageCore
import ImageWriting
import Synchronization
import VHD

/// How the file grows; around a sync, so that nobody else waits for it who has no need.
struct Growth {
    /// Blocks to reserve next time.
    var nextCount: Int
    /// Everything from here to the footer is reserved or unused, and this engine's.
    var ownFrom: UInt64?
    /// Blocks that an unclean end left were looked for.
    var hasLooked = false
}

/// The blocks that are reserved, and the block table as it stands in the file.
struct Reserve {
    /// Places of blocks, bytes of the file, the lowest first.
    private var places: [UInt64] = []
    private var taken = 0
    /// Where the last block of the table, or anything else that counts, ends.
    var end: UInt64
    /// What stands behind the last entry in the last sector of the table.
    let padding: [UInt8]
    /// Entries of the table as they are in the file.
    var table: [UInt32]

    init(_ storage: any ImageStorage, _ image: VHDImage, _ options: VHDOptions) throws(ImageError) {
        end = image.end
        guard let header = image.header, !options.isReadOnly else {
            (padding, table) = ([], [])
            return
        }
        let used = header.entryCount * 4
        padding = try storage.bytes(at: header.tableOffset + used, count: Int(header.tableSize - used))
        table = image.table
    }

    var count: Int { places.count - taken }

    mutating func take() -> UInt64? {
        guard taken < places.count else { return nil }
        defer { taken += 1 }
        return places[taken]
    }

    mutating func add(_ more: [UInt64]) {
        places.removeFirst(taken)
        taken = 0
        places += more
    }

    mutating func removeAll() { (places, taken) = ([], 0) }

    /// The sector of the table that has an entry.
    func sector(of block: Int) -> [UInt8] {
        let first = block & ~127
        var bytes: [UInt8] = []
        for entry in table[first..<min(first + 128, table.count)] {
            for shift in stride(from: UInt32(24), through: 0, by: -8) {
                bytes.append(UInt8(truncatingIfNeeded: entry >> shift))
            }
        }
        if bytes.count < 512 { bytes += padding }
        return bytes
    }
}

extension VHDEngine {
    /// Bytes of the file for a block: so many that the data of the next one begin with a page too.
    private var stride: UInt64 { (bitmapSize + blockSize + 4095) & ~4095 }

    /// The first place at or behind `offset` where the data of a block begin with a page.
    private func aligned(_ offset: UInt64) -> UInt64 { ((offset + bitmapSize + 4095) & ~4095) - bitmapSize }

    private var mostReserved: Int {
        max(1, min(options.reserve.upperBound, Int(clamping: options.reserveBytes / max(blockSize, 1))))
    }

    /// Less than half of what the next reserve will be is left.
    var reserveIsLow: Bool { metadata.withLock { $0.count < lowMark.load(ordering: .relaxed) } }

    /// The entry of a block, which gets a place if it has none.
    func ensureBlock(_ block: Int) throws(ImageError) -> BlockEntry {
        while true {
            let found = map[block]
            if found.isThere { return found }
            if let entry = try publish(block) { return entry }
            try growth.withLock { growth throws(ImageError) in
                // Somebody else may have done it meanwhile.
                if metadata.withLock({ $0.count > 0 }) { return }
                counters.refills.wrappingAdd(1, ordering: .relaxed)
                try refill(&growth)
            }
        }
    }

    /// Gives a block a reserved place; nil: there is none.
    private func publish(_ block: Int) throws(ImageError) -> BlockEntry? {
        try metadata.withLock { reserve throws(ImageError) -> BlockEntry? in
            let found = map[block]
            if found.isThere { return found }
            guard let header = image.header, block < reserve.table.count else {
                throw ImageError(.unreadable(EIO), "the block table has no entry for the block")
            }
            guard let place = reserve.take() else { return nil }
            // If this fails, whether the file has the entry is not known: the place is left alone.
            let (old, sector) = (reserve.table[block], UInt32(truncatingIfNeeded: place >> 9))
            reserve.table[block] = sector
            reserve.end = max(reserve.end, place + bitmapSize + blockSize)
            let code = storage.write(reserve.sector(of: block), at: header.tableOffset + UInt64(block & ~127) * 4)
            if code != 0 { reserve.table[block] = old }
            try check(code, "cannot write the block table")
            // V2: without a parent all of it is there, as zeroes.
            let entry = BlockEntry(sector: sector, below == nil ? .full : .partial)
            map[block] = entry
            counters.allocated.wrappingAdd(1, ordering: .relaxed)
            if reserve.count < lowMark.load(ordering: .relaxed) { wake() }
            return entry
        }
    }

    /// Reserves blocks because there will soon be none.
    func refillAhead() {
        growth.withLock { growth in
            do throws(ImageError) {
                try refill(&growth)
            } catch {
                reserveFailed.store(true, ordering: .relaxed)
            }
        }
    }

    /// V1: reserves blocks, and makes them durable.
    private func refill(_ growth: inout Growth) throws(ImageError) {
        guard failure == 0 else { throw ImageError(.unreadable(EIO), "the disk has failed") }
        var found: [UInt64] = []
        if !growth.hasLooked, storage.isGrowable {
            found = leftBehind()
            if let first = found.first, let last = found.last,
                last + bitmapSize + blockSize == storage.size - VHDFooter.byteCount,
                isUnused(from: image.end, to: first)
            {
                growth.ownFrom = image.end
            }
        }
        let isReclaimed = !found.isEmpty
        if !isReclaimed {
            let wanted = min(growth.nextCount, mostReserved)
            do throws(ImageError) {
                found = try extend(&growth, by: wanted)
            } catch {
                // A full file system may have room for one.
                guard wanted > 1, failure == 0 else { throw error }
                found = try extend(&growth, by: 1)
            }
            growth.nextCount = min(wanted * 2, mostReserved)
            lowMark.store(max(1, growth.nextCount / 2), ordering: .relaxed)
        }
        for place in found where below == nil {
            try check(
                storage.write([UInt8](repeating: 0xff, count: Int(bitmapSize)), at: place),
                "cannot write the bitmap of a block")
        }
        try check(sync(), "cannot make new blocks durable")
        growth.hasLooked = true
        if isReclaimed { counters.reclaimed.wrappingAdd(UInt64(found.count), ordering: .relaxed) }
        metadata.withLock { $0.add(found) }
        reserveFailed.store(false, ordering: .relaxed)
    }

    /// Makes room for blocks in the file: their places.
    private func extend(_ growth: inout Growth, by count: Int) throws(ImageError) -> [UInt64] {
        guard storage.isGrowable else { return try extendOnDevice(&growth, by: count) }
        let end = (storage.size + 511) & ~511
        let first = aligned(end)
        let places = self.places(from: first, count, before: UInt64(UInt32.max) << 9)
        guard let last = places.last else { throw full() }
        let footer = last + bitmapSize + blockSize
        try lengthen(to: footer)
        // V7: the old footer ended the file.
        if growth.ownFrom == nil { growth.ownFrom = end - VHDFooter.byteCount }
        return places
    }

    private func lengthen(to footer: UInt64) throws(ImageError) {
        let code = image.footer.bytes.withUnsafeSector { storage.extend($0, at: footer) }
        try check(code, "cannot make the file longer")
    }

    /// V7: gives a file its footer that has lost it. Its last sector could be the guest's else, who would make it a footer of another
    /// kind of disk.
    func endFile() throws(ImageError) {
        if isEnded.load(ordering: .acquiring) { return }
        try growth.withLock { growth throws(ImageError) in
            if isEnded.load(ordering: .acquiring) { return }
            if storage.isGrowable {
                let end = (storage.size + 511) & ~511
                try lengthen(to: end)
                growth.ownFrom = end
            } else {
                guard image.end <= deviceFooter else { throw full() }
                try check(storage.write(image.footer.bytes, at: deviceFooter), "cannot write the footer")
            }
            try check(sync(), "cannot make the footer durable")
            isEnded.store(true, ordering: .releasing)
        }
    }

    /// Where the footer of a device is.
    private var deviceFooter: UInt64 { (storage.size & ~511) - VHDFooter.byteCount }

    /// A device has its footer at its end; what is in front of it and in no block is unused, and may have anything.
    private func extendOnDevice(_ growth: inout Growth, by count: Int) throws(ImageError) -> [UInt64] {
        let first = aligned(max(image.end, growth.ownFrom ?? 0))
        let places = self.places(from: first, count, before: min(deviceFooter, UInt64(UInt32.max) << 9))
        guard let last = places.last else { throw full() }
        for place in places {
            let bitmap = [UInt8](repeating: 0, count: Int(bitmapSize))
            try check(storage.write(bitmap, at: place), "cannot write the bitmap of a block")
            if below == nil { try check(storage.zero(place + bitmapSize, blockSize), "cannot zero a block") }
        }
        growth.ownFrom = last + bitmapSize + blockSize
        return places
    }

    private func places(from first: UInt64, _ count: Int, before limit: UInt64) -> [UInt64] {
        (0..<UInt64(count)).map { first + $0 * stride }.filter { $0 + bitmapSize + blockSize <= limit }
    }

    private func full() -> ImageError {
        if !isFullTold.exchange(true, ordering: .relaxed) { tell(.full) }
        return ImageError(.unreadable(ENOSPC), "no block can be added")
    }

    /// Blocks that an engine reserved before the process ended: behind the last block of the table, all zeroes, with a bitmap as it is
    /// made. Anything else is left alone.
    private func leftBehind() -> [UInt64] {
        guard storage.size >= VHDFooter.byteCount, let bounce = Bounce(Int(Self.bounceBytes)) else { return [] }
        let limit = min(storage.size - VHDFooter.byteCount, UInt64(UInt32.max) << 9)
        // The first one stands behind the footer that there was, or behind the last block that was taken.
        for first in [aligned(image.end), aligned(image.end + VHDFooter.byteCount)] {
            var found: [UInt64] = []
            var place = first
            while found.count < 2 * mostReserved, place + bitmapSize + blockSize <= limit, isUnused(place, bounce) {
                found.append(place)
                place += stride
            }
            if !found.isEmpty { return found }
        }
        return []
    }

    /// Nothing but zeroes, or a footer and zeroes, stands there.
    private func isUnused(from start: UInt64, to end: UInt64) -> Bool {
        guard start <= end, end - start <= 1 << 20, let bytes = try? storage.bytes(at: start, count: Int(end - start)),
            bytes.count == Int(end - start)
        else { return false }
        let footer = image.footer.bytes
        return bytes.dropFirst(bytes.starts(with: footer) ? footer.count : 0).allSatisfy { $0 == 0 }
    }

    private func isUnused(_ place: UInt64, _ bounce: Bounce) -> Bool {
        guard let bitmap = try? storage.bytes(at: place, count: Int(bitmapSize)), bitmap.count == Int(bitmapSize),
            bitmap.allSatisfy({ $0 == 0 }) || below == nil && bitmap.allSatisfy({ $0 == 0xff })
        else { return false }
        var done: UInt64 = 0
        while done < blockSize {
            let count = Int(min(blockSize - done, UInt64(bounce.count)))
            let isZero = bounce.with(0..<count) { memory -> Bool in
                guard storage.readData(into: &memory, at: place + bitmapSize + done) == 0 else { return false }
                return unsafe memory.withUnsafeMutableBytes { bytes in
                    guard let base = bytes.baseAddress else { return true }
                    // All bytes are like the first, and that is 0.
                    return unsafe bytes[0] == 0 && memcmp(base, base + 1, count - 1) == 0
                }
            }
            guard isZero else { return false }
            done += UInt64(count)
        }
        return true
    }

    /// Gives the reserve back. Nothing is in flight, and nothing comes after it.
    public func close() {
        guard failure == 0, !options.isReadOnly, storage.isGrowable else { return }
        growth.withLock { growth in
            guard let own = growth.ownFrom else { return }
            let (end, isLeft) = metadata.withLock { reserve in
                defer { reserve.removeAll() }
                return (reserve.end, reserve.count > 0)
            }
            let footer = (max(own, end) + 511) & ~511
            guard isLeft, footer + VHDFooter.byteCount < storage.size else { return }
            // The new end first: who looks at the file in between finds both.
            guard storage.write(image.footer.bytes, at: footer) == 0, sync() == 0 else { return }
            _ = storage.setSize(footer + VHDFooter.byteCount)
        }
    }
}

extension [UInt8] {
    /// The bytes as a span.
    fileprivate func withUnsafeSector(_ body: (RawSpan) -> Int32) -> Int32 { body(unsafe span.bytes) }
}
