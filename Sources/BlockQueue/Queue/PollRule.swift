// SPDX-License-Identifier: BSD-2-Clause
// How long a queue that has nothing to do looks for work before it sleeps.

/// Decides by what waiting has cost so far. All times are in ns of the monotonic clock.
///
/// Looking for work pays where it comes sooner than a sleeping processor wakes. It is done only while work usually comes
/// within ``longest``, and what was spent on looking in vain stays below ``percent`` of the time that goes by: a disk that
/// nobody uses costs nothing.
struct PollRule {
    /// The longest look; 0: sleep at once.
    var longest: UInt64 = 0
    /// The share of one processor that may be spent in vain, in percent; 100 has no limit, and looks each time.
    var percent: UInt64 = 100
    /// How long it usually takes until there is work again.
    private(set) var usual: UInt64 = 0
    /// What may still be spent in vain.
    private var credit: UInt64 = 0
    private var credited: UInt64 = 0
    private var began: UInt64?

    /// What is saved up at most: this many of the longest looks.
    private static var mostSaved: UInt64 { 8 }

    /// The queue has nothing to do at `now`: how long it may look for work.
    mutating func begin(now: UInt64) -> UInt64 {
        if longest == 0 { return 0 }
        if began == nil { began = now }
        if percent >= 100 { return longest }
        let gone = now > credited ? min(now - credited, 1_000_000_000) : 0
        credited = now
        credit = min(credit + gone / 100 * percent, longest.multipliedSafely(by: Self.mostSaved))
        if usual > longest { return 0 }
        return min(longest, credit)
    }

    /// A look that took `time` found nothing.
    mutating func wasInVain(_ time: UInt64) { credit -= min(credit, time) }

    /// There is work again at `now`, found by looking or by an event.
    @inline(__always)
    mutating func end(now: UInt64) {
        guard let start = began else { return }
        began = nil
        learn(now > start ? now - start : 0)
    }

    @inline(never)
    private mutating func learn(_ waited: UInt64) {
        // A long sleep says no more than that the next wait may be long, too: without a bound, one would count for a thousand.
        let sample = min(waited, longest.multipliedSafely(by: 16))
        usual = usual - usual / 8 + sample / 8
    }
}

extension UInt64 {
    fileprivate func multipliedSafely(by factor: UInt64) -> UInt64 {
        let (product, overflow) = multipliedReportingOverflow(by: factor)
        return overflow ? .max : product
    }
}
