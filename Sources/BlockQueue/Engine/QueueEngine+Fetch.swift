// SPDX-License-Identifier: BSD-2-Clause
// Between the ring and parsing: what of a request lies outside its slot is fetched first.
//
// A slot that is no request as it stands comes here. A request that waits for its segments counts as a list in flight, and
// one that must be alone and was taken behind it waits for it.
import Blkif
import Memory

/// Requests whose segments stand in other pages of the guest, and private copies of these pages.
struct FetchStage: ~Copyable {
    /// Requests that wait for their pages, in the order in which they were taken.
    fileprivate var waiting: IndexQueue
    /// The first of them that was taken behind a list that must be alone; -1 for none. The ring is not read after it.
    fileprivate var firstBehindExclusive: Int32 = -1
    /// What the slot of each request said.
    fileprivate var headers: FixedArray<IndirectRequest>
    /// Room for the pages of each request; what is never used takes no memory.
    fileprivate let pages: HostMemory

    /// For a ring of `requestCount` slots, or for none where no such requests are offered; nil when the kernel refuses.
    init?(requestCount: Int) {
        guard let pages = HostMemory(byteCount: requestCount * Self.bytesPerRequest) else { return nil }
        self.pages = pages
        waiting = IndexQueue(capacity: max(requestCount, 1))
        headers = FixedArray(zeroed: requestCount)
    }

    /// Requests were taken whose pages have not been copied yet.
    fileprivate(set) var isPending = false

    fileprivate static var bytesPerRequest: Int { BlkifLimits.indirectPagesPerRequest * 4096 }

    /// Where a page of a request is copied to.
    fileprivate static func place(_ request: Int, _ page: Int) -> Int { request * bytesPerRequest + page * 4096 }
}

extension QueueEngine {
    /// Looks at a slot that is no request as it stands: segments that are to be fetched, or a rule that is broken.
    @inline(never)
    mutating func fetchOrReject(_ index: Int32, _ slot: SlotBytes, _ problem: RequestError) {
        guard problem == .unknownOperation, BlockRequest.isIndirect(slot, disk: disk) else {
            reject(index, problem)
            return
        }
        switch requests[Int(index)].request.beginIndirect(slot, layout: ring.layout, disk: disk) {
        case .failure(let problem): reject(index, problem)
        case .success(let header):
            // What was taken before it is begun before it.
            closeTail(forced: true)
            if exclusive >= 0 { fetch.firstBehindExclusive = index }
            fetch.headers[Int(index)] = header
            fetch.waiting.append(index)
            fetch.isPending = true
            listsInFlight += 1
        }
    }

    /// Puts the pages of all waiting requests into a batch of copies; true if there are any.
    ///
    /// A batch has room for eleven copies for each slot of the ring, so all of them fit.
    mutating func collectFetches() -> Bool {
        if !fetch.isPending { return false }
        data.beginBatch()
        for position in 0..<fetch.waiting.count {
            let request = Int(fetch.waiting[position])
            let header = fetch.headers[request]
            for page in 0..<header.pageCount {
                data.addFetch(
                    header.references[page], header.byteCount(ofPage: page), to: fetch.pages,
                    at: FetchStage.place(request, page))
            }
        }
        return true
    }

    /// Parses the requests whose pages were copied and begins their lists. `succeeded` is false if the call itself failed.
    mutating func fetched(succeeded: Bool) {
        stats.add(.grant_copy_calls)
        stats.add(.grant_copy_operations, UInt64(data.copies.count))
        fetch.isPending = false
        // A list that must be alone and has not begun was taken behind the first of these.
        var alone: Int32 = -1
        if exclusive >= 0, lists[Int(exclusive)].state.phase == .collecting { swap(&alone, &exclusive) }
        while let index = fetch.waiting.popFirst() {
            listsInFlight -= 1
            if index == fetch.firstBehindExclusive {
                closeTail(forced: true)
                begin(held: &alone)
                fetch.firstBehindExclusive = -1
            }
            var isCopied = succeeded
            for _ in 0..<fetch.headers[Int(index)].pageCount where !data.takeResult() { isCopied = false }
            if !isCopied { stats.add(.grant_errors) }
            if let problem = isCopied ? parseFetched(Int(index)) : .unreachableSegments {
                reject(index, problem)
            } else {
                addToList(index)
            }
        }
        closeTail(forced: false)
        data.beginBatch()
        begin(held: &alone)
        startWaitingLists()
    }

    private mutating func begin(held list: inout Int32) {
        if list >= 0 { begin(list) }
        list = -1
    }

    private mutating func parseFetched(_ request: Int) -> RequestError? {
        let row = segments[request]
        for number in 0..<fetch.headers[request].segmentCount {
            let page = number / BlkifLimits.segmentsPerIndirectPage
            let offset = number % BlkifLimits.segmentsPerIndirectPage * BlkifLimits.segmentSize
            let bits = fetch.pages.load64(at: FetchStage.place(request, page) + offset)
            if let problem = requests[request].request.addSegment(bits, to: row) { return problem }
        }
        return requests[request].request.endIndirect(disk: disk)
    }
}
