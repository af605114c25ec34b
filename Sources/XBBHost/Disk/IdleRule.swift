// SPDX-License-Identifier: BSD-2-Clause
// Whether a disk on which nothing happens is to be looked at. Pure.

/// Ends the looks at a disk that does nothing, until one of its queues says that it has something to do.
///
/// A queue may take a request at the moment when it is told to say so. So the looks end only when another one, after that, has
/// found nothing either: what a queue took then is seen there.
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

    /// A queue has something to do.
    mutating func awoke() {
        taken = nil
        isQuiet = false
    }
}
