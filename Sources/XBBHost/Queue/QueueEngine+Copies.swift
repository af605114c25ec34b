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
        if copyInLists.isEmpty && copyOutLists.isEmpty { return false }
        copies.removeAll()
        while let list = copyOutLists.popFirst() { collect(list, toGuest: true) }
        while let list = copyInLists.popFirst() { collect(list, toGuest: false) }
        return copies.count > 0
    }

    @inline(__always)
    private mutating func collect(_ list: Int32, toGuest: Bool) {
        let position = Int(list)
        lists[position].firstCopy = Int32(truncatingIfNeeded: copies.count)
        copying.append(list)
        let start = bufferStart(list) + Int(lists[position].headBytes)
        var index = lists[position].first
        while index >= 0 {
            let request = Int(index)
            let data = start + Int(requests[request].bufferOffset)
            if requests[request].status == .okay {
                requests.look(request) { [memory, domain] entry in
                    var offset = data
                    for number in 0..<Int(entry.request.segmentCount) {
                        let segment = entry.request.segments[number]
                        let length = segment.sectorCount &* 512
                        copies.append(
                            reference: segment.reference, of: domain, offset: Int(segment.firstSector) &* 512,
                            length: length, host: memory, hostOffset: offset, toGuest: toGuest)
                        offset &+= length
                    }
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
        var left = copying.count
        while left > 0, let list = copying.popFirst() {
            left -= 1
            let position = Int(list)
            var copy = Int(lists[position].firstCopy)
            var failed: Int32 = 0
            var index = lists[position].first
            while index >= 0 {
                let request = Int(index)
                if requests[request].status == .okay {
                    for _ in 0..<Int(requests[request].request.segmentCount) {
                        if !succeeded || copies.status(at: copy) != GrantCopyBatch.okay {
                            stats.add(.grant_errors)
                            requests[request].status = .error
                        }
                        copy += 1
                    }
                }
                if requests[request].status != .okay { failed += 1 }
                index = requests[request].next
            }
            if lists[position].phase == .copyOut || (failed == 0 && !lists[position].isSplit) {
                advance(list)
            } else if failed == lists[position].requestCount {
                finish(list)
            } else {
                split(list)
            }
        }
        copies.removeAll()
    }
}
