// SPDX-License-Identifier: BSD-2-Clause
// Requests that the limits of the disk hold back stay on the ring: they take no memory, and what is behind them waits in its
// order. Without a limit nothing of this is reached.
import Blkif
import Memory

/// How the limits of the disk hold a queue back.
struct ThrottleState {
    /// The queue's number among those of the disk.
    var queue = 0
    /// The ring is not looked at before, in ns; 0: it is.
    fileprivate(set) var until: UInt64 = 0
    /// Since when it waits, in ns; 0: it does not.
    fileprivate var since: UInt64 = 0
    /// The index on the ring up to which requests that wait were counted.
    fileprivate var countedTo: UInt32 = 0
    /// Requests that still get through whatever the limits say, because the connection ends.
    fileprivate var freePass = 0

    /// A wait is looked at again after a second, in ns: what is told of it is not older.
    fileprivate static var longest: UInt64 { 1_000_000_000 }
    /// A disk that has taken more than this too much, in ns, gets no free pass: a frontend could come and go for one.
    fileprivate static var mostDebt: UInt64 { 1_000_000_000 }
}

extension QueueEngine {
    /// The ring is not looked at for now.
    @inline(__always)
    var isThrottled: Bool { throttle.until > now }

    /// Takes requests from the ring while the limits of the disk allow; how many. `available` is what the ring has.
    @inline(never)
    mutating func takeLimited(_ available: Int, _ limiter: DiskLimiter) -> Int {
        let wasWaiting = throttle.since != 0
        endThrottle()
        var slot = SlotBytes()
        var taken = 0
        while taken < available, exclusive < 0, memoryWaiters.isEmpty {
            guard let index = freeRequests.pop() else {
                stats.add(.request_shortages)
                break
            }
            ring.take(into: &slot)
            requests[Int(index)].begin(at: now)
            let row = segments[Int(index)]
            let problem = requests[Int(index)].request.parse(slot, layout: ring.layout, disk: disk, segments: row)
            // What is decided by is what is taken: the guest may change the slot at any time.
            if let cost = limitCost(index, slot, problem), let wait = admit(cost, limiter) {
                ring.putBack()
                freeRequests.push(index)
                leaveOnRing(available - taken, limiter, wait)
                return taken
            }
            journal.take(index, slot)
            taken &+= 1
            if let problem { fetchOrReject(index, slot, problem) } else { addToList(index) }
        }
        if wasWaiting { limiter.goesOn(throttle.queue) }
        return taken
    }

    private mutating func admit(_ cost: RequestCost, _ limiter: DiskLimiter) -> DiskLimiter.Wait? {
        guard let wait = limiter.admit(cost, queue: throttle.queue, now: now) else { return nil }
        if throttle.freePass == 0 { return wait }
        throttle.freePass -= 1
        limiter.take(cost, queue: throttle.queue, now: now)
        return nil
    }

    /// What a request costs; nil: nothing. One that is refused costs a read without data.
    private func limitCost(_ index: Int32, _ slot: borrowing SlotBytes, _ problem: RequestError?) -> RequestCost? {
        if let problem {
            guard problem == .unknownOperation, BlockRequest.isIndirect(slot, disk: disk) else {
                return RequestCost(bytes: 0, isWrite: false)
            }
            // Whole pages, until its segments are known.
            let count = min(UInt64(slot.load(UInt16.self, at: 2)), UInt64(disk.maximumIndirectSegments))
            let isWrite = slot.load(UInt8.self, at: 1) == BlockOperation.write.rawValue
            return RequestCost(bytes: count &* 4096, isWrite: isWrite)
        }
        let request = requests[Int(index)].request
        switch request.operation {
        case .read: return RequestCost(bytes: request.sectorCount &* 512, isWrite: false)
        case .write: return RequestCost(bytes: request.sectorCount &* 512, isWrite: true)
        case .flush, .writeBarrier:
            return request.sectorCount == 0 ? nil : RequestCost(bytes: request.sectorCount &* 512, isWrite: true)
        case .discard: return RequestCost(bytes: 0, isWrite: true)
        }
    }

    /// The segments of an indirect request are known: gives back what was taken for more than they are.
    @inline(__always)
    func correctCost(_ index: Int, segmentCount: Int) {
        guard let limiter = tuning.limiter else { return }
        let request = requests[index].request
        let isWrite = request.operation == .write
        limiter.correct(
            RequestCost(bytes: UInt64(segmentCount) &* 4096, isWrite: isWrite),
            to: RequestCost(bytes: request.sectorCount &* 512, isWrite: isWrite))
    }

    /// Leaves the ring alone for a while; it has `count` requests.
    private mutating func leaveOnRing(_ count: Int, _ limiter: DiskLimiter, _ wait: DiskLimiter.Wait) {
        throttle.since = now
        throttle.until = min(wait.until, now &+ ThrottleState.longest)
        let end = ring.requestConsumer &+ UInt32(truncatingIfNeeded: count)
        // Those that were counted when the queue began to wait are counted once.
        let counted = max(Int32(bitPattern: throttle.countedTo &- ring.requestConsumer), 0)
        stats.add(.throttled_requests, UInt64(max(Int32(truncatingIfNeeded: count) &- counted, 0)))
        throttle.countedTo = end
        limiter.waits(
            throttle.queue, DiskLimiter.Wait(until: throttle.until, limit: wait.limit), requests: count)
    }

    /// The ring may be looked at: the wait is over, or there are other limits, or none.
    mutating func endThrottle() {
        if throttle.since == 0 { return }
        let end = min(now, throttle.until)
        if end > throttle.since { stats.add(.throttled_microseconds, (end &- throttle.since) / 1000) }
        throttle.since = 0
        throttle.until = 0
    }

    /// The connection ends: what the ring holds does not wait for the limits, but counts.
    ///
    /// A frontend that closes again and again, and has taken more than it may with that, gets nothing for nothing: its
    /// requests wait as before, for as long as a drain lasts.
    mutating func endThrottleForDrain() {
        endThrottle()
        throttle.freePass = 0
        guard let limiter = tuning.limiter, limiter.debtUntil(now: now) &- now <= ThrottleState.mostDebt else { return }
        throttle.freePass = ring.entryCount
    }
}
