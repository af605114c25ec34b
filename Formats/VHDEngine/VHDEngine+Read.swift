// SPDX-License-Identifier: BSD-2-Clause
// Reading through all layers, where the data are not at one place of the file. Any thread that may sleep.
import Glibc
import ImageCore
import ImageWriting

extension VHDEngine {
    /// What a range shows, where all of it is alike.
    enum Extent: Equatable {
        /// Data at this place of the file.
        case data(UInt64)
        /// What lies below.
        case below
        case zeroes
    }

    /// The first bytes from `offset` on that are alike, at most `length`.
    func find(_ offset: UInt64, _ length: UInt64) throws(ImageError) -> (Extent, UInt64) {
        guard let bitmaps else { return (.data(offset), length) }
        let (block, within) = (Int(offset >> blockBits), offset & (blockSize - 1))
        let count = min(length, blockSize - within)
        let entry = map[block]
        guard entry.isThere else { return hole(offset, count) }
        let place = entry.place + bitmapSize + within
        if entry.isFull { return (.data(place), count) }
        let run = try bitmaps.run(block, entry, Self.sectors(within, count), storage)
        learn(block, entry, isFull: run.isFull)
        // A run begins with the sector that `within` is in.
        let bytes = min(count, UInt64(run.count) * 512 - within & 511)
        return run.isSet ? (.data(place), bytes) : hole(offset, bytes)
    }

    /// A block whose bitmap was read: the queues need not ask again.
    func learn(_ block: Int, _ entry: BlockEntry, isFull: Bool) {
        map[block] = BlockEntry(sector: entry.sector, isFull ? .full : .partial)
    }

    private func hole(_ offset: UInt64, _ count: UInt64) -> (Extent, UInt64) {
        offset < lowerSize ? (.below, min(count, lowerSize - offset)) : (.zeroes, count)
    }

    /// Fills memory with what the disk shows from `offset` on, with zeroes behind its end: 0 or a negative errno.
    public func read(into memory: inout MutableRawSpan, at offset: UInt64) -> Int32 {
        let count = UInt64(memory.byteCount)
        let there = offset < size ? min(count, size - offset) : 0
        var done: UInt64 = 0
        while done < count {
            let position = offset &+ done
            var (extent, bytes) = (Extent.zeroes, count - done)
            if done < there {
                do throws(ImageError) {
                    (extent, bytes) = try find(position, there - done)
                } catch {
                    return report(-error.code, position, error.message)
                }
            }
            let code = unsafe memory.withUnsafeMutableBytes { all -> Int32 in
                let part = unsafe UnsafeMutableRawBufferPointer(rebasing: all[Int(done)..<Int(done + bytes)])
                var span = unsafe part.mutableBytes
                switch extent {
                case .data(let place): return storage.readData(into: &span, at: place)
                case .below: return below?.read(into: &span, at: position) ?? -EIO
                case .zeroes:
                    if let base = part.baseAddress { unsafe _ = memset(base, 0, part.count) }
                    return 0
                }
            }
            if code != 0 {
                return report(
                    code, position,
                    extent == .below ? "what lies below the image cannot be read" : "its data cannot be read")
            }
            done += bytes
        }
        return 0
    }

    private func report(_ code: Int32, _ offset: UInt64, _ words: String) -> Int32 {
        tell(.unreadable(-code, at: offset, words))
        return code
    }

    /// What is allocated in this image, run by run from `start` on, until `report` gives false; throws where a bitmap cannot be read.
    /// `isData`: the image has it; else it is what lies below, or with `isZero` zeroes.
    public func extents(
        from start: UInt64, length: UInt64,
        _ report: (_ offset: UInt64, _ count: UInt64, _ isData: Bool, _ isZero: Bool) -> Bool
    ) throws(ImageError) {
        var position = start
        let end = start + min(length, size > start ? size - start : 0)
        while position < end {
            let (extent, count) = try find(position, end - position)
            let (isData, isZero) =
                switch extent {
                case .data: (true, false)
                case .below: (false, false)
                case .zeroes: (false, true)
                }
            guard report(position, count, isData, isZero) else { return }
            position += count
        }
    }

    /// Does a read: 0 or a negative errno.
    func read(_ operation: any EngineOperation) -> Int32 {
        guard let bounce = Bounce(Int(min(operation.length, Self.bounceBytes))) else { return -ENOMEM }
        var done: UInt64 = 0
        while done < operation.length {
            let count = Int(min(operation.length - done, Self.bounceBytes))
            let code = bounce.with(0..<count) { memory in read(into: &memory, at: operation.offset + done) }
            guard code == 0 else { return code }
            bounce.reading(0..<count) { operation.takeData($0, at: done) }
            done += UInt64(count)
        }
        return 0
    }

    /// Memory for a part of an operation.
    static var bounceBytes: UInt64 { 256 << 10 }
}
