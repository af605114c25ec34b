// SPDX-License-Identifier: BSD-2-Clause
// From the ring to reqlists.
import Blkif
import Memory

extension QueueEngine {
    /// Takes what the frontend put on the ring and begins the reqlists that it makes; true if there was anything.
    ///
    /// Requests are counted as taken before any of them is started, so that a response never meets a slot that was
    /// not read. A refused request is answered at once and harms no other.
    mutating func takeRequests() -> Bool {
        guard mayTake else { return false }
        if !replays.isEmpty { return replay() }
        let available: Int
        do throws(RingOverflow) {
            available = try ring.available()
        } catch {
            overflow = error
            return true
        }
        if available == 0 { return false }
        rule.disabled = tuning.noCoalesce
        var taken = 0
        if let limiter = tuning.limiter {
            taken = takeLimited(available, limiter)
        } else {
            var slot = SlotBytes()
            while taken < available, exclusive < 0, memoryWaiters.isEmpty {
                guard let index = freeRequests.pop() else {
                    stats.add(.request_shortages)
                    break
                }
                ring.take(into: &slot)
                journal.take(index, slot)
                taken &+= 1
                accept(index, slot)
            }
        }
        stats.add(.reqs_received, UInt64(taken))
        closeTail(forced: false)
        startWaitingLists()
        return taken > 0
    }

    /// Parses the slot into a pending request and puts it into a reqlist.
    @inline(__always)
    mutating func accept(_ index: Int32, _ slot: borrowing SlotBytes) {
        requests[Int(index)].begin(at: now)
        let row = segments[Int(index)]
        if let problem = requests[Int(index)].request.parse(slot, layout: ring.layout, disk: disk, segments: row) {
            fetchOrReject(index, slot, problem)
            return
        }
        addToList(index)
    }

    /// Puts a parsed request into a reqlist.
    @inline(__always)
    mutating func addToList(_ index: Int32) {
        if tail >= 0 {
            if rule.allows(lists[Int(tail)], requests[Int(index)].request) {
                append(index, to: tail)
                stats.add(.requests_merged)
                return
            }
            closeTail(forced: true)
        }
        startList(index)
    }

    @inline(never)
    mutating func reject(_ index: Int32, _ problem: RequestError) {
        stats.add(.rejected_requests)
        let request = requests[Int(index)].request
        fault = GuestFault(
            error: problem, wireOperation: request.wireOperation, firstSector: request.firstSector,
            sectorCount: request.sectorCount)
        requests[Int(index)].status = problem.status
        respond(index)
    }

    /// Begins a new tail list with one request.
    @inline(__always)
    private mutating func startList(_ index: Int32) {
        lists[Int(index)] = Reqlist(index, requests[Int(index)])
        tail = index
        listsInFlight &+= 1
    }

    @inline(__always)
    private mutating func append(_ index: Int32, to list: Int32) {
        let (segments, sectors) = (requests[Int(index)].request.segmentCount, requests[Int(index)].request.sectorCount)
        let (previous, offset) = lists[Int(list)].append(index, segments: segments, sectors: sectors)
        requests[Int(index)].bufferOffset = offset
        requests[Int(previous)].next = index
    }

    /// Sends the list that requests were being added to.
    ///
    /// Never inlined, so that ``accept(_:_:)`` is small enough to be: the slot would be copied once more for a call.
    @inline(never)
    mutating func closeTail(forced: Bool) {
        if tail < 0 { return }
        let list = tail
        tail = -1
        stats.add(.total_dispatch)
        stats.add(forced ? .forced_dispatch : .normal_dispatch)
        lists[Int(list)].classify(on: traits)
        begin(list)
    }

    /// True if the list must not run beside any other.
    @inline(__always)
    private func mustBeAlone(_ list: Int32) -> Bool {
        let state = lists[Int(list)].state
        if state.operation == .read || state.operation == .discard { return false }
        return state.operation == .writeBarrier || state.data == .partialBlocks
    }

    /// True if the list begins and ends at block boundaries of the disk.
    @inline(__always)
    func fillsWholeBlocks(_ list: Int32) -> Bool {
        traits.fillsWholeBlocks(first: lists[Int(list)].firstSector, sectors: lists[Int(list)].sectorCount)
    }

    /// Starts a closed list on its way, or lets it wait behind those that wait already.
    @inline(__always)
    mutating func begin(_ list: Int32) {
        if exclusive >= 0 || !memoryWaiters.isEmpty {
            waitForMemory(list)
        } else if mustBeAlone(list) {
            startAlone(list)
        } else if allocate(list) {
            start(list)
        } else {
            countShortage()
            waitForMemory(list)
        }
    }

    /// There was no memory, unless the list waits for another queue's.
    @inline(never)
    private func countShortage() {
        if !peers.isWaiting { stats.add(.kva_shortages) }
    }

    @inline(never)
    private mutating func waitForMemory(_ list: Int32) {
        lists[Int(list)].state.phase = .waitingForMemory
        memoryWaiters.append(list)
    }

    @inline(never)
    private mutating func startAlone(_ list: Int32) {
        exclusive = list
        // Requests that wait for their segments were taken before it: the end of the fetch begins it again.
        guard !fetch.isPending else { return lists[Int(list)].state.phase = .collecting }
        lists[Int(list)].state.phase = .waitingForDrain
        startExclusiveIfAlone()
    }

    /// Starts lists that waited for the end of others, after any may have ended.
    @inline(__always)
    mutating func startWaitingLists() {
        if exclusive >= 0 || !memoryWaiters.isEmpty { startAllThatCan() }
    }

    @inline(never)
    private mutating func startAllThatCan() {
        while true {
            let (waiting, alone) = (memoryWaiters.count, exclusive)
            startExclusiveIfAlone()
            if exclusive < 0 { retryMemoryWaiters() }
            // One that ended at once, such as a flush that is skipped, lets the next ones begin.
            if memoryWaiters.count == waiting && exclusive == alone { return }
        }
    }

    /// Starts the list that must be alone once all others are done.
    @inline(never)
    mutating func startExclusiveIfAlone() {
        guard exclusive >= 0, lists[Int(exclusive)].state.phase == .waitingForDrain else { return }
        // The lists that wait for memory were taken after it, and so was the tail.
        guard listsInFlight - memoryWaiters.count - (tail >= 0 ? 1 : 0) == 1,
            !locksBlocks || lockBlocks(of: exclusive)
        else { return }
        if allocate(exclusive) {
            start(exclusive)
        } else {
            // Cannot be: all memory is free, and a list is at most a quarter of it.
            fail(exclusive, .error)
        }
    }

    /// Gives memory to the lists that wait for it, in their order.
    @inline(never)
    mutating func retryMemoryWaiters() {
        while exclusive < 0, let list = memoryWaiters.popFirst() {
            if mustBeAlone(list) {
                startAlone(list)
            } else if !allocate(list) {
                countShortage()
                memoryWaiters.prepend(list)
                return
            } else {
                start(list)
            }
        }
    }
}
