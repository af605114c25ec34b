// SPDX-License-Identifier: BSD-2-Clause
// A reqlist's way through its phases.
//
//   flush, barrier      write, not whole blocks      write        read          discard
//   flushBefore    ┐    fillBlocks            ┐                   transfer
//                  └──────────────────────────┴────► copyIn ──► transfer ──►    transfer
//                                                               flushAfter*     copyOut        * barrier without FUA
import Blkif
import Glibc
import Memory
import PluginAPI
import Xen

extension QueueEngine {
    /// Takes memory for the list's data; false if none is free now.
    @inline(__always)
    mutating func allocate(_ list: Int32) -> Bool {
        let (operation, firstSector, sectors) = lists.look(Int(list)) { ($0.operation, $0.firstSector, $0.sectorCount) }
        if sectors == 0 || operation == .discard { return true }
        // Whole blocks of the disk around the data: the head says how far into the first block it begins.
        let block = UInt64(device.logicalBlock)
        let first = firstSector &* 512
        let head = first & (block - 1)
        let bytes = (head &+ sectors &* 512 &+ block &- 1) & ~(block - 1)
        let pages = Int(truncatingIfNeeded: (bytes &+ 4095) >> 12)
        let needsScratch = block > 512 && lists[Int(list)].requestCount > 1 && hasRequestOfPartialBlocks(list)
        let all = pages + (needsScratch ? QueueEngine.scratchPages : 0)
        guard let page = buffers.allocate(all) else { return false }
        lists.update(Int(list)) { waiting in
            waiting.bufferPage = Int32(truncatingIfNeeded: page)
            waiting.bufferPages = Int32(truncatingIfNeeded: all)
            waiting.scratchPage = needsScratch ? Int32(truncatingIfNeeded: page + pages) : 0
            waiting.headBytes = Int32(truncatingIfNeeded: head)
            waiting.offset = first &- head
            waiting.length = bytes
        }
        return true
    }

    /// The first phase of a list that has its memory.
    @inline(__always)
    mutating func startPhases(_ list: Int32) {
        let operation = lists[Int(list)].operation
        if operation == .flush || operation == .writeBarrier {
            startFlush(list, .flushBefore)
        } else {
            startData(list)
        }
    }

    /// Data phases, or the end for a flush without data.
    private mutating func startData(_ list: Int32) {
        let position = Int(list)
        if lists[position].operation == .discard {
            startDiscard(list)
        } else if lists[position].sectorCount == 0 {
            finish(list)
        } else if lists[position].operation == .read {
            startTransfer(list)
        } else if device.logicalBlock > 512 && !fillsWholeBlocks(lists[position]) {
            lists[position].phase = .fillBlocks
            beginSubmission(list)
        } else {
            startCopyIn(list)
        }
    }

    /// Asks for a flush; a disk without a volatile cache needs none.
    private mutating func startFlush(_ list: Int32, _ phase: ReqlistPhase) {
        lists[Int(list)].phase = phase
        if !device.capabilities.contains(.flush) || (phase == .flushBefore && skipsFlush(list)) {
            advance(list)
            return
        }
        beginSubmission(list)
    }

    /// The seed's two tunables that trade safety for speed; they never touch barriers.
    private mutating func skipsFlush(_ list: Int32) -> Bool {
        guard lists[Int(list)].operation == .flush else { return false }
        if tuning.disableFlush { return true }
        flushCount &+= 1
        return tuning.flushInterval > 1 && flushCount % tuning.flushInterval != 0
    }

    private mutating func startDiscard(_ list: Int32) {
        let position = Int(list)
        lists[position].phase = .transfer
        // A discard is advice: what does not fill whole blocks of the disk is left alone. A secure one is a promise.
        let block = UInt64(device.logicalBlock)
        let first = (lists[position].firstSector &* 512 &+ block &- 1) & ~(block - 1)
        let end = ((lists[position].firstSector &+ lists[position].sectorCount) &* 512) & ~(block - 1)
        if lists[position].secure && device.capabilities.contains(.discardSecure) && !fillsWholeBlocks(lists[position])
        {
            fail(list, .error)
            return
        }
        if end <= first {
            finish(list)
            return
        }
        lists[position].offset = first
        lists[position].length = end - first
        beginSubmission(list)
    }

    @inline(__always)
    private mutating func startTransfer(_ list: Int32) {
        lists[Int(list)].phase = .transfer
        beginSubmission(list)
    }

    /// Puts the copies from the guest into the batch.
    @inline(__always)
    private mutating func startCopyIn(_ list: Int32) {
        lists[Int(list)].phase = .copyIn
        copyInLists.append(list)
    }

    // MARK: The end of a phase

    /// Goes on after a phase that ended well.
    mutating func advance(_ list: Int32) {
        let position = Int(list)
        switch lists[position].phase {
        case .flushBefore: startData(list)
        case .fillBlocks: startCopyIn(list)
        case .copyIn: startTransfer(list)
        case .transfer: afterTransfer(list)
        case .flushAfter, .copyOut: finish(list)
        case .free, .collecting, .waitingForDrain, .waitingForMemory: break
        }
    }

    @inline(__always)
    private mutating func afterTransfer(_ list: Int32) {
        let position = Int(list)
        switch lists[position].operation {
        case .read:
            lists[position].phase = .copyOut
            copyOutLists.append(list)
        case .writeBarrier where !device.capabilities.contains(.fua) && device.capabilities.contains(.flush):
            startFlush(list, .flushAfter)
        default:
            finish(list)
        }
    }

    /// The plugin completed all parts of a phase.
    @inline(__always)
    mutating func phaseCompleted(_ list: Int32) {
        let position = Int(list)
        let failure = lists[position].failure
        if lists[position].isSplit {
            finishSplitRequest(list)
        } else if failure == 0 {
            advance(list)
        } else if lists[position].requestCount > 1 && lists[position].phase == .transfer {
            split(list)
        } else if lists[position].requestCount > 1 && lists[position].phase == .fillBlocks {
            // Perhaps only the first or the last request has to do with the block that cannot be read.
            lists[position].isSplit = true
            startCopyIn(list)
        } else {
            fail(list, failure == -EOPNOTSUPP ? .notSupported : .error)
        }
    }

    /// Answers all requests of a list with one status, and okay only to those that did not fail before.
    mutating func fail(_ list: Int32, _ status: BlockStatus) {
        var index = lists[Int(list)].first
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
        var (index, page, pages) = lists.update(Int(list)) { done in
            done.phase = .free
            return (done.first, done.bufferPage, done.bufferPages)
        }
        if pages > 0 { buffers.release(Int(page), Int(pages)) }
        while index >= 0 {
            let next = requests[Int(index)].next
            respond(index)
            index = next
        }
        freeLists.push(list)
        listsInFlight -= 1
        if exclusive == list { exclusive = -1 }
        if exclusive >= 0 { startExclusiveIfAlone() }
        if !memoryWaiters.isEmpty { retryMemoryWaiters() }
    }

    /// Writes the response of a request and gives the request back.
    @inline(__always)
    mutating func respond(_ index: Int32) {
        let (id, wireOperation, operation, status, sectors, received) = requests.look(Int(index)) { entry in
            (
                entry.request.id, entry.request.wireOperation, entry.request.operation, entry.status,
                entry.request.sectorCount, entry.received
            )
        }
        ring.respond(id: id, wireOperation: wireOperation, status: status)
        unpublished &+= 1
        if status == .okay {
            count(operation, sectors, elapsed: now &- received)
        } else {
            stats.add(.reqs_completed_with_error)
        }
        freeRequests.push(index)
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
