// SPDX-License-Identifier: BSD-2-Clause
// Whether a disk on which nothing happens is to be looked at. Pure.

/// Ends the looks at a disk that does nothing, until one of its queues says that it has left its sleep.
///
/// A queue may have left it just before it was told to say so, and have a request by now. So the looks end only when another
/// one, after that, has found nothing either: what a queue took at that moment is seen there.
struct IdleRule: Equatable, Sendable {
    /// What the queues had taken when they were told; nil: they were not.
    private var taken: UInt64?
    /// No look is needed.
    private(set) var isQuiet = false

    /// Takes what a look has found: nothing is on its way or may last too long, and so many requests were taken so far. True
    /// where queues are to be told to say when they are awake.
    mutating func look(isIdle: Bool, taken now: UInt64) -> Bool {
        guard isIdle else {
            awoke()
            return false
        }
        isQuiet = taken == now
        if isQuiet { return false }
        taken = now
        return true
    }

    /// A queue has left its sleep.
    mutating func awoke() {
        taken = nil
        isQuiet = false
    }
}
