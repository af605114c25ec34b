// SPDX-License-Identifier: BSD-2-Clause
// A reqlist that failed is done again, request by request, so that only the requests that really fail say so.
//
// Each request is done at the start of the buffer, where it is aligned as well as the whole list was. For that a
// write goes through the list forwards, and moves each request's data down over those that are done; a read goes
// backwards, and moves each request's data up to its place, away from those that are still to come.
import Blkif

extension QueueEngine {
    /// Begins again with single requests.
    mutating func split(_ list: Int32) {
        let position = Int(list)
        stats.add(.reqlists_split)
        lists[position].isSplit = true
        lists[position].failure = 0
        lists[position].phase = .transfer
        lists[position].current = -1
        startNextOfSplit(list)
    }

    /// Records how the single request went, and does the next.
    mutating func finishSplitRequest(_ list: Int32) {
        let position = Int(list)
        let current = Int(lists[position].current)
        if lists[position].failure != 0 {
            requests[current].status = .error
        } else if lists[position].operation == .read {
            let (head, _, count) = blocks(around: requests[current].request)
            _ = count
            let start = bufferStart(list)
            memory.move(
                from: start + head, to: start + Int(lists[position].headBytes) + Int(requests[current].bufferOffset),
                count: Int(requests[current].request.sectorCount) * 512)
        }
        lists[position].failure = 0
        startNextOfSplit(list)
    }

    private mutating func startNextOfSplit(_ list: Int32) {
        let position = Int(list)
        while let next = nextOfSplit(list) {
            lists[position].current = next
            let request = requests[Int(next)].request
            if requests[Int(next)].status != .okay { continue }
            let (head, offset, count) = blocks(around: request)
            if lists[position].operation == .read {
                lists[position].offset = offset
                lists[position].length = count
            } else {
                // Filling up blocks is for lists that are alone; here it would race with its neighbours.
                if head != 0 || count != request.sectorCount &* 512 {
                    requests[Int(next)].status = .error
                    continue
                }
                let start = bufferStart(list)
                memory.move(
                    from: start + Int(lists[position].headBytes) + Int(requests[Int(next)].bufferOffset), to: start,
                    count: Int(count))
                lists[position].offset = offset
                lists[position].length = count
            }
            beginSubmission(list)
            return
        }
        // All were tried. Without any data to copy to the guest there is no copy whose end would finish the list.
        lists[position].isSplit = false
        if lists[position].operation == .read && hasSucceeded(list) {
            lists[position].phase = .copyOut
            copyOutLists.append(list)
        } else {
            finish(list)
        }
    }

    /// True if any request of the list did not fail.
    private func hasSucceeded(_ list: Int32) -> Bool {
        var index = lists[Int(list)].first
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
        if lists[position].operation != .read {
            let next = current < 0 ? lists[position].first : requests[Int(current)].next
            return next < 0 ? nil : next
        }
        if current < 0 { return lists[position].last }
        if current == lists[position].first { return nil }
        var index = lists[position].first
        while index >= 0 {
            let next = requests[Int(index)].next
            if next == current { return index }
            index = next
        }
        return nil
    }

    /// The whole blocks of the disk around a request: bytes before it, and offset and length in bytes.
    private func blocks(around request: BlockRequest) -> (head: Int, offset: UInt64, count: UInt64) {
        let block = UInt64(device.logicalBlock)
        let first = request.firstSector &* 512
        let head = first & (block - 1)
        let count = (head &+ request.sectorCount &* 512 &+ block &- 1) & ~(block - 1)
        return (Int(head), first &- head, count)
    }

    /// Where the list's buffer begins in the memory.
    @inline(__always)
    func bufferStart(_ list: Int32) -> Int {
        Int(lists[Int(list)].bufferPage) * BufferPool.pageSize
    }
}
