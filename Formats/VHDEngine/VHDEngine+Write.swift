// SPDX-License-Identifier: BSD-2-Clause
// The long way of an operation: new blocks, new bits, zeroes, discards. For helper threads, which may sleep; and the committer.
import Glibc
import ImageCore
import ImageWriting
import Synchronization

extension VHDEngine {
    /// Does an operation, or a first part of it. May sleep.
    public func perform(_ operation: any EngineOperation) -> Progress {
        let (offset, length) = (operation.offset, operation.length)
        guard length > 0, offset <= size, length <= size - offset else {
            operation.finish(length == 0 ? 0 : -EIO)
            return .finished
        }
        if operation.kind == .read {
            operation.finish(read(operation))
            return .finished
        }
        guard !options.isReadOnly else {
            operation.finish(-EROFS)
            return .finished
        }
        if operation.kind == .discard, !options.discards {
            operation.finish(0)
            return .finished
        }
        guard failure == 0 else {
            operation.finish(failure)
            return .finished
        }
        do throws(ImageError) {
            try endFile()
        } catch {
            operation.finish(-error.code)
            return .finished
        }
        // Somebody else has given it its place meanwhile.
        if operation.kind == .write, case .file(let place) = placeOfWrite(offset, length) {
            var change = Change(operation)
            var status: Int32 = 0
            do throws(ImageError) { try put(&change, offset, length, at: place) } catch { status = -error.code }
            operation.finish(status)
            return .finished
        }
        let held = heldRange(offset, length)
        guard let key = ranges.withLock({ $0.acquire(held, orWait: operation) }) else {
            counters.waits.wrappingAdd(1, ordering: .relaxed)
            return .waiting
        }
        var change = Change(operation)
        var status: Int32 = 0
        do throws(ImageError) {
            var position = offset
            while position < offset + length {
                position += try step(&change, position, offset + length - position)
            }
        } catch {
            status = -error.code
        }
        if status == 0, !change.publications.isEmpty {
            let record = CommitRecord(operation: operation, key: key, publications: change.publications)
            commits.withLock { $0.append(record) }
            wake()
            return .committing
        }
        operation.finish(status)
        release(key)
        return .finished
    }

    /// What an operation keeps others from: its sectors, where new bits come one by one. Else a block is filled up at once, so it holds
    /// all of its blocks.
    private func heldRange(_ offset: UInt64, _ length: UInt64) -> ClosedRange<UInt64> {
        let last = offset + length - 1
        guard fillsBlocks, fillsSome(offset, last) else { return offset >> 9...last >> 9 }
        return (offset & ~(blockSize - 1)) >> 9...(last | (blockSize - 1)) >> 9
    }

    /// Without a parent all sectors of a block can get their bits together: those that had none show zeroes.
    private var fillsBlocks: Bool { bitmaps != nil && below == nil }

    /// Some block of a range has sectors that are not the image's own, or may have. One that is not there yet is full from the first.
    private func fillsSome(_ offset: UInt64, _ last: UInt64) -> Bool {
        (Int(offset >> blockBits)...Int(last >> blockBits)).contains { map[$0].isThere && !map[$0].isFull }
    }

    /// Lets the next ones have a range.
    private func release(_ key: UInt64) {
        let next = ranges.withLock { $0.release(key) }
        for operation in next { operation.resume() }
    }

    /// An operation on its way.
    struct Change {
        let operation: any EngineOperation
        var publications: [Publication] = []
        var bounce: Bounce?

        init(_ operation: any EngineOperation) { self.operation = operation }
    }

    /// Does the first part of what is left, which lies in one block: its bytes.
    private func step(_ change: inout Change, _ offset: UInt64, _ length: UInt64) throws(ImageError) -> UInt64 {
        guard bitmaps != nil else {
            try put(&change, offset, length, at: offset)
            return length
        }
        let (block, within) = (Int(offset >> blockBits), offset & (blockSize - 1))
        let count = min(length, blockSize - within)
        let kind = change.operation.kind
        if kind != .write {
            // What shows zeroes stays, and what is not here cannot be given back.
            let isNeeded = kind != .discard && offset < lowerSize
            if !map[block].isThere, !isNeeded { return count }
        }
        let entry = try ensureBlock(block)
        let place = entry.place + bitmapSize + within
        if entry.isFull {
            try put(&change, offset, count, at: place)
            return count
        }
        try fill(&change, block, entry, offset, count)
        return count
    }

    /// Changes sectors of a block of which not all are the image's own.
    private func fill(
        _ change: inout Change, _ block: Int, _ entry: BlockEntry, _ offset: UInt64, _ count: UInt64
    ) throws(ImageError) {
        let kind = change.operation.kind
        let (data, start) = (entry.place + bitmapSize, offset & (blockSize - 1))
        var touched = Self.sectors(start, count)
        if kind == .write, fillsBlocks { touched = 0..<Int(blockSize / 512) }
        var (sector, isNew) = (touched.lowerBound, false)
        while sector < touched.upperBound {
            guard let bitmaps else { return }
            let run = try bitmaps.run(block, entry, sector..<touched.upperBound, storage)
            learn(block, entry, isFull: run.isFull)
            let place = data + UInt64(sector) * 512
            let bytes = UInt64(run.count) * 512
            switch kind {
            case .read: break
            case .write:
                if !run.isSet {
                    isNew = true
                    // The rest of the block gets its bits too.
                    if fillsBlocks { try check(storage.zero(place, bytes), "cannot zero a part of a block") }
                }
            case .zeroes, .discard:
                let shows = offset - start + UInt64(sector) * 512
                if run.isSet {
                    try check(storage.zero(place, bytes), "cannot zero a part of a block")
                } else if kind != .discard, shows < lowerSize {
                    try check(storage.zero(place, bytes), "cannot zero a part of a block")
                    change.publications.append(Publication(block: block, sectors: sector..<sector + run.count))
                }
            }
            sector += run.count
        }
        guard kind == .write else { return }
        try put(&change, offset, count, at: data + start)
        if isNew { change.publications.append(Publication(block: block, sectors: touched)) }
    }

    /// Writes the operation's data, or zeroes, to a place that is the image's own.
    private func put(
        _ change: inout Change, _ offset: UInt64, _ length: UInt64, at place: UInt64
    ) throws(ImageError) {
        guard change.operation.kind == .write else {
            return try check(storage.zero(place, length), "cannot zero a part of the disk")
        }
        let bounce: Bounce
        if let kept = change.bounce {
            bounce = kept
        } else {
            guard let new = Bounce(Int(min(change.operation.length, Self.bounceBytes))) else {
                throw ImageError(.unreadable(ENOMEM), "no memory for data")
            }
            (bounce, change.bounce) = (new, new)
        }
        var done: UInt64 = 0
        while done < length {
            let count = Int(min(length - done, UInt64(bounce.count)))
            let position = offset - change.operation.offset + done
            bounce.with(0..<count) { change.operation.copyData(to: &$0, from: position) }
            let code = bounce.reading(0..<count) { storage.writeData($0, at: place + done) }
            try check(code, "cannot write data")
            done += UInt64(count)
        }
    }

    // MARK: The committer

    /// What there is to do. Any thread.
    public var pending: CommitNeed {
        if commits.withLock({ !$0.isEmpty }) { return .now }
        return needsReserve ? .now : .nothing
    }

    private var needsReserve: Bool {
        failure == 0 && counters.allocated.load(ordering: .relaxed) > 0 && !reserveFailed.load(ordering: .relaxed)
            && reserveIsLow
    }

    /// One cycle: reserves, syncs once, and publishes what is durable.
    ///
    /// - Returns: true if there is more to do at once.
    @discardableResult
    public func commit() -> Bool {
        let records = commits.withLock { list in
            defer { list = [] }
            return list
        }
        if !records.isEmpty {
            // V3
            let code = failure == 0 ? sync() : failure
            counters.commits.wrappingAdd(1, ordering: .relaxed)
            let failed = code == 0 ? publish(records) : [:]
            for record in records {
                let late = record.publications.compactMap { failed[$0.block] }.first
                record.operation.finish(code != 0 ? code : late ?? 0)
                release(record.key)
            }
        }
        if needsReserve { refillAhead() }
        return pending == .now
    }

    /// Sets the bits of all records, each bitmap once: the errors by block.
    private func publish(_ records: [CommitRecord]) -> [Int: Int32] {
        var byBlock: [Int: [Range<Int>]] = [:]
        for record in records {
            for publication in record.publications {
                byBlock[publication.block, default: []].append(publication.sectors)
            }
        }
        var failed: [Int: Int32] = [:]
        for (block, sectors) in byBlock.sorted(by: { $0.key < $1.key }) {
            let entry = map[block]
            do throws(ImageError) {
                if try bitmaps?.set(block, entry, sectors, storage) == true { learn(block, entry, isFull: true) }
            } catch {
                failed[block] = -error.code
            }
        }
        return failed
    }
}
