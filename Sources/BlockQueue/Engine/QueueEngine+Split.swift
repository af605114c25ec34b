// SPDX-License-Identifier: BSD-2-Clause
// A reqlist that failed is done again, request by request, so that only the requests that really fail say so.
//
// Each request is done at the start of the buffer, where it is aligned as well as the whole list was. For that a
// write goes through the list forwards, and moves each request's data down over those that are done; a read goes
// backwards, and moves each request's data up to its place, away from those that are still to come.
//
// Where a request fills blocks of the disk only in part, the blocks around it hold data of its neighbours too. Such
// lists have pages of their own for this behind their data (``ListBuffer/scratch``).
import Blkif
import Memory

extension QueueEngine {
    /// Begins again with single requests.
    @inline(never)
    mutating func split(_ list: Int32) {
        let position = Int(list)
        stats.add(.reqlists_split)
        lists[position].state.isSplit = true
        lists[position].state.failure = 0
        lists[position].state.phase = .transfer
        lists[position].current = -1
        startNextOfSplit(list)
    }

    /// Records how the single request went, and does the next; or goes on with it when its blocks are filled up.
    mutating func finishSplitRequest(_ list: Int32) {
        let position = Int(list)
        let current = Int(lists[position].current)
        let request = requests[current].request
        if lists[position].state.failure != 0 {
            requests[current].status = .error
        } else if lists[position].state.phase == .fillBlocks {
            moveForWriting(list, head: blocks(around: request).head)
            return
        } else if lists[position].state.operation == .read {
            data.move(
                from: dataStart(list) + blocks(around: request).head, to: place(of: list, current),
                count: Int(request.sectorCount) * 512, in: list)
        }
        lists[position].state.failure = 0
        startNextOfSplit(list)
    }

    private mutating func startNextOfSplit(_ list: Int32) {
        let position = Int(list)
        while let next = nextOfSplit(list) {
            lists[position].current = next
            if requests[Int(next)].status != .okay { continue }
            let request = requests[Int(next)].request
            let (head, offset, count) = blocks(around: request)
            lists[position].offset = offset
            lists[position].length = count
            if lists[position].state.operation == .read {
                startTransfer(list)
            } else if head != 0 || count != request.sectorCount &* 512 {
                // Safe beside other lists: the blocks belong to this list alone, or it is alone.
                submit(list, .fillBlocks)
            } else {
                moveForWriting(list, head: 0)
            }
            return
        }
        // All were tried. Without any data to copy to the guest there is no copy whose end would finish the list.
        lists[position].state.isSplit = false
        if lists[position].state.operation == .read && hasSucceeded(list) {
            wait(list, for: .copyOut)
        } else {
            finish(list)
        }
    }

    /// Puts the data of the single request where it is written from, and writes it.
    private mutating func moveForWriting(_ list: Int32, head: Int) {
        let position = Int(list)
        let current = Int(lists[position].current)
        data.move(
            from: place(of: list, current), to: dataStart(list) + head,
            count: Int(requests[current].request.sectorCount) * 512, in: list)
        startTransfer(list)
    }

    /// True if any request of the list did not fail.
    private func hasSucceeded(_ list: Int32) -> Bool {
        var index = list
        while index >= 0 {
            if requests[Int(index)].status == .okay { return true }
            index = requests[Int(index)].next
        }
        return false
    }

    /// The next request of the list: forwards for writes, backwards for reads; nil when all were tried.
    private func nextOfSplit(_ list: Int32) -> Int32? {
        let position = Int(list)
        let current = lists[position].current
        if lists[position].state.operation != .read {
            let next = current < 0 ? list : requests[Int(current)].next
            return next < 0 ? nil : next
        }
        if current < 0 { return lists[position].last }
        if current == list { return nil }
        var index = list
        while index >= 0 {
            let next = requests[Int(index)].next
            if next == current { return index }
            index = next
        }
        return nil
    }

    /// The whole blocks of the disk around a request: bytes before it, and offset and length in bytes.
    private func blocks(around request: BlockRequest) -> (head: Int, offset: UInt64, count: UInt64) {
        let first = request.firstSector &* 512
        let head = first & traits.blockMask
        let count = (head &+ request.sectorCount &* 512 &+ traits.blockMask) & ~traits.blockMask
        return (Int(head), first &- head, count)
    }

    /// True if the list has several requests and any of them does not begin and end at block boundaries of the disk.
    @inline(never)
    mutating func hasRequestOfPartialBlocks(_ list: Int32) -> Bool {
        if lists[Int(list)].state.requestCount == 1 { return false }
        var index = list
        while index >= 0 {
            let (first, count) = (requests[Int(index)].request.firstSector, requests[Int(index)].request.sectorCount)
            if ((first | count) &* 512) & traits.blockMask != 0 { return true }
            index = requests[Int(index)].next
        }
        return false
    }

    /// Where a request's data stand in the list's buffer.
    func place(of list: Int32, _ request: Int) -> Int {
        data.head(of: list) + Int(requests[request].bufferOffset)
    }

    /// Where the plugin finds what it is asked for: the buffer's start, or for single requests the pages behind the data.
    @inline(__always)
    func dataStart(_ list: Int32) -> Int {
        lists[Int(list)].state.isSplit ? data.scratch(of: list) : 0
    }
}
