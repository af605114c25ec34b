// SPDX-License-Identifier: BSD-2-Clause
// Between the ring and parsing: what of a request lies outside its slot is fetched first.
//
// A slot that is no request as it stands comes here. A request that waits for its segments counts as a list in flight, and
// one that must be alone and was taken behind it waits for it.
import Blkif
import Memory

/// Requests whose segments stand in other pages of the guest. They are copied into the requests' rows, once, then checked.
struct FetchStage: ~Copyable {
    /// Requests that wait for their pages, in the order in which they were taken.
    fileprivate var waiting: IndexQueue
    /// The one that was taken behind a list that must be alone or that waits for memory; -1 for none. The ring is not read
    /// after it.
    fileprivate var lastBehindOthers: Int32 = -1
    /// What the slot of each request said.
    fileprivate var headers: FixedArray<IndirectRequest>

    /// For a ring of `requestCount` slots, or for none where no such requests are offered.
    init(requestCount: Int) {
        waiting = IndexQueue(capacity: max(requestCount, 1))
        headers = FixedArray(zeroed: requestCount)
    }

    /// Those that wait are done again: no limit was asked for them.
    var isOfReplay = false

    /// Requests were taken whose pages have not been copied yet.
    fileprivate(set) var isPending = false
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
            if exclusive >= 0 || !memoryWaiters.isEmpty { fetch.lastBehindOthers = index }
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
                    header.references[page], header.byteCount(ofPage: page), to: segments.memory,
                    at: segments.place(of: request, page: page))
            }
        }
        return true
    }

    /// Parses the requests whose pages were copied and begins their lists. `succeeded` is false if the call itself failed.
    mutating func fetched(succeeded: Bool) {
        stats.add(.grant_copy_calls)
        stats.add(.grant_copy_operations, UInt64(data.copies.count))
        stats.add(.indirect_requests, UInt64(fetch.waiting.count))
        stats.add(.indirect_pages, UInt64(data.copies.count))
        fetch.isPending = false
        // What was taken behind the first of these and has not begun: a list that must be alone, then those that wait.
        var alone: Int32 = -1
        if exclusive >= 0, lists[Int(exclusive)].state.phase == .collecting { swap(&alone, &exclusive) }
        var behind = memoryWaiters.count
        while let index = fetch.waiting.popFirst() {
            listsInFlight -= 1
            if index == fetch.lastBehindOthers {
                closeTail(forced: true)
                begin(held: &alone, before: &behind)
                fetch.lastBehindOthers = -1
            }
            var isCopied = succeeded
            for _ in 0..<fetch.headers[Int(index)].pageCount where !data.takeResult() { isCopied = false }
            if !isCopied { stats.add(.grant_errors) }
            if let problem = isCopied ? checkFetched(Int(index)) : .unreachableSegments {
                reject(index, problem)
            } else {
                if !fetch.isOfReplay {
                    correctCost(Int(index), segmentCount: fetch.headers[Int(index)].segmentCount)
                }
                addToList(index)
            }
        }
        fetch.isOfReplay = false
        closeTail(forced: false)
        data.beginBatch()
        begin(held: &alone, before: &behind)
        startWaitingLists()
    }

    /// Begins a list behind those that were fetched, then puts the first `waiting` of those that wait behind it: in the order in
    /// which they were taken, as what must be alone waits for what was taken before it and for nothing else.
    private mutating func begin(held list: inout Int32, before waiting: inout Int) {
        if list >= 0 { begin(list) }
        list = -1
        for _ in 0..<waiting {
            guard let first = memoryWaiters.popFirst() else { break }
            memoryWaiters.append(first)
        }
        waiting = 0
    }

    private mutating func checkFetched(_ request: Int) -> RequestError? {
        requests[request].request.endIndirect(
            segments: segments[request], count: fetch.headers[request].segmentCount, disk: disk)
    }
}
