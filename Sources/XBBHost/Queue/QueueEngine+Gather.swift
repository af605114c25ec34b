// SPDX-License-Identifier: BSD-2-Clause
// From the ring to reqlists.
import Blkif
import Memory

extension QueueEngine {
    /// Takes what the frontend put on the ring and begins the reqlists that it makes; true if there was anything.
    ///
    /// Requests are counted as taken before any of them is started, so that a response never meets a slot that was
    /// not read. A refused request is answered at once and harms no other.
    mutating func gather() -> Bool {
        guard mayGather else { return false }
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
        var slot = SlotBytes()
        while taken < available, exclusive < 0, memoryWaiters.isEmpty {
            guard let index = freeRequests.pop() else {
                stats.add(.request_shortages)
                break
            }
            ring.take(into: &slot)
            taken += 1
            accept(index, slot)
        }
        stats.add(.reqs_received, UInt64(taken))
        closeTail(forced: false)
        return taken > 0
    }

    /// Parses the slot into a pending request and puts it into a reqlist.
    @inline(__always)
    private mutating func accept(_ index: Int32, _ slot: SlotBytes) {
        let problem = requests.update(Int(index)) { [disk, now, layout = ring.layout] entry in
            entry.received = now
            entry.status = .okay
            entry.next = -1
            entry.bufferOffset = 0
            return entry.request.parse(slot, layout: layout, disk: disk)
        }
        if let problem {
            reject(index, problem)
            return
        }
        if tail >= 0 {
            if continuesTail(index) {
                append(index, to: tail)
                stats.add(.requests_merged)
                return
            }
            closeTail(forced: true)
        }
        startList(index)
    }

    private mutating func reject(_ index: Int32, _ problem: RequestError) {
        stats.add(.rejected_requests)
        let request = requests[Int(index)].request
        fault = GuestFault(
            error: problem, wireOperation: request.wireOperation, firstSector: request.firstSector,
            sectorCount: request.sectorCount)
        requests[Int(index)].status = problem.status
        respond(index)
    }

    /// Begins a new tail list with one request. There are as many lists as requests, so one is always free.
    @inline(__always)
    private mutating func startList(_ index: Int32) {
        guard let list = freeLists.pop() else {
            stats.add(.request_shortages)
            requests[Int(index)].status = .error
            respond(index)
            return
        }
        let (operation, secure, first, sectors, segments) = requests.look(Int(index)) { entry in
            (
                entry.request.operation, entry.request.secure, entry.request.firstSector, entry.request.sectorCount,
                entry.request.segmentCount
            )
        }
        lists.update(Int(list)) { fresh in
            fresh.operation = operation
            fresh.phase = .collecting
            fresh.secure = secure
            fresh.durable = operation == .writeBarrier
            fresh.isSplit = false
            fresh.firstSector = first
            fresh.sectorCount = sectors
            fresh.first = index
            fresh.last = index
            fresh.requestCount = 1
            fresh.segmentCount = Int32(segments)
            fresh.bufferPages = 0
            fresh.headBytes = 0
            fresh.scratchPage = 0
            fresh.current = -1
            fresh.wasForced = false
            fresh.progress = 0
            fresh.length = 0
            fresh.offset = 0
            fresh.outstanding = 0
            fresh.failure = 0
        }
        tail = list
        listsInFlight += 1
    }

    @inline(__always)
    private mutating func append(_ index: Int32, to list: Int32) {
        let offset = lists[Int(list)].sectorCount &* 512
        let (segments, sectors) = requests.update(Int(index)) { entry in
            entry.bufferOffset = Int32(truncatingIfNeeded: offset)
            return (entry.request.segmentCount, entry.request.sectorCount)
        }
        let last = lists.update(Int(list)) { grown in
            defer { grown.last = index }
            grown.requestCount &+= 1
            grown.segmentCount &+= Int32(segments)
            grown.sectorCount &+= sectors
            return grown.last
        }
        requests[Int(last)].next = index
    }

    /// True if the request belongs into the tail list.
    @inline(__always)
    private func continuesTail(_ index: Int32) -> Bool {
        requests.look(Int(index)) { [rule] entry in
            let (operation, first, sectors, segments) = (
                entry.request.operation, entry.request.firstSector, entry.request.sectorCount,
                entry.request.segmentCount
            )
            return lists.look(Int(tail)) {
                rule.allows($0, operation: operation, first: first, sectors: sectors, segments: segments)
            }
        }
    }

    /// Sends the list that requests were being added to.
    @inline(__always)
    mutating func closeTail(forced: Bool) {
        if tail < 0 { return }
        let list = tail
        tail = -1
        stats.add(.total_dispatch)
        stats.add(forced ? .forced_dispatch : .normal_dispatch)
        begin(list)
    }

    /// True if `list` must not run beside any other.
    @inline(__always)
    private func mustBeAlone(_ list: Reqlist) -> Bool {
        if list.operation == .writeBarrier { return true }
        if device.logicalBlock == 512 || list.sectorCount == 0 { return false }
        return (list.operation == .write || list.operation == .flush) && !fillsWholeBlocks(list)
    }

    /// True if the list begins and ends at block boundaries of the disk.
    @inline(__always)
    func fillsWholeBlocks(_ list: Reqlist) -> Bool {
        let sectors = UInt64(device.logicalBlock / 512)
        return (list.firstSector | list.sectorCount) & (sectors - 1) == 0
    }

    /// Starts a closed list on its way, or lets it wait behind those that wait already.
    @inline(__always)
    private mutating func begin(_ list: Int32) {
        if exclusive >= 0 || !memoryWaiters.isEmpty {
            lists[Int(list)].phase = .waitingForMemory
            memoryWaiters.append(list)
        } else if mustBeAlone(lists[Int(list)]) {
            exclusive = list
            lists[Int(list)].phase = .waitingForDrain
            startExclusiveIfAlone()
        } else if allocate(list) {
            startPhases(list)
        } else {
            stats.add(.kva_shortages)
            lists[Int(list)].phase = .waitingForMemory
            memoryWaiters.append(list)
        }
    }

    /// Starts the list that must be alone once all others are done.
    mutating func startExclusiveIfAlone() {
        guard exclusive >= 0, lists[Int(exclusive)].phase == .waitingForDrain else { return }
        // The lists that wait for memory were taken after it, and so was the tail.
        guard listsInFlight - memoryWaiters.count - (tail >= 0 ? 1 : 0) == 1 else { return }
        if allocate(exclusive) {
            startPhases(exclusive)
        } else {
            // Cannot be: all memory is free, and a list is at most a quarter of it.
            fail(exclusive, .error)
        }
    }

    /// Gives memory to the lists that wait for it, in their order.
    mutating func retryMemoryWaiters() {
        while exclusive < 0, let list = memoryWaiters.popFirst() {
            if mustBeAlone(lists[Int(list)]) {
                exclusive = list
                lists[Int(list)].phase = .waitingForDrain
                startExclusiveIfAlone()
            } else if !allocate(list) {
                stats.add(.kva_shortages)
                memoryWaiters.prepend(list)
                return
            } else {
                startPhases(list)
            }
        }
    }
}
