// SPDX-License-Identifier: BSD-2-Clause
// The arithmetic of one limit: a leaky bucket as in QEMU's util/throttle.c, in whole numbers.
//
// What QEMU keeps as a level in bytes that leaks at the rate is kept here as a time: the moment at which the bucket will be
// empty. A request puts this moment off by what it takes at the rate, and nothing needs to leak: time does. A moment is one
// number, which several queues can change with one atomic operation.

/// Time in sixteenths of a nanosecond: fine enough for 10^9 requests in a second, and 64 bits are 36 years.
enum LimitTime {
    /// In one second.
    static var second: UInt64 { 16_000_000_000 }

    /// `nanoseconds` of the monotonic clock.
    @inline(__always)
    static func ticks(_ nanoseconds: UInt64) -> UInt64 { min(nanoseconds, .max >> 4) << 4 }

    /// Whole nanoseconds, rounded up.
    @inline(__always)
    static func nanoseconds(_ ticks: UInt64) -> UInt64 { ticks >> 4 &+ (ticks & 15 == 0 ? 0 : 1) }

    /// What `units` take at `rate` units in a second, rounded; the largest number where it is larger.
    static func span(_ units: UInt64, at rate: UInt64) -> UInt64 { scaled(second, by: units, over: rate) }

    /// `ticks` times `factor` over `divisor`, rounded; the largest number where it is larger.
    static func scaled(_ ticks: UInt64, by factor: UInt64, over divisor: UInt64) -> UInt64 {
        guard divisor > 0 else { return .max }
        let product = ticks.multipliedFullWidth(by: factor)
        let (low, carry) = product.low.addingReportingOverflow(divisor / 2)
        let high = product.high &+ (carry ? 1 : 0)
        return high >= divisor ? .max : divisor.dividingFullWidth((high, low)).quotient
    }
}

/// One limit. Requests get through while the bucket is not over-full, whatever their size: the next one waits for what they
/// took too much.
package struct BucketRule: Sendable, Equatable, BitwiseCopyable {
    /// Bytes or requests in a second; 0: no limit.
    let rate: UInt64
    /// The same during a burst; 0: no burst.
    private let burst: UInt64
    /// What gets through before the rate counts, as a time at the rate. Without a burst it is a tenth of a second, so that a
    /// queue which slept too long makes up for it.
    private let room: UInt64
    /// The same at the rate of the burst.
    private static var burstRoom: UInt64 { LimitTime.second / 10 }
    /// A burst longer than one second has a bucket of its own, which holds it to its rate.
    private let hasBurstBucket: Bool

    /// `rate` and `burst` in a second, a burst of `seconds`, of which 0 is 1.
    package init(rate: UInt64, burst: UInt64 = 0, seconds: UInt64 = 1) {
        self.rate = rate
        self.burst = burst
        hasBurstBucket = burst > 0 && seconds > 1
        if burst == 0 {
            room = LimitTime.second / 10
        } else {
            let (whole, overflow) = LimitTime.span(burst, at: rate).multipliedReportingOverflow(by: max(seconds, 1))
            room = overflow ? .max : whole
        }
    }

    /// When the two buckets will be empty, in ticks; in the past: they are.
    package struct Level: Sendable, Equatable, BitwiseCopyable {
        var main: UInt64 = 0
        var burst: UInt64 = 0

        /// Empty.
        package init() {}
    }

    /// What a request of `units` takes.
    struct Cost: Sendable, Equatable, BitwiseCopyable {
        var main: UInt64
        var burst: UInt64
    }

    /// What `units` take. Of requests that count as several, `units` is multiplied by `factor` over `divisor`.
    @inline(__always)
    func cost(_ units: UInt64, factor: UInt64 = 1, over divisor: UInt64 = 1) -> Cost {
        var cost = Cost(
            main: LimitTime.span(units, at: rate), burst: hasBurstBucket ? LimitTime.span(units, at: burst) : 0)
        if factor > divisor {
            cost.main = LimitTime.scaled(cost.main, by: factor, over: divisor)
            cost.burst = LimitTime.scaled(cost.burst, by: factor, over: divisor)
        }
        return cost
    }

    /// A moment `cost` later: of a bucket that has been empty since before `now`, from now on.
    @inline(__always)
    static func later(_ moment: UInt64, by cost: UInt64, now: UInt64) -> UInt64 {
        let (sum, overflow) = max(moment, now).addingReportingOverflow(cost)
        return overflow ? .max : sum
    }

    /// How long the next request has to wait, in ticks; 0: not at all.
    @inline(__always)
    func wait(_ level: Level, now: UInt64) -> UInt64 {
        let excess = Self.excess(level.main, room, now)
        if excess > 0 || !hasBurstBucket { return excess }
        return Self.excess(level.burst, Self.burstRoom, now)
    }

    @inline(__always)
    private static func excess(_ moment: UInt64, _ room: UInt64, _ now: UInt64) -> UInt64 {
        // Room without an end is never used up.
        if moment <= now || room == .max { return 0 }
        let fill = moment &- now
        return fill > room ? fill &- room : 0
    }

    /// A bucket that is full at `now`, in ticks: one request gets through, and those behind it wait for their turns.
    func full(_ now: UInt64) -> Level {
        var level = Level()
        level.main = Self.later(now, by: room, now: now)
        level.burst = Self.later(now, by: Self.burstRoom, now: now)
        return level
    }
}
