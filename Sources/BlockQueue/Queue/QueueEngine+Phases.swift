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

extension QueueEngine {
    /// Takes memory for the list's data; false if none is free now.
    @inline(__always)
    mutating func allocate(_ list: Int32) -> Bool {
        let sectors = lists[Int(list)].sectorCount
        if sectors == 0 || lists[Int(list)].operation == .discard { return true }
        // Whole blocks of the disk around the data: the head says how far into the first block it begins.
        let first = lists[Int(list)].firstSector &* 512
        let head = first & blockMask
        let bytes = (head &+ sectors &* 512 &+ blockMask) & ~blockMask
        let pages = Int(truncatingIfNeeded: (bytes &+ 4095) >> 12)
        let scratch = blockMask > 511 && hasRequestOfPartialBlocks(list) ? QueueEngine.scratchPages : 0
        guard let page = buffers.allocate(pages &+ scratch) else { return false }
        lists[Int(list)].bufferPage = Int32(truncatingIfNeeded: page)
        lists[Int(list)].bufferPages = Int32(truncatingIfNeeded: pages &+ scratch)
        lists[Int(list)].scratchPage = scratch > 0 ? Int32(truncatingIfNeeded: page &+ pages) : 0
        lists[Int(list)].headBytes = Int32(truncatingIfNeeded: head)
        lists[Int(list)].offset = first &- head
        lists[Int(list)].length = bytes
        return true
    }

    /// The first phase of a list that has its memory.
    @inline(__always)
    mutating func startPhases(_ list: Int32) {
        let operation = lists[Int(list)].operation
        if operation == .read {
            startTransfer(list)
        } else if operation == .write && blockMask == 511 {
            startCopyIn(list)
        } else if operation == .write || operation == .discard {
            startData(list)
        } else {
            startFlush(list, .flushBefore)
        }
    }

    /// Data phases, or the end for a flush without data.
    @inline(never)
    private mutating func startData(_ list: Int32) {
        if lists[Int(list)].operation == .discard {
            startDiscard(list)
        } else if lists[Int(list)].sectorCount == 0 {
            finish(list)
        } else if fillsWholeBlocks(list) {
            startCopyIn(list)
        } else {
            submit(list, .fillBlocks)
        }
    }

    /// Asks for a flush; a disk without a volatile cache needs none.
    @inline(never)
    private mutating func startFlush(_ list: Int32, _ phase: ReqlistPhase) {
        if !device.capabilities.contains(.flush) || (phase == .flushBefore && skipsFlush(list)) {
            lists[Int(list)].phase = phase
            advance(list)
        } else {
            submit(list, phase)
        }
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
        // A discard is advice: what does not fill whole blocks of the disk is left alone. A secure one is a promise.
        let first = (lists[position].firstSector &* 512 &+ blockMask) & ~blockMask
        let end = ((lists[position].firstSector &+ lists[position].sectorCount) &* 512) & ~blockMask
        if lists[position].secure && device.capabilities.contains(.discardSecure) && !fillsWholeBlocks(list) {
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

    /// Puts the list among those whose data is to be copied from the guest.
    @inline(__always)
    private mutating func startCopyIn(_ list: Int32) {
        lists[Int(list)].phase = .copyIn
        copying.append(list)
    }

    /// Puts the list among those whose data is to be copied to the guest.
    @inline(__always)
    mutating func startCopyOut(_ list: Int32) {
        lists[Int(list)].phase = .copyOut
        copying.append(list)
    }

    // MARK: The end of a phase

    /// Goes on after a phase that ended well.
    mutating func advance(_ list: Int32) {
        switch lists[Int(list)].phase {
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
        switch lists[Int(list)].operation {
        case .read:
            startCopyOut(list)
        case .writeBarrier where !device.capabilities.contains(.fua) && device.capabilities.contains(.flush):
            startFlush(list, .flushAfter)
        default:
            finish(list)
        }
    }

    /// The plugin completed all parts of a phase.
    @inline(__always)
    mutating func phaseCompleted(_ list: Int32) {
        if lists[Int(list)].isSplit || lists[Int(list)].failure != 0 {
            phaseOfFailedCompleted(list)
        } else if lists[Int(list)].phase == .transfer && lists[Int(list)].operation == .read {
            startCopyOut(list)
        } else {
            advance(list)
        }
    }

    /// The plugin completed all parts of a phase of a list that failed now or before.
    @inline(never)
    private mutating func phaseOfFailedCompleted(_ list: Int32) {
        let position = Int(list)
        let failure = lists[position].failure
        if lists[position].isSplit {
            finishSplitRequest(list)
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
        lists[Int(list)].phase = .free
        let pages = Int(lists[Int(list)].bufferPages)
        if pages > 0 { buffers.release(Int(lists[Int(list)].bufferPage), pages) }
        var index = list
        while index >= 0 {
            let next = requests[Int(index)].next
            respond(index)
            index = next
        }
        listsInFlight &-= 1
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
