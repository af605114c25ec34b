// SPDX-License-Identifier: BSD-2-Clause
// What a process finds in the journal of a queue whose process died, and what it makes of it.
//
// Nothing here is trusted: the process that wrote it may have been corrupted, and the ring is the guest's.
import Base
import Blkif
import Memory

/// The requests of a queue that must be done again.
struct QueueRecovery {
    /// Requests taken since the connection began.
    var consumed: UInt64 = 0
    /// Indices of requests without an answer that the frontend could see, in the order in which they were taken.
    var replays: [Int32] = []
    /// Those of them that are answered with an error: each was on its way alone at ``poisonLimit`` crashes.
    var poisonous: Set<Int32> = []
    /// They are done one after the other, because at least one of them was on its way again when a process crashed.
    var isCareful = false

    /// So many crashes with nothing else on its way, and a request is not tried again.
    static let poisonLimit = 2

    /// A queue that begins.
    init(startingAt consumed: UInt32) {
        self.consumed = UInt64(consumed)
    }

    /// Reads the journal of a queue with `entries` slots whose frontend sees responses up to `published`.
    ///
    /// Throws where it and the ring contradict each other: then nobody knows which requests are unanswered.
    init(reading pages: SharedPages, entries: Int, published: UInt32) throws(OperationError) {
        guard entries > 0, entries <= JournalLayout.mostEntries,
            pages.byteCount >= JournalLayout.queueSize(entries: entries)
        else { throw OperationError(.journal, "it is cut off") }
        consumed = pages.load64(at: JournalLayout.consumedOffset)
        let outstanding = UInt32(truncatingIfNeeded: consumed) &- published
        guard outstanding <= UInt32(entries) else {
            throw OperationError(.journal, "\(outstanding) requests are in flight on a ring of \(entries)")
        }
        var found: [(taken: UInt64, index: Int32)] = []
        for index in 0..<Int32(entries) {
            let offset = JournalLayout.slot(index)
            let taken = pages.load64(at: offset + JournalLayout.takenOffset)
            // What was being taken is still the ring's.
            if taken == 0 || taken == consumed &+ 1 { continue }
            guard taken <= consumed else {
                throw OperationError(.journal, "a request is numbered \(taken) of \(consumed)")
            }
            let answer = pages.load64(at: offset + JournalLayout.answerOffset)
            if answer != 0, try Self.isVisible(answer, published: published, entries: entries) { continue }
            found.append((taken, index))
        }
        guard found.count == Int(outstanding) else {
            throw OperationError(.journal, "it has \(found.count) requests in flight, and the ring \(outstanding)")
        }
        found.sort { $0.taken < $1.taken }
        for (one, next) in zip(found, found.dropFirst()) where one.taken == next.taken {
            throw OperationError(.journal, "two requests have the number \(one.taken)")
        }
        replays = found.map(\.index)
    }

    /// True if the frontend can see a response: its index is one of the last before `published`.
    private static func isVisible(_ answer: UInt64, published: UInt32, entries: Int) throws(OperationError) -> Bool {
        let position = UInt32(truncatingIfNeeded: answer)
        guard answer & ~UInt64(UInt32.max) == JournalLayout.answeredBit else {
            throw OperationError(.journal, "an answer makes no sense")
        }
        if published &- position &- 1 < UInt32(entries) { return true }
        guard position &- published < UInt32(entries) else {
            throw OperationError(
                .journal, "an answer stands at \(position), and the frontend sees those before \(published)")
        }
        return false
    }

    /// Makes the journal one of this process, before it answers anything: what was answered is free, what was not is
    /// unanswered. Notes that the rest is tried again, and who is suspected.
    mutating func adopt(_ pages: SharedPages, entries: Int, after predecessor: Predecessor) {
        let alone = pages.load(at: JournalLayout.aloneOffset)
        var kept = Set(replays)
        for index in 0..<Int32(entries) {
            let offset = JournalLayout.slot(index)
            if kept.remove(index) == nil {
                pages.storeRelease64(0, at: offset + JournalLayout.takenOffset)
                continue
            }
            pages.storeRelease64(0, at: offset + JournalLayout.answerOffset)
            var trial = JournalTrial(pages, index, entries: entries)
            if predecessor.hasCrashed {
                if trial.replays > 0 { isCareful = true }
                if alone == UInt32(index) + 1 { trial.crashes += trial.crashes < UInt8.max ? 1 : 0 }
            }
            if trial.crashes > 0 { isCareful = true }
            if trial.crashes >= Self.poisonLimit { poisonous.insert(index) }
            trial.replays += trial.replays < UInt8.max ? 1 : 0
            trial.store(to: pages, index, entries: entries)
        }
        pages.storeRelease(0, at: JournalLayout.aloneOffset)
    }

    /// Begins the journal of a queue of which nothing is in flight.
    func begin(_ pages: SharedPages, entries: Int) {
        for index in 0..<Int32(entries) {
            pages.store64(0, at: JournalLayout.slot(index) + JournalLayout.takenOffset)
            pages.store64(0, at: JournalLayout.trial(index, entries: entries))
        }
        pages.storeRelease(0, at: JournalLayout.aloneOffset)
        pages.storeRelease64(consumed, at: JournalLayout.consumedOffset)
    }
}

/// How often a request was tried again, and what came of it: 8 bytes that count only with the request's number in them.
struct JournalTrial {
    /// Times that it was begun again.
    var replays: UInt8 = 0
    /// Crashes with nothing else on its way.
    var crashes: UInt8 = 0
    private let number: UInt64

    /// The trial of a request; a fresh one where the journal has that of another request.
    init(_ pages: SharedPages, _ index: Int32, entries: Int) {
        number = pages.load64(at: JournalLayout.slot(index) + JournalLayout.takenOffset) << 16
        let word = pages.load64(at: JournalLayout.trial(index, entries: entries))
        guard word & ~0xffff == number else { return }
        replays = UInt8(truncatingIfNeeded: word)
        crashes = UInt8(truncatingIfNeeded: word >> 8)
    }

    func store(to pages: SharedPages, _ index: Int32, entries: Int) {
        let word = number | UInt64(crashes) << 8 | UInt64(replays)
        pages.storeRelease64(word, at: JournalLayout.trial(index, entries: entries))
    }
}
