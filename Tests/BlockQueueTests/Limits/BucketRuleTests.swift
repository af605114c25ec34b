// SPDX-License-Identifier: BSD-2-Clause
// The arithmetic of a limit, with a simulated clock and beside QEMU's.
import Testing

@testable import BlockQueue

/// One bucket and its clock, in ns.
private struct Bucket {
    let rule: BucketRule
    var level = BucketRule.Level()
    var now: UInt64 = 5_000_000_000

    init(rate: UInt64, burst: UInt64 = 0, seconds: UInt64 = 1, full: Bool = false) {
        rule = BucketRule(rate: rate, burst: burst, seconds: seconds)
        if full { level = rule.full(LimitTime.ticks(now)) }
    }

    /// Nanoseconds until a request gets through.
    var wait: UInt64 { LimitTime.nanoseconds(rule.wait(level, now: LimitTime.ticks(now))) }

    mutating func charge(_ units: UInt64) {
        let cost = rule.cost(units)
        level.main = BucketRule.later(level.main, by: cost.main, now: LimitTime.ticks(now))
        level.burst = BucketRule.later(level.burst, by: cost.burst, now: LimitTime.ticks(now))
    }

    /// What gets through in `seconds` if requests of `units` always wait, and whoever sleeps wakes up to `late` ns late.
    mutating func run(seconds: UInt64, units: UInt64, late: UInt64 = 0) -> UInt64 {
        let end = now + seconds * 1_000_000_000
        var passed: UInt64 = 0
        while now < end {
            let wait = wait
            if wait == 0 {
                charge(units)
                passed += units
            } else {
                now += wait + late
            }
        }
        return passed
    }
}

/// util/throttle.c of QEMU 7.2: throttle_leak_bucket(), throttle_compute_wait() and throttle_account().
private struct QemuBucket {
    let average: Double
    let burst: Double
    let length: Double
    var level = 0.0
    var burstLevel = 0.0

    mutating func leak(seconds: Double) {
        level = max(level - average * seconds, 0)
        if length > 1 { burstLevel = max(burstLevel - burst * seconds, 0) }
    }

    /// In seconds.
    var wait: Double {
        let size = burst == 0 ? average / 10 : burst * length
        if level > size { return (level - size) / average }
        if length > 1, burstLevel > burst / 10 { return (burstLevel - burst / 10) / burst }
        return 0
    }

    mutating func account(_ units: Double) {
        level += units
        if length > 1 { burstLevel += units }
    }
}

@Suite("A limit's bucket")
struct BucketRuleTests {
    /// Bytes in a second and of a request.
    static let shapes: [(rate: UInt64, units: UInt64)] = [
        (400_000, 4096), (10_000_000, 4096), (20_000_000, 1 << 20), (100_000_000, 1 << 20), (5_000_000_000, 1 << 20),
        // Requests in a second.
        (200, 1), (3456, 1),
    ]

    @Test(
        "exact within 2 % over 10 s, also if whoever waits wakes late", arguments: shapes, [0, 1_000_000, 60_000_000])
    func exact(_ shape: (rate: UInt64, units: UInt64), _ late: UInt64) {
        for full in [false, true] {
            var bucket = Bucket(rate: shape.rate, full: full)
            let wanted = Double(shape.rate) * 10
            let part = Double(bucket.run(seconds: 10, units: shape.units, late: late)) / wanted
            #expect(part > 0.98 && part < 1.02, "\(part) of \(shape), full: \(full)")
            // Never more than the limit, a tenth of a second and one request.
            let most = wanted + Double(shape.rate) / 10 + Double(shape.units)
            #expect(part * wanted <= most * 1.0005)
        }
    }

    @Test("no rate is rounded away: a second's worth of small requests takes a second")
    func fine() {
        for (rate, units) in [(20_000_000_000, 4096), (1_000_000_000, 512), (10_000_000, 1)] as [(UInt64, UInt64)] {
            let cost = BucketRule(rate: rate).cost(units).main
            let part = Double(cost) * Double(rate) / Double(units) / Double(LimitTime.second)
            #expect(abs(part - 1) < 0.001, "\(part) at \(rate)")
        }
    }

    @Test("a burst of one second gets through at once, then the limit counts; idle time brings the burst back")
    func burst() {
        var bucket = Bucket(rate: 1000, burst: 5000)
        var passed = 0
        while bucket.wait == 0 {
            bucket.charge(1)
            passed += 1
        }
        #expect(passed == 5001)
        #expect((9_999...10_001).contains(bucket.run(seconds: 10, units: 1)))
        bucket.now += 20_000_000_000
        passed = 0
        while bucket.wait == 0 {
            bucket.charge(1)
            passed += 1
        }
        #expect(passed == 5001)
    }

    @Test("a long burst has its rate for its length, whatever was not used before")
    func longBurst() {
        var bucket = Bucket(rate: 1000, burst: 5000, seconds: 8)
        // The bucket holds 8 s x 5000; 1000 leak each second meanwhile: 10 s at 5000, as QEMU's documentation has it.
        let first = bucket.run(seconds: 10, units: 1)
        #expect((49_900...50_600).contains(first), "\(first)")
        let next = bucket.run(seconds: 10, units: 1)
        #expect((9_900...10_600).contains(next), "\(next)")
    }

    @Test("a request larger than all that a bucket holds gets through, and the next one waits for it")
    func debt() {
        var bucket = Bucket(rate: 1000)
        #expect(bucket.wait == 0)
        bucket.charge(1 << 20)
        // Less the tenth of a second that the bucket holds.
        #expect(bucket.wait == (1 << 20) * 1_000_000 - 100_000_000)
        bucket.now += bucket.wait
        #expect(bucket.wait == 0)
    }

    @Test("the same waits as QEMU's, of random requests at random times")
    func peer() {
        var random = SystemRandomNumberGenerator()
        for _ in 0..<300 {
            let rate = UInt64.random(in: 1...1 << UInt64.random(in: 1...36), using: &random)
            let burst = Bool.random(using: &random) ? 0 : rate + UInt64.random(in: 0...rate * 9, using: &random)
            let seconds = burst == 0 ? 1 : UInt64.random(in: 1...20, using: &random)
            var bucket = Bucket(rate: rate, burst: burst, seconds: seconds)
            var qemu = QemuBucket(average: Double(rate), burst: Double(burst), length: Double(seconds))
            for _ in 0..<300 {
                let units = UInt64.random(in: 1...max(rate / 4, 1), using: &random)
                let (own, other) = (Double(bucket.wait) / 1e9, qemu.wait)
                // Rounded to a sixteenth of a nanosecond for each request.
                guard abs(own - other) < 1e-6 + other * 1e-6 else {
                    Issue.record("\(own) s and \(other) s at \(rate), burst \(burst) of \(seconds) s")
                    return
                }
                if bucket.wait == 0 {
                    bucket.charge(units)
                    qemu.account(Double(units))
                }
                let pause = UInt64.random(in: 0...400_000_000, using: &random)
                bucket.now += pause
                qemu.leak(seconds: Double(pause) / 1e9)
            }
        }
    }

    @Test("no number overflows", arguments: [1, 2, 1 << 20, 1 << 62, 1 << 63, .max] as [UInt64])
    func extremes(_ rate: UInt64) {
        for burst in [0, rate, 1 << 63, .max] as [UInt64] where burst == 0 || burst >= rate {
            for seconds in [0, 1, 86400, .max] as [UInt64] {
                for full in [false, true] {
                    var bucket = Bucket(rate: rate, burst: burst, seconds: seconds, full: full)
                    for units in [0, 1, 4096, 1 << 40, 1 << 63, .max] as [UInt64] {
                        bucket.charge(units)
                        _ = bucket.wait
                        bucket.now += 1
                    }
                    bucket.now = .max
                    bucket.charge(.max)
                    _ = bucket.wait
                }
            }
        }
        // What such a limit means: one byte in a second, and none that is ever felt.
        var slow = Bucket(rate: 1)
        slow.charge(10)
        #expect(slow.wait == 9_900_000_000)
        var fast = Bucket(rate: 1 << 63)
        for _ in 0..<1000 { fast.charge(1 << 20) }
        #expect(fast.wait == 0)
    }

    @Test("a request of more bytes counts as several requests, and not as less than one")
    func size() {
        let rule = BucketRule(rate: 100)
        let one = rule.cost(1).main
        #expect(rule.cost(1, factor: 65536, over: 4096).main == 16 * one)
        #expect(rule.cost(1, factor: 6144, over: 4096).main == one * 3 / 2)
        #expect(rule.cost(1, factor: 512, over: 4096).main == one && rule.cost(1, factor: 0, over: 1).main == one)
    }
}
