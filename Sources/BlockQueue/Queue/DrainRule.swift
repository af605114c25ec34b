// SPDX-License-Identifier: BSD-2-Clause
// How long the ring of a connection that is ending is still read.

/// Which requests a queue takes before it ends.
package struct DrainRule: Sendable, Equatable {
    /// The ring is read until it was empty, with nothing in flight, for that long, in ns; nil: it is not read any more.
    let quiet: UInt64?
    /// What becomes of requests that wait for space.
    let held: HoldEnd

    /// No more: what is on the ring stays there.
    package static let atOnce = DrainRule(quiet: nil, held: .fail)
    /// The same, for a successor that goes on with the ring.
    package static let handOver = DrainRule(quiet: nil, held: .leave)
    /// What the ring holds.
    package static let whenEmpty = DrainRule(quiet: 0, held: .tryOnce)
    /// What the ring holds and what comes until 250 ms have passed without any: longer than a busy frontend takes from one
    /// request to the next, and hardly seen beside what `xl destroy` takes.
    package static let whenQuiet = DrainRule(quiet: 250_000_000, held: .tryOnce)
}

/// A drain that is under way.
struct Drain {
    /// A frontend that never comes to rest is cut off after 5 s, in ns: half of what xl waits for a backend.
    static var limit: UInt64 { 5_000_000_000 }

    private let rule: DrainRule
    private let began: UInt64
    /// Since when nothing is in flight or on the ring; nil while something is.
    private var restedSince: UInt64?

    /// `now` is the monotonic clock's, in ns.
    init(_ rule: DrainRule, now: UInt64) {
        self.rule = rule
        began = now
    }

    /// True if the ring is not to be read any more. `isBusy`: requests are in flight or on the ring.
    mutating func isOver(isBusy: Bool, now: UInt64) -> Bool {
        guard let quiet = rule.quiet, now &- began < Self.limit else { return true }
        if isBusy {
            restedSince = nil
            return false
        }
        let since = restedSince ?? now
        restedSince = since
        return now &- since >= quiet
    }

    /// How long to sleep at most before it may be over, in ms, rounded up.
    func milliseconds(now: UInt64) -> Int32 {
        let (since, span) = restedSince.map { ($0, rule.quiet ?? 0) } ?? (began, Self.limit)
        return Int32(truncatingIfNeeded: (span - min(now &- since, span)) / 1_000_000 + 1)
    }
}
