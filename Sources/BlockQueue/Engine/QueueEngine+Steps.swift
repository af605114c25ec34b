// SPDX-License-Identifier: BSD-2-Clause
// What is done with a reqlist in each step that ``Reqlist/next(after:on:)`` names.
import Blkif
import Memory
import PluginAPI

extension QueueEngine {
    /// Takes memory for the list's data; false if none is free now.
    @inline(__always)
    mutating func allocate(_ list: Int32) -> Bool {
        let sectors = lists[Int(list)].sectorCount
        if sectors == 0 || lists[Int(list)].state.operation == .discard { return true }
        // Whole blocks of the disk around the data: the head says how far into the first block it begins.
        let first = lists[Int(list)].firstSector &* 512
        let head = first & traits.blockMask
        let bytes = (head &+ sectors &* 512 &+ traits.blockMask) & ~traits.blockMask
        let pages = Int(truncatingIfNeeded: (bytes &+ 4095) >> 12)
        let scratch = traits.blockMask > 511 && hasRequestOfPartialBlocks(list) ? QueueEngine.scratchPages : 0
        guard data.allocate(pages &+ scratch, for: list, &lists[Int(list)].buffer) else { return false }
        lists[Int(list)].buffer.scratch =
            scratch > 0 ? Int32(truncatingIfNeeded: pages &* BufferPool.pageSize) : 0
        lists[Int(list)].buffer.headBytes = Int32(truncatingIfNeeded: head)
        lists[Int(list)].offset = first &- head
        lists[Int(list)].length = bytes
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
        case .finish: finish(list)
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

    /// Puts the list among those whose data are to be copied from or to the guest.
    @inline(__always)
    mutating func wait(_ list: Int32, for copy: ReqlistPhase) {
        lists[Int(list)].state.phase = copy
        data.wait(list)
    }

    // MARK: Copies

    /// Puts the copies of waiting lists into a batch, as many lists as fit; true if there is something to copy.
    mutating func collectCopies() -> Bool {
        guard data.nextForBatch() != nil else { return false }
        data.beginBatch()
        while let list = data.nextForBatch() {
            let buffer = lists[Int(list)].buffer
            guard data.hasRoom(segments: lists[Int(list)].segmentCount, buffer) else { break }
            if buffer.runs == 1 { collect(list, buffer) } else { collectScattered(list, buffer) }
            data.tookIntoBatch()
        }
        return data.copies.count > 0
    }

    @inline(__always)
    private mutating func collect(_ list: Int32, _ buffer: ListBuffer) {
        let toGuest = lists[Int(list)].state.phase == .copyOut
        let start = buffer.start &+ Int(buffer.headBytes)
        var index = list
        while index >= 0 {
            let request = Int(index)
            if requests[request].status == .okay {
                var place = start &+ Int(requests[request].bufferOffset)
                for number in 0..<Int(requests[request].request.segmentCount) {
                    let segment = requests[request].request.segments[number]
                    let length = segment.sectorCount &* 512
                    data.add(segment, length, at: place, toGuest: toGuest)
                    place &+= length
                }
            }
            index = requests[request].next
        }
    }

    /// The same for a buffer of several runs, where a segment that crosses the end of a run takes two copies.
    @inline(never)
    private mutating func collectScattered(_ list: Int32, _ buffer: ListBuffer) {
        let toGuest = lists[Int(list)].state.phase == .copyOut
        forEachSegment(of: list) { engine, _, segment, offset in
            engine.data.addScattered(segment, at: offset, in: buffer, of: list, toGuest: toGuest)
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
                    let segment = requests[request].request.segments[number]
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
        for _ in 0..<data.batchCount {
            guard let list = data.popBatched() else { break }
            if lists[Int(list)].buffer.runs > 1 { takeScatteredResults(list, succeeded) }
            let isTaken = lists[Int(list)].buffer.runs > 1
            var failed: Int32 = 0
            var index = list
            while index >= 0 {
                let request = Int(index)
                if requests[request].status == .okay && !isTaken {
                    for _ in 0..<Int(requests[request].request.segmentCount) {
                        if !data.takeResult() || !succeeded {
                            stats.add(.grant_errors)
                            requests[request].status = .error
                        }
                    }
                }
                if requests[request].status != .okay { failed &+= 1 }
                index = requests[request].next
            }
            go(list, after: .copied(failed: failed))
        }
        data.beginBatch()
    }

    @inline(never)
    private mutating func takeScatteredResults(_ list: Int32, _ succeeded: Bool) {
        let buffer = lists[Int(list)].buffer
        forEachSegment(of: list) { engine, request, segment, offset in
            if !engine.data.takeScatteredResult(segment, at: offset, in: buffer, of: list) || !succeeded {
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
    ///
    /// In this order, so that the resources of a request are free before the frontend can see its response.
    @inline(__always)
    mutating func finish(_ list: Int32) {
        lists[Int(list)].state.phase = .free
        data.release(lists[Int(list)].buffer, of: list)
        var index = list
        while index >= 0 {
            let next = requests[Int(index)].next
            respond(index)
            index = next
        }
        listsInFlight &-= 1
        if exclusive >= 0 || !memoryWaiters.isEmpty { startWaiting(behind: list) }
    }

    /// Lists that waited for the end of another may begin now.
    @inline(never)
    private mutating func startWaiting(behind list: Int32) {
        if exclusive == list { exclusive = -1 }
        if exclusive >= 0 { startExclusiveIfAlone() }
        if !memoryWaiters.isEmpty { retryMemoryWaiters() }
    }

    /// Writes the response of a request.
    @inline(__always)
    mutating func respond(_ index: Int32) {
        let request = Int(index)
        let status = requests[request].status
        journal.answer(index, at: ring.responseProducer)
        ring.respond(
            id: requests[request].request.id, wireOperation: requests[request].request.wireOperation, status: status)
        unpublished &+= 1
        if status == .okay {
            count(
                requests[request].request.operation, requests[request].request.sectorCount,
                elapsed: now &- requests[request].received)
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

    @inline(__always)
    private func count(_ operation: BlockOperation, _ sectors: UInt64, elapsed: UInt64) {
        switch operation {
        case .read:
            stats.add(.read_requests)
            stats.add(.read_sectors, sectors)
            stats.record(.read, nanoseconds: elapsed)
        case .write:
            stats.add(.write_requests)
            stats.add(.write_sectors, sectors)
            stats.record(.write, nanoseconds: elapsed)
        case .writeBarrier:
            stats.add(.barrier_requests)
            stats.add(.write_sectors, sectors)
            stats.record(.write, nanoseconds: elapsed)
        case .flush:
            stats.add(.flush_requests)
            stats.add(.write_sectors, sectors)
            stats.record(.flush, nanoseconds: elapsed)
        case .discard:
            stats.add(.discard_requests)
            stats.add(.discard_sectors, sectors)
            stats.record(.discard, nanoseconds: elapsed)
        }
    }
}
