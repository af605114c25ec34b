// SPDX-License-Identifier: BSD-2-Clause
// When a disk that does nothing is not looked at any more.
import Testing

@testable import XBBHost

/// #expect cannot change a value.
private final class Looks {
    private var rule = IdleRule()
    var isQuiet: Bool { rule.isQuiet }
    func look(isIdle: Bool, taken: UInt64) -> Bool { rule.look(isIdle: isIdle, taken: taken) }
    func awoke() { rule.awoke() }
}

@Suite struct IdleRuleTests {
    @Test func looksEndAfterTwoThatFoundNothing() {
        let rule = Looks()
        #expect(rule.look(isIdle: true, taken: 5) && !rule.isQuiet, "queues are told first")
        #expect(!rule.look(isIdle: true, taken: 5) && rule.isQuiet)
        #expect(!rule.look(isIdle: true, taken: 5) && rule.isQuiet)
    }

    @Test func whatAQueueTookWhileItWasToldIsSeen() {
        let rule = Looks()
        #expect(rule.look(isIdle: true, taken: 5))
        // It had left its sleep before, and was not told.
        #expect(!rule.look(isIdle: false, taken: 6) && !rule.isQuiet)
        // Or it has answered by now.
        #expect(rule.look(isIdle: true, taken: 6))
        #expect(rule.look(isIdle: true, taken: 7) && !rule.isQuiet, "it is told once more")
        #expect(!rule.look(isIdle: true, taken: 7) && rule.isQuiet)
    }

    @Test func aQueueThatIsAwakeEndsTheRest() {
        let rule = Looks()
        for _ in 0..<3 {
            #expect(rule.look(isIdle: true, taken: 0))
            rule.awoke()
            #expect(!rule.isQuiet && rule.look(isIdle: true, taken: 0))
            #expect(!rule.look(isIdle: true, taken: 0) && rule.isQuiet)
            rule.awoke()
            #expect(!rule.isQuiet)
        }
    }
}
