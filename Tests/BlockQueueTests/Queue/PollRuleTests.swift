// SPDX-License-Identifier: BSD-2-Clause
// When a queue without work looks for it, and when it sleeps at once.
import Testing

@testable import BlockQueue

@Suite struct PollRuleTests {
    private static let microsecond: UInt64 = 1000

    private func rule(longest: UInt64, percent: UInt64) -> PollRule {
        var rule = PollRule()
        rule.longest = longest
        rule.percent = percent
        return rule
    }

    /// Lets time pass as a queue's thread does: `wait` until there is work; returns what was spent on looking.
    private func step(_ rule: inout PollRule, _ now: inout UInt64, wait: UInt64) -> (looked: UInt64, inVain: Bool) {
        let allowed = rule.begin(now: now)
        let inVain = wait > allowed
        if inVain && allowed > 0 { rule.wasInVain(allowed) }
        now += wait
        rule.end(now: now)
        return (min(allowed, wait), inVain)
    }

    @Test func offIsOff() {
        var rule = rule(longest: 0, percent: 100)
        var now: UInt64 = 5_000_000_000
        for _ in 0..<100 { #expect(step(&rule, &now, wait: 10).looked == 0) }
    }

    @Test func withoutALimitItLooksEachTime() {
        var rule = rule(longest: 50 * Self.microsecond, percent: 100)
        var now: UInt64 = 1
        for wait in [1, 1_000_000_000, 20_000, 1_000_000_000] as [UInt64] {
            #expect(step(&rule, &now, wait: wait).looked == min(wait, 50 * Self.microsecond))
        }
    }

    @Test func workThatComesQuicklyIsWaitedForAwake() {
        var rule = rule(longest: 100 * Self.microsecond, percent: 20)
        var now: UInt64 = 1_000_000_000
        var asleep = 0
        for _ in 0..<10_000 where step(&rule, &now, wait: 40 * Self.microsecond).inVain { asleep += 1 }
        #expect(asleep < 10, "slept \(asleep) of 10000 times")
    }

    @Test(arguments: [150, 1_000, 100_000, 10_000_000] as [UInt64])
    func workThatComesLateIsNotLookedFor(microseconds: UInt64) {
        var rule = rule(longest: 100 * Self.microsecond, percent: 20)
        var now: UInt64 = 1_000_000_000
        for _ in 0..<100 { _ = step(&rule, &now, wait: microseconds * Self.microsecond) }
        #expect(step(&rule, &now, wait: microseconds * Self.microsecond).looked == 0)
    }

    @Test func itLooksAgainWhenWorkComesQuicklyAgain() {
        var rule = rule(longest: 100 * Self.microsecond, percent: 20)
        var now: UInt64 = 1_000_000_000
        for _ in 0..<10 { _ = step(&rule, &now, wait: 3_600_000_000_000) }
        for _ in 0..<40 { _ = step(&rule, &now, wait: 50 * Self.microsecond) }
        #expect(!step(&rule, &now, wait: 50 * Self.microsecond).inVain)
    }

    /// Whatever the waits are, the share that is spent in vain stays below the limit, but for what may be saved up.
    @Test(arguments: [1, 5, 20, 99] as [UInt64])
    func theShareInVainIsBounded(percent: UInt64) {
        var rule = rule(longest: 100 * Self.microsecond, percent: percent)
        var random = SystemRandomNumberGenerator()
        let start: UInt64 = 7_000_000_000
        var (now, vain) = (start, UInt64(0))
        for _ in 0..<20_000 {
            // Near the limit: often just too late.
            let wait = UInt64.random(in: 1...200, using: &random) * Self.microsecond
            let (looked, inVain) = step(&rule, &now, wait: wait)
            if inVain { vain += looked }
        }
        #expect(vain <= (now - start) / 100 * percent + 8 * 100 * Self.microsecond + (now - start) / 1000)
    }

    @Test func noValueTraps() {
        for longest in [1, 1_000_000_000, UInt64.max] as [UInt64] {
            for percent in [1, 50, 100] as [UInt64] {
                var rule = rule(longest: longest, percent: percent)
                for now in [0, UInt64.max, 5, UInt64.max - 1] as [UInt64] {
                    _ = rule.begin(now: now)
                    rule.wasInVain(.max)
                    rule.end(now: 0)
                    _ = rule.begin(now: 0)
                    rule.end(now: .max)
                }
            }
        }
    }
}
