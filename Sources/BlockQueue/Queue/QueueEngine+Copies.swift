// SPDX-License-Identifier: BSD-2-Clause
// Data between the guest's pages and the queue's memory, in one batch for each turn of the loop.
import Blkif
import Memory
import Xen

extension QueueEngine {
    /// Puts the copies of all waiting lists into the batch; true if there is something to copy.
    ///
    /// The batch has room for every segment of the ring, so all of them fit.
    mutating func collectCopies() -> Bool {
        copiedLists = copying.count
        if copiedLists == 0 { return false }
        copies.removeAll()
        for position in 0..<copiedLists { collect(copying[position]) }
        return copies.count > 0
    }

    @inline(__always)
    private mutating func collect(_ list: Int32) {
        let toGuest = lists[Int(list)].phase == .copyOut
        let start = bufferStart(list) &+ Int(lists[Int(list)].headBytes)
        var index = list
        while index >= 0 {
            let request = Int(index)
            if requests[request].status == .okay {
                var offset = start &+ Int(requests[request].bufferOffset)
                for number in 0..<Int(requests[request].request.segmentCount) {
                    let segment = requests[request].request.segments[number]
                    let length = segment.sectorCount &* 512
                    copies.append(
                        reference: segment.reference, of: domain, offset: Int(segment.firstSector) &* 512,
                        length: length, host: memory, hostOffset: offset, toGuest: toGuest)
                    offset &+= length
                }
            }
            index = requests[request].next
        }
    }

    /// Looks at every copy's status and goes on with the lists. `succeeded` is false if the call itself failed.
    ///
    /// A request whose copy failed is answered with an error; the others of its list go on without it.
    mutating func copiesDone(succeeded: Bool) {
        stats.add(.grant_copy_calls)
        stats.add(.grant_copy_operations, UInt64(copies.count))
        var copy = 0
        for _ in 0..<copiedLists {
            guard let list = copying.popFirst() else { break }
            var failed: Int32 = 0
            var index = list
            while index >= 0 {
                let request = Int(index)
                if requests[request].status == .okay {
                    for _ in 0..<Int(requests[request].request.segmentCount) {
                        if !succeeded || copies.status(at: copy) != GrantCopyBatch.okay {
                            stats.add(.grant_errors)
                            requests[request].status = .error
                        }
                        copy &+= 1
                    }
                }
                if requests[request].status != .okay { failed &+= 1 }
                index = requests[request].next
            }
            if lists[Int(list)].phase == .copyOut {
                finish(list)
            } else if failed == 0 && !lists[Int(list)].isSplit {
                startTransfer(list)
            } else {
                goOnWithout(failed, list)
            }
        }
        copies.removeAll()
    }

    /// After the copy from the guest failed for some requests of a write, or for a list that is to be split.
    @inline(never)
    private mutating func goOnWithout(_ failed: Int32, _ list: Int32) {
        if failed == lists[Int(list)].requestCount {
            finish(list)
        } else {
            split(list)
        }
    }
}
