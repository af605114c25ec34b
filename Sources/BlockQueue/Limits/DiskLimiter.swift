// SPDX-License-Identifier: BSD-2-Clause
// The limits of a disk at work: buckets that all of its queues take from, without a lock.
import Synchronization

/// The buckets of a disk. Any thread; other limits are another object, with empty buckets.
///
/// Looking and taking are two steps: of queues that look at the same moment each may get one request too many through, which
/// the next ones wait for. Nothing is lost or gained in the long run.
package final class DiskLimiter: Sendable, Equatable {
    /// What it holds the disk to.
    package let limits: DiskLimits
    private let rules: InlineArray<6, BucketRule>
    private let main: InlineArray<6, Atomic<UInt64>>
    private let burst: InlineArray<6, Atomic<UInt64>>
    private let shares: QueueShares

    /// Buckets for `limits`, at a time of the monotonic clock in ns: empty, or full where a process goes on with the disk of
    /// another one; `debtUntil` is what ``debtUntil(now:)`` said there.
    package init(_ limits: DiskLimits, queueCount: Int, full: Bool = false, debtUntil: UInt64 = 0, now: UInt64) {
        self.limits = limits
        let rules = InlineArray<6, BucketRule> { index in
            let limit = limits[index]
            return BucketRule(rate: limit.rate, burst: limit.burst, seconds: limit.seconds)
        }
        self.rules = rules
        let start = LimitTime.ticks(max(now, debtUntil))
        main = InlineArray { Atomic(full ? rules[$0].full(start).main : 0) }
        burst = InlineArray { Atomic(full ? rules[$0].full(start).burst : 0) }
        shares = QueueShares(queueCount: queueCount)
    }

    /// Why a request waits.
    struct Wait: Equatable {
        /// Until when, in ns of the monotonic clock.
        var until: UInt64
        /// The limit, an index of ``DiskLimits``.
        var limit: Int
    }

    /// Lets a request of a queue through and takes what it costs, or says why it has to wait. `now` is in ns.
    func admit(_ cost: RequestCost, queue: Int, now: UInt64) -> Wait? {
        let ticks = LimitTime.ticks(now)
        let limits = cost.limits
        var worst = (wait: UInt64(0), limit: 0)
        for position in limits.indices {
            let limit = limits[position]
            if rules[limit].rate == 0 { continue }
            let wait = rules[limit].wait(level(limit), now: ticks)
            if wait > worst.wait { worst = (wait, limit) }
        }
        if worst.wait > 0 {
            return Wait(until: now &+ LimitTime.nanoseconds(worst.wait), limit: worst.limit)
        }
        if let limit = shares.mustYield(queue, limits, now: now) {
            return Wait(until: now &+ QueueShares.pause, limit: limit)
        }
        take(cost, queue: queue, now: now)
        return nil
    }

    /// Takes what a request costs, whatever the buckets hold.
    func take(_ cost: RequestCost, queue: Int, now: UInt64) {
        let ticks = LimitTime.ticks(now)
        let limits = cost.limits
        var most: UInt64 = 0
        for position in limits.indices {
            let limit = limits[position]
            if rules[limit].rate == 0 { continue }
            let units = units(cost, limit)
            Self.change(main[limit]) { BucketRule.later($0, by: units.main, now: ticks) }
            if units.burst > 0 { Self.change(burst[limit]) { BucketRule.later($0, by: units.burst, now: ticks) } }
            most = max(most, units.main)
        }
        shares.count(most, for: queue)
    }

    /// Gives back what was taken for `taken` more than for `cost`, of the same direction.
    func correct(_ taken: RequestCost, to cost: RequestCost) {
        let limits = taken.limits
        for position in limits.indices {
            let limit = limits[position]
            if rules[limit].rate == 0 { continue }
            let (before, after) = (units(taken, limit), units(cost, limit))
            // A moment in the past counts as now, so that nothing can be gained by it.
            Self.change(main[limit]) { $0 == .max ? $0 : $0 &- min(before.main &- min(after.main, before.main), $0) }
            Self.change(burst[limit]) {
                $0 == .max ? $0 : $0 &- min(before.burst &- min(after.burst, before.burst), $0)
            }
        }
    }

    /// Until when the disk has taken more than it may, in ns of the monotonic clock; `now` if it has not.
    package func debtUntil(now: UInt64) -> UInt64 {
        let ticks = LimitTime.ticks(now)
        var most: UInt64 = 0
        for limit in 0..<DiskLimits.count where rules[limit].rate > 0 {
            most = max(most, rules[limit].wait(level(limit), now: ticks))
        }
        return now &+ LimitTime.nanoseconds(most)
    }

    /// A queue waits, with so many requests on its ring.
    func waits(_ queue: Int, _ wait: Wait, requests: Int) {
        shares.set(queue, until: wait.until, limit: wait.limit, requests: requests)
    }

    /// A queue does not wait any more.
    func goesOn(_ queue: Int) { shares.set(queue, until: 0, limit: 0, requests: 0) }

    /// Requests that wait at `now` ns on the rings of the disk.
    package func waitingRequests(now: UInt64) -> Int { shares.waitingRequests(now: now) }

    /// The same buckets.
    package static func == (left: DiskLimiter, right: DiskLimiter) -> Bool { left === right }

    private func level(_ limit: Int) -> BucketRule.Level {
        var level = BucketRule.Level()
        level.main = main[limit].load(ordering: .relaxed)
        level.burst = burst[limit].load(ordering: .relaxed)
        return level
    }

    private func units(_ cost: RequestCost, _ limit: Int) -> BucketRule.Cost {
        if limit < 3 { return rules[limit].cost(cost.bytes) }
        return rules[limit].cost(1, factor: limits.requestSize > 0 ? cost.bytes : 0, over: max(limits.requestSize, 1))
    }

    private static func change(_ cell: borrowing Atomic<UInt64>, _ next: (UInt64) -> UInt64) {
        var old = cell.load(ordering: .relaxed)
        while true {
            let (isDone, seen) = cell.compareExchange(expected: old, desired: next(old), ordering: .relaxed)
            if isDone { return }
            old = seen
        }
    }
}
