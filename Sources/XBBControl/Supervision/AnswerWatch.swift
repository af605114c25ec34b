// SPDX-License-Identifier: BSD-2-Clause
// Whether a worker answers. Pure.
//
// One question is on its way at most, and it is not taken back: a worker that was stopped answers it as soon as it goes on.
//
// A worker is not woken for nothing. If its first thread, which answers, has not run since it answered, it sleeps where it slept
// then. Whatever would make it hang, or stop it, has to let it run.

/// When a worker is asked whether it answers, and since when it does not. Times are in ns of CLOCK_MONOTONIC.
struct AnswerWatch: Equatable, Sendable {
    /// A worker that answers is asked again after so long: as often as it looks after itself anyway.
    static let interval: UInt64 = 10 * RestartPolicy.second
    /// Where nobody listened, it is tried again after so long.
    static let retryInterval: UInt64 = RestartPolicy.second

    /// How long a worker has to answer.
    private let limit: UInt64
    /// When it is to be asked; `UInt64.max` while a question is on its way.
    private(set) var askAt: UInt64
    /// Since when a question has no answer; nil while there is none.
    private(set) var unansweredSince: UInt64?
    /// It has not answered within its time.
    private(set) var isSilent = false
    /// How often its first thread had run when it answered; nil where that is not known.
    private var runsAtAnswer: UInt64?

    /// Of a worker that begins at `now`. With a short limit it is asked more often, so that it is known soon after that.
    init(limit: UInt64, now: UInt64) {
        self.limit = limit
        askAt = now &+ min(limit, Self.interval)
    }

    /// When there is something to do.
    var deadline: UInt64 {
        guard let unansweredSince, !isSilent else { return askAt }
        return min(askAt, unansweredSince &+ limit)
    }

    /// True where it needs no question, as it has not run since it answered; it is looked at again later. `runs` is how often
    /// its first thread has run so far; nil: nobody knows.
    mutating func sleepsOn(runs: UInt64?, now: UInt64) -> Bool {
        guard let runs, runs == runsAtAnswer, unansweredSince == nil else { return false }
        // All that sleep are looked at together.
        let interval = min(limit, Self.interval)
        askAt = interval == 0 ? now : (now / interval &+ 1) &* interval
        return true
    }

    /// It is being asked.
    mutating func ask(now: UInt64) {
        askAt = .max
        unansweredSince = unansweredSince ?? now
    }

    /// The question was not taken.
    mutating func failed(now: UInt64) { askAt = now &+ Self.retryInterval }

    /// It has answered; `runs` as for ``sleepsOn(runs:now:)``. For how many seconds it had not, if that was too long.
    mutating func answered(now: UInt64, runs: UInt64? = nil) -> UInt64? {
        runsAtAnswer = runs
        let seconds = isSilent ? seconds(now: now) : nil
        unansweredSince = nil
        isSilent = false
        askAt = now &+ min(limit, Self.interval)
        return seconds
    }

    /// True once, when its time is over.
    mutating func isOver(now: UInt64) -> Bool {
        guard let unansweredSince, !isSilent, unansweredSince &+ limit <= now else { return false }
        isSilent = true
        return true
    }

    /// For how many seconds it has not answered.
    func seconds(now: UInt64) -> UInt64 {
        guard let unansweredSince, unansweredSince < now else { return 0 }
        return (now - unansweredSince) / RestartPolicy.second
    }
}
