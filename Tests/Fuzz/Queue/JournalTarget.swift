// SPDX-License-Identifier: BSD-2-Clause
// A journal and a ring of any bytes, read by a successor.
import Base
import Memory
import TestSupport

@testable import BlockQueue

/// A queue is left in the middle of its work; then its journal and its ring are changed, and another process begins.
func readJournal() throws -> [String] {
    var random = SplitMix64(seed: 0)
    let rig = try EngineRig {
        $0.ringPages = random.pick([1, 1, 2])
        $0.startIndex = UInt32(truncatingIfNeeded: random.next())
        $0.indirectSegments = random.pick([0, 32])
    }
    for place in 0..<random.below(32) {
        switch random.below(4) {
        case 0: rig.read(place * 16, 8)
        case 1: rig.flush()
        default: rig.write(place * 16, 8)
        }
    }
    rig.settle()
    for _ in 0..<random.below(8) where !rig.plugin.held.isEmpty {
        rig.plugin.complete(random.below(rig.plugin.held.count))
    }
    rig.turn(steps: random.below(8))
    // The successor's successor meets what the first one left, wherever in a turn that ended.
    let successors = 1 + random.below(2)
    for number in 1...successors {
        change(rig, &random)
        do {
            try rig.succeed(random.pick([.killed("signal 9"), .crashed("signal 11"), .handedOver, .left, .unknown]))
        } catch is OperationError {
            return []
        }
        guard rig.engine.ring.outstanding == rig.engine.replays.count else {
            return ["\(rig.engine.replays.count) requests are done again, and \(rig.engine.ring.outstanding) are taken"]
        }
        if number < successors { rig.turn(steps: random.below(8)) }
    }
    rig.run()
    return rig.isIdle && rig.use == EngineRig.Use() ? [] : ["in use at the end: \(rig.use)"]
}

/// Words of the journal, half of them those that decide, and the ring's indices.
private func change(_ rig: EngineRig, _ random: inout SplitMix64) {
    let pages = rig.journal.queue(0)
    let entries = rig.engine.ring.entryCount
    for _ in 0..<random.below(20) {
        let place: Int
        switch random.below(4) {
        case 0: place = random.below(pages.byteCount / 4) * 4
        case 1: place = random.pick([JournalLayout.consumedOffset, JournalLayout.aloneOffset])
        case 2: place = JournalLayout.trial(Int32(random.below(entries)), entries: entries)
        default: place = JournalLayout.slot(Int32(random.below(entries))) + random.below(36) * 4
        }
        switch random.below(3) {
        case 0: pages.store(pages.load(at: place) &+ UInt32(random.below(5)) &- 2, at: place)
        case 1: pages.store(UInt32(truncatingIfNeeded: random.next()), at: place)
        default: pages.store(pages.load(at: place) ^ 1 << UInt32(random.below(32)), at: place)
        }
    }
    guard random.onceIn(3) else { return }
    let ring = rig.guest.ringPages.shared
    let offset = random.below(4) * 4
    ring.store(random.onceIn(2) ? ring.load(at: offset) &+ 1 : UInt32(truncatingIfNeeded: random.next()), at: offset)
}
