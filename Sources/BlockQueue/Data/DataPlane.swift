// SPDX-License-Identifier: BSD-2-Clause
// How the data of requests get from the guest's pages to the plugin and back.
//
// The rest of the queue knows segments and offsets in a list's buffer. That the guest's pages are reached by grant copies,
// and the data stand in private memory meanwhile, is known here alone.
import Base
import Blkif
import Glibc
import Memory
import PluginPort
import Xen

/// Memory for the data of a queue's reqlists, and the copies between it and the guest's pages.
package struct DataPlane: ~Copyable {
    /// Bytes of the memory; plugins may want to know it (`mem_map`).
    package let memory: HostMemory
    private let domain: DomainID
    private(set) var pool: BufferPool
    /// Where the data of each list stand.
    private var buffers: FixedArray<ListBuffer>
    /// The runs of buffers that have several, ``mostRuns`` for each list.
    private var runs: FixedArray<BufferRun>
    /// Copies for the next call of the grant table.
    private(set) var copies: GrantCopyBatch
    /// Lists that wait for their copies; the first ``batchedLists`` of them are in the batch, in its order.
    private(set) var waiting: IndexQueue
    private var batchedLists = 0
    /// The copy whose result is taken next.
    private var nextResult = 0

    /// Runs of a buffer; each is a vector of a plugin request.
    static var mostRuns: Int { PluginRequestPointer.mostVectors }

    /// For `listCount` lists, and batches of `copyCount` copies.
    init(domain: DomainID, memory: HostMemory, listCount: Int, copyCount: Int) {
        self.domain = domain
        self.memory = memory
        pool = BufferPool(pageCount: memory.byteCount / BufferPool.pageSize)
        buffers = FixedArray(zeroed: listCount)
        runs = FixedArray(zeroed: listCount * Self.mostRuns)
        copies = GrantCopyBatch(capacity: copyCount)
        waiting = IndexQueue(capacity: listCount)
    }

    // MARK: Buffers

    /// Takes `pages` pages for a list, whose data begin `head` bytes behind their start; false if they are not free now.
    @inline(__always)
    mutating func allocate(_ pages: Int, head: Int32, for list: Int32) -> Bool {
        guard let page = pool.allocate(pages) else { return allocateScattered(pages, head: head, for: list) }
        buffers[Int(list)] = ListBuffer(
            page: Int32(truncatingIfNeeded: page), pages: Int32(truncatingIfNeeded: pages), runs: 1, headBytes: head)
        return true
    }

    @inline(never)
    private mutating func allocateScattered(_ pages: Int, head: Int32, for list: Int32) -> Bool {
        var number = 0
        let first = Int(list) * Self.mostRuns
        let isDone = pool.allocateRuns(pages, most: Self.mostRuns) { run in
            runs[first + number] = run
            number += 1
        }
        guard isDone else { return false }
        buffers[Int(list)] = ListBuffer(
            page: runs[first].page, pages: Int32(truncatingIfNeeded: pages), runs: Int32(truncatingIfNeeded: number),
            headBytes: head)
        return true
    }

    /// Gives the pages of a list back, if it has any.
    @inline(__always)
    mutating func release(_ list: Int32) {
        let buffer = buffers[Int(list)]
        // The next list of this index has none until it gets some: it may wait for memory, or need none.
        buffers[Int(list)].runs = 0
        if buffer.runs == 1 {
            pool.release(Int(buffer.page), Int(buffer.pages))
        } else if buffer.runs > 1 {
            releaseScattered(list, Int(buffer.runs))
        }
    }

    @inline(never)
    private mutating func releaseScattered(_ list: Int32, _ count: Int) {
        for number in 0..<count {
            let run = runs[Int(list) * Self.mostRuns + number]
            pool.release(Int(run.page), Int(run.pages))
        }
    }

    /// Bytes of a list's buffer before its first sector.
    @inline(__always)
    func head(of list: Int32) -> Int { Int(buffers[Int(list)].headBytes) }

    /// Offset of the pages of a list where single requests are done that fill blocks only in part; 0 for none.
    func scratch(of list: Int32) -> Int { Int(buffers[Int(list)].scratch) }

    /// The last pages of a list's buffer, from `offset` on, are its scratch.
    mutating func setScratch(_ offset: Int, of list: Int32) {
        buffers[Int(list)].scratch = Int32(truncatingIfNeeded: offset)
    }

    /// Where the buffer of a list begins in the memory; nil where it is scattered.
    @inline(__always)
    func start(of list: Int32) -> Int? {
        let buffer = buffers[Int(list)]
        return buffer.runs == 1 ? buffer.start : nil
    }

    /// The runs of a list's buffer; for tests.
    func runs(of list: Int32) -> [BufferRun] {
        let buffer = buffers[Int(list)]
        if buffer.runs == 1 { return [BufferRun(page: buffer.page, pages: buffer.pages)] }
        return (0..<Int(buffer.runs)).map { runs[Int(list) * Self.mostRuns + $0] }
    }

    /// Where `offset` of a buffer is in the memory, and how many bytes of its run follow from there.
    ///
    /// `mutating`, although it changes nothing: otherwise the whole plane is copied for the call
    /// (docs/decisions/0012-modules.md).
    private mutating func find(_ offset: Int, in list: Int32) -> (place: Int, room: Int) {
        let buffer = buffers[Int(list)]
        if buffer.runs == 1 { return (buffer.start + offset, Int(buffer.pages) * BufferPool.pageSize - offset) }
        var left = offset
        for number in 0..<Int(buffer.runs) {
            let run = runs[Int(list) * Self.mostRuns + number]
            let bytes = Int(run.pages) * BufferPool.pageSize
            if left < bytes { return (Int(run.page) * BufferPool.pageSize + left, bytes - left) }
            left -= bytes
        }
        preconditionFailure("an offset behind the end of a buffer")
    }

    /// Moves bytes inside a list's buffer; the ranges may overlap.
    mutating func move(from source: Int, to target: Int, count: Int, in list: Int32) {
        if source == target || count == 0 { return }
        if let start = start(of: list) {
            memory.move(from: start + source, to: start + target, count: count)
            return
        }
        // Piece by piece inside runs; downwards from the beginning and upwards from the end, as memmove(3) does.
        var done = 0
        while done < count {
            // A sector never crosses the end of a run: runs are whole pages, and offsets whole sectors.
            let piece = min(count - done, 512)
            let at = target < source ? done : count - done - piece
            memory.move(from: find(source + at, in: list).place, to: find(target + at, in: list).place, count: piece)
            done += piece
        }
    }

    // MARK: The plugin's view

    /// Lets a plugin request point at `length` bytes from a place of the memory.
    @inline(__always)
    func point(_ request: PluginRequestPointer, at place: Int, _ length: Int) {
        // The address is checked, and the memory lives until the plugin's queue is closed.
        unsafe request.setVector(memory.address(at: place, count: length), length)
    }

    /// Bytes from `offset` of a list's buffer that at most `mostVectors` vectors can hold; `length` if they hold as much.
    mutating func reach(_ length: UInt64, from offset: Int, in list: Int32, mostVectors: Int) -> UInt64 {
        var reached = 0
        for _ in 0..<mostVectors where UInt64(reached) < length {
            if offset + reached >= Int(buffers[Int(list)].pages) * BufferPool.pageSize { break }
            reached += find(offset + reached, in: list).room
        }
        return min(UInt64(reached), length)
    }

    /// Lets a plugin request point at `length` bytes from `offset` of a list's buffer, in as many vectors as that takes.
    mutating func pointAll(_ request: PluginRequestPointer, at offset: Int, _ length: Int, in list: Int32) {
        var done = 0
        var number = 0
        while done < length {
            let (place, room) = find(offset + done, in: list)
            let piece = min(room, length - done)
            if piece == length {
                point(request, at: place, piece)
                return
            }
            // As in ``point(_:at:_:)``.
            unsafe request.setVector(number, memory.address(at: place, count: piece), piece)
            number += 1
            done += piece
        }
        request.setVectorCount(number)
    }

    /// True if nothing but zeroes is in `count` bytes at `offset` of a list's buffer.
    mutating func isZero(at offset: Int, _ count: Int, in list: Int32) -> Bool {
        var done = 0
        while done < count {
            let (place, room) = find(offset + done, in: list)
            let piece = min(room, count - done)
            guard memory.isZero(at: place, count: piece) else { return false }
            done += piece
        }
        return true
    }

    // MARK: Copies

    /// Lets a list wait for its copies.
    @inline(__always)
    mutating func wait(_ list: Int32) { waiting.append(list) }

    /// Begins a batch of copies.
    @inline(__always)
    mutating func beginBatch() {
        copies.removeAll()
        batchedLists = 0
        nextResult = 0
    }

    /// The next list for the batch; nil where no list waits. See ``hasRoom(for:segments:)``.
    @inline(__always)
    func nextForBatch() -> Int32? {
        batchedLists < waiting.count ? waiting[batchedLists] : nil
    }

    /// True if all copies of a list fit into the batch.
    @inline(__always)
    func hasRoom(for list: Int32, segments: Int32) -> Bool {
        copies.count &+ Int(segments) &+ Int(buffers[Int(list)].runs) &- 1 <= copies.capacity
    }

    /// The list of ``nextForBatch()`` is in the batch.
    @inline(__always)
    mutating func tookIntoBatch() { batchedLists &+= 1 }

    /// Adds the copy between a segment, which has `length` bytes, and a place of the memory.
    @inline(__always)
    mutating func add(_ segment: BlockSegment, _ length: Int, at place: Int, toGuest: Bool) {
        copies.append(
            reference: segment.reference, of: domain, offset: Int(segment.firstSector) &* 512, length: length,
            host: memory, hostOffset: place, toGuest: toGuest)
    }

    /// Adds the copies between a segment and `offset` of a buffer of several runs: two where it crosses the end of a run.
    mutating func addScattered(_ segment: BlockSegment, at offset: Int, in list: Int32, toGuest: Bool) {
        let length = segment.sectorCount * 512
        var done = 0
        while done < length {
            let (place, room) = find(offset + done, in: list)
            let piece = min(room, length - done)
            copies.append(
                reference: segment.reference, of: domain, offset: Int(segment.firstSector) * 512 + done, length: piece,
                host: memory, hostOffset: place, toGuest: toGuest)
            done += piece
        }
    }

    /// Adds the copy of a page's beginning into memory other than that of the data.
    mutating func addFetch(_ reference: UInt32, _ length: Int, to pages: HostMemory, at place: Int) {
        copies.append(
            reference: reference, of: domain, offset: 0, length: length, host: pages, hostOffset: place, toGuest: false)
    }

    /// Lists in the batch, each taken by ``popBatched()``.
    var batchCount: Int { batchedLists }

    /// The next list of the batch, in its order.
    @inline(__always)
    mutating func popBatched() -> Int32? { waiting.popFirst() }

    /// No copy of the batch counts as done, whatever its status: the call itself failed.
    @inline(never)
    mutating func failBatch() { copies.failAll() }

    /// True if the next copy was done; asked in the order of ``add(_:_:at:toGuest:)``.
    @inline(__always)
    mutating func takeResult() -> Bool {
        let result = copies.status(at: nextResult) == GrantCopyBatch.okay
        nextResult &+= 1
        return result
    }

    /// True if all copies of a segment were done; asked in the order of ``addScattered(_:at:in:toGuest:)``.
    mutating func takeScatteredResult(_ segment: BlockSegment, at offset: Int, in list: Int32) -> Bool {
        let length = segment.sectorCount * 512
        var done = 0
        var isDone = true
        while done < length {
            done += find(offset + done, in: list).room
            if copies.status(at: nextResult) != GrantCopyBatch.okay { isDone = false }
            nextResult += 1
        }
        return isDone
    }

    /// Has the batch done by a grant table. Throws if no copy was tried.
    mutating func execute<Table: GrantTable>(on table: Table) throws(OperationError) {
        try table.copy(&copies)
    }

    /// Has the batch done by `body`, which sets each copy's status; for tests.
    mutating func execute(_ body: (inout GrantCopyBatch) -> Void) { body(&copies) }
}
