// SPDX-License-Identifier: BSD-2-Clause
// What is done with a reqlist in each step that ``Reqlist/next(after:on:)`` names.
import Blkif
import Memory
import PluginAPI

extension QueueEngine {
    /// Takes memory for the list's data; false if none is free now, or if another queue has the blocks.
    @inline(__always)
    mutating func allocate(_ list: Int32) -> Bool {
        let state = lists[Int(list)].state
        if locksBlocks && !lockBlocks(of: list) { return false }
        if state.data == .none || state.operation == .discard { return true }
        let (pages, head) = lists[Int(list)].widen(on: traits)
        if traits.blockMask > 511 && hasRequestOfPartialBlocks(list) { return allocateWithScratch(list, pages, head) }
        return data.allocate(pages, head: head, for: list)
    }

    /// The same with pages behind the data, where single requests are done that fill blocks only in part.
    @inline(never)
    private mutating func allocateWithScratch(_ list: Int32, _ pages: Int, _ head: Int32) -> Bool {
        guard data.allocate(pages + scratchPages, head: head, for: list) else { return false }
        data.setScratch(pages * BufferPool.pageSize, of: list)
        return true
    }

    /// The first step of a list that has its memory.
    @inline(__always)
    mutating func start(_ list: Int32) {
        let skipsFlush = lists[Int(list)].state.operation == .flush && skipsFlush()
        switch lists[Int(list)].state.next(after: .begun(skipsFlush: skipsFlush), on: traits) {
        case .transfer: startTransfer(list)
        case .copyIn: wait(list, for: .copyIn)
        case let step: goSlowly(list, step)
        }
    }

    /// FreeBSD's two tunables that trade safety for speed; they never touch barriers.
    private mutating func skipsFlush() -> Bool {
        if tuning.disableFlush { return true }
        flushCount &+= 1
        return tuning.flushInterval > 1 && flushCount % tuning.flushInterval != 0
    }

    /// Goes on with a list after what happened to it.
    @inline(__always)
    mutating func go(_ list: Int32, after event: ReqlistEvent) {
        switch lists[Int(list)].state.next(after: event, on: traits) {
        case .transfer: startTransfer(list)
        case .copyIn: wait(list, for: .copyIn)
        case .copyOut: wait(list, for: .copyOut)
        case .finish: finishInline(list)
        case let step: goSlowly(list, step)
        }
    }

    /// The steps that few lists take.
    @inline(never)
    private mutating func goSlowly(_ list: Int32, _ step: ReqlistStep) {
        switch step {
        case .flush(let phase): submit(list, phase)
        case .fillBlocks: submit(list, .fillBlocks)
        case .discard: startDiscard(list)
        case .split: split(list)
        case .splitCopyIn:
            lists[Int(list)].state.isSplit = true
            wait(list, for: .copyIn)
        case .splitNext: finishSplitRequest(list)
        case .writeZeroesAsData:
            lists[Int(list)].state.zeroes = .dataAfterRefusal
            startTransfer(list)
        case .hold: hold(list)
        case .fail(let status): fail(list, status)
        case .finish: finish(list)
        case .transfer, .copyIn, .copyOut: break
        }
    }

    private mutating func startDiscard(_ list: Int32) {
        let position = Int(list)
        // A discard is advice: what does not fill whole blocks of the disk is left alone. A secure one is a promise.
        let mask = traits.blockMask
        let first = (lists[position].firstSector &* 512 &+ mask) & ~mask
        let end = ((lists[position].firstSector &+ lists[position].sectorCount) &* 512) & ~mask
        if lists[position].secure && canEraseSecurely && !fillsWholeBlocks(list) {
            fail(list, .error)
            return
        }
        if end <= first {
            finish(list)
            return
        }
        lists[position].offset = first
        lists[position].length = end - first
        startTransfer(list)
    }

    /// Queues the list for copying its data from or to the guest.
    @inline(__always)
    mutating func wait(_ list: Int32, for copy: ReqlistPhase) {
        lists[Int(list)].state.phase = copy
        data.wait(list)
    }

    // MARK: Copies
    //
    // Most lists have one request. The first one is done apart from the others of its list, here and where responses are
    // written: a loop would load what its rounds have in common before it begins, which costs more than one round.

    /// Puts the copies of waiting lists into a batch, as many lists as fit; true if there is something to copy.
    mutating func collectCopies() -> Bool {
        guard data.nextForBatch() != nil else { return false }
        data.beginBatch()
        while let list = data.nextForBatch() {
            guard data.hasRoom(for: list, segments: lists[Int(list)].segmentCount) else { break }
            if let start = data.start(of: list) { collect(list, start) } else { collectScattered(list) }
            data.tookIntoBatch()
        }
        return data.copies.count > 0
    }

    @inline(__always)
    private mutating func collect(_ list: Int32, _ buffer: Int) {
        let toGuest = lists[Int(list)].state.phase == .copyOut
        let start = buffer &+ data.head(of: list)
        collect(request: list, start, toGuest: toGuest)
        let second = requests[Int(list)].next
        if second >= 0 { collectRest(second, start, toGuest: toGuest) }
    }

    @inline(never)
    private mutating func collectRest(_ second: Int32, _ start: Int, toGuest: Bool) {
        var index = second
        while index >= 0 {
            collect(request: index, start, toGuest: toGuest)
            index = requests[Int(index)].next
        }
    }

    @inline(__always)
    private mutating func collect(request index: Int32, _ start: Int, toGuest: Bool) {
        let request = Int(index)
        if requests[request].status != .okay { return }
        let row = segments[request]
        var place = start &+ Int(requests[request].bufferOffset)
        for number in 0..<Int(requests[request].request.segmentCount) {
            let segment = row[number]
            let length = segment.sectorCount &* 512
            data.add(segment, length, at: place, toGuest: toGuest)
            place &+= length
        }
    }

    /// The same for a buffer of several runs, where a segment that crosses the end of a run takes two copies.
    @inline(never)
    private mutating func collectScattered(_ list: Int32) {
        let toGuest = lists[Int(list)].state.phase == .copyOut
        forEachSegment(of: list) { engine, _, segment, offset in
            engine.data.addScattered(segment, at: offset, in: list, toGuest: toGuest)
        }
    }

    /// The segments of a list's requests that have not failed, each with its request and its offset in the buffer.
    private mutating func forEachSegment(
        of list: Int32,
        _ body: (inout QueueEngine, _ request: Int, BlockSegment, _ offset: Int) -> Void
    ) {
        var index = list
        while index >= 0 {
            let request = Int(index)
            if requests[request].status == .okay {
                var offset = place(of: list, request)
                for number in 0..<Int(requests[request].request.segmentCount) {
                    let segment = segments[request][number]
                    body(&self, request, segment, offset)
                    offset += segment.sectorCount * 512
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
        stats.add(.grant_copy_operations, UInt64(data.copies.count))
        if !succeeded { data.failBatch() }
        for _ in 0..<data.batchCount {
            guard let list = data.popBatched() else { break }
            let isScattered = data.start(of: list) == nil
            if isScattered { takeScatteredResults(list) }
            var failed: Int32 = takeResults(list, isScattered) ? 0 : 1
            let second = requests[Int(list)].next
            if second >= 0 { failed &+= takeRestOfResults(second, isScattered) }
            go(list, after: .copied(failed: failed))
        }
        data.beginBatch()
        startWaitingLists()
    }

    /// The requests of a list that failed, from its second one on.
    @inline(never)
    private mutating func takeRestOfResults(_ second: Int32, _ isScattered: Bool) -> Int32 {
        var failed: Int32 = 0
        var index = second
        while index >= 0 {
            if !takeResults(index, isScattered) { failed &+= 1 }
            index = requests[Int(index)].next
        }
        return failed
    }

    /// Takes the results of a request's copies, unless they were taken; false if the request has failed, now or before.
    @inline(__always)
    private mutating func takeResults(_ index: Int32, _ areTaken: Bool) -> Bool {
        let request = Int(index)
        if requests[request].status != .okay { return false }
        if areTaken { return true }
        var isDone = true
        for _ in 0..<Int(requests[request].request.segmentCount) {
            if data.takeResult() { continue }
            stats.add(.grant_errors)
            isDone = false
        }
        if !isDone { requests[request].status = .error }
        return isDone
    }

    @inline(never)
    private mutating func takeScatteredResults(_ list: Int32) {
        forEachSegment(of: list) { engine, request, segment, offset in
            if !engine.data.takeScatteredResult(segment, at: offset, in: list) {
                engine.stats.add(.grant_errors)
                engine.requests[request].status = .error
            }
        }
    }

    // MARK: The end

    /// Answers all requests of a list with one status, also those that had another one before.
    mutating func fail(_ list: Int32, _ status: BlockStatus) {
        var index = list
        while index >= 0 {
            requests[Int(index)].status = status
            index = requests[Int(index)].next
        }
        finish(list)
    }

    /// Frees what the list holds, then answers its requests.
    @inline(never)
    mutating func finish(_ list: Int32) { finishInline(list) }

    /// The same, for the way of most lists.
    ///
    /// In this order, so that the resources of a request are free before the frontend can see its response.
    @inline(__always)
    private mutating func finishInline(_ list: Int32) {
        lists[Int(list)].state.phase = .free
        data.release(list)
        if locksBlocks { unlockBlocks(of: list) }
        let second = requests[Int(list)].next
        respond(list)
        if second >= 0 { respondToRest(second) }
        listsInFlight &-= 1
        if exclusive == list { exclusive = -1 }
    }

    @inline(never)
    private mutating func respondToRest(_ second: Int32) {
        var index = second
        while index >= 0 {
            respond(index)
            index = requests[Int(index)].next
        }
    }

    /// Writes the response of a request.
    @inline(__always)
    mutating func respond(_ index: Int32) {
        let pending = requests[Int(index)]
        journal.answer(index, at: ring.responseProducer)
        ring.respond(id: pending.request.id, wireOperation: pending.request.wireOperation, status: pending.status)
        unpublished &+= 1
        if pending.status == .okay {
            stats.count(pending.request.operation, pending.request.sectorCount, nanoseconds: now &- pending.received)
        } else {
            stats.add(.reqs_completed_with_error)
        }
        answered.append(index)
    }

    /// Gives requests back whose responses the frontend can see now.
    @inline(__always)
    mutating func releaseAnswered() {
        while let index = answered.popFirst() {
            journal.release(index)
            freeRequests.push(index)
        }
        if replaying.isCareful { replayedAlone() }
    }
}
