// SPDX-License-Identifier: BSD-2-Clause
// DiskHistory beside a slow judge that tries all that one sector can have gone through.
import Blkfront
import Support
import TestSupport
import Testing

/// All that can have happened in one sector so far. Between two events of its user the content may change to that of any
/// write under way, as often as it likes; before its acknowledgement a write has been the content at least once.
private struct Oracle {
    struct World: Hashable {
        var content: WriteNumber = 0
        var done: Set<WriteNumber> = []
        /// For each reading or flush under way, and each flush that succeeded: contents since it was submitted.
        var seen: [Int: Set<WriteNumber>] = [:]
    }

    private var worlds: Set<World> = [World()]
    private var underWay: Set<WriteNumber> = []

    /// What may happen before the next event.
    private mutating func settle() {
        // To see more and to have done more is never worse, so each world goes through all that is under way, or stays.
        for world in worlds {
            for last in underWay {
                var next = world
                next.done.formUnion(underWay)
                for key in next.seen.keys { next.seen[key]?.formUnion(underWay) }
                next.content = last
                worlds.insert(next)
            }
        }
    }

    mutating func begin(write number: WriteNumber) {
        settle()
        underWay.insert(number)
    }

    mutating func end(write number: WriteNumber, succeeded: Bool) {
        settle()
        if succeeded { worlds = worlds.filter { $0.done.contains(number) } }
        underWay.remove(number)
    }

    mutating func begin(reading key: Int) {
        settle()
        worlds = Set(
            worlds.map { world in
                var next = world
                next.seen[key] = [world.content]
                return next
            })
    }

    /// False if the reading cannot have found it.
    mutating func end(reading key: Int, found number: WriteNumber) -> Bool {
        settle()
        let left = worlds.filter { $0.seen[key]?.contains(number) == true }
        if left.isEmpty { return false }
        worlds = left
        forget(key)
        return true
    }

    mutating func forget(_ key: Int) {
        worlds = Set(
            worlds.map { world in
                var next = world
                next.seen[key] = nil
                return next
            })
    }

    /// Whether a loss of power now may leave it; `key` is the last flush that succeeded.
    mutating func mayBeLeft(_ number: WriteNumber, since key: Int) -> Bool {
        settle()
        return worlds.contains { $0.seen[key]?.contains(number) == true }
    }
}

@Suite struct HistoryOracleTests {
    private func isFault(_ body: () throws -> Void) -> Bool {
        do {
            try body()
            return false
        } catch {
            return true
        }
    }

    /// One random history of a sector; the number of findings that were judged, and of those that both refused.
    private func compare(seed: UInt64) -> (judged: Int, refused: Int) {
        var random = SplitMix64(seed: seed)
        var history = DiskHistory(sectors: 1)
        var oracle = Oracle()
        var writes: [WriteNumber] = []
        var readings: [(key: Int, moment: DiskHistory.Moment)] = []
        var flushes: [(key: Int, moment: DiskHistory.Moment)] = []
        var durable: (key: Int, moment: DiskHistory.Moment) = (0, 0)
        oracle.begin(reading: 0)
        var last: WriteNumber = 0
        var judged = 0
        var story: [String] = []
        for key in 1...24 {
            switch random.below(10) as Int {
            case 0, 1:
                guard writes.count < 3 else { continue }
                last = history.submitWrite(0..<1)
                oracle.begin(write: last)
                writes.append(last)
                story.append("write \(last)")
            case 2, 3, 4:
                guard !writes.isEmpty else { continue }
                let number = writes.remove(at: random.below(writes.count))
                let succeeded = !random.onceIn(6)
                history.acknowledgeWrite(number, succeeded: succeeded)
                oracle.end(write: number, succeeded: succeeded)
                story.append("\(succeeded ? "done" : "failed") \(number)")
            case 5, 6:
                guard readings.count < 3 else { continue }
                readings.append((key, history.submitRead()))
                oracle.begin(reading: key)
                story.append("read r\(key)")
            case 7, 8:
                guard !readings.isEmpty else { continue }
                let reading = readings.remove(at: random.below(readings.count))
                let found = random.next() % (last + 1)
                judged += 1
                story.append("r\(reading.key) found \(found)")
                let isLegal = oracle.end(reading: reading.key, found: found)
                let isAccepted = !isFault { try history.check(0, .write(found), read: reading.moment) }
                #expect(isLegal == isAccepted, "seed \(seed): \(story.joined(separator: ", "))")
                // What nobody can have read ends a history.
                if !isLegal || !isAccepted { return (judged, 1) }
                history.endRead(reading.moment)
            default:
                if flushes.isEmpty || random.onceIn(2) {
                    flushes.append((key, history.submitFlush()))
                    story.append("flush f\(key)")
                    oracle.begin(reading: key)
                } else {
                    let flush = flushes.remove(at: random.below(flushes.count))
                    history.acknowledgeFlush(flush.moment)
                    story.append("f\(flush.key) done")
                    if flush.moment > durable.moment { durable = flush }
                }
            }
            for number in 0...last {
                let mayBe = oracle.mayBeLeft(number, since: durable.key)
                let isAccepted = !isFault { try history.checkAfterPowerLoss(0, .write(number)) }
                #expect(
                    mayBe == isAccepted,
                    "seed \(seed): \(story.joined(separator: ", ")); \(number) after a loss of power")
            }
        }
        return (judged, 0)
    }

    @Test func everyVerdictIsTheJudges() {
        var total = (judged: 0, refused: 0)
        for seed in testSeeds("everyVerdictIsTheJudges", count: 300) {
            let (judged, refused) = compare(seed: seed)
            total = (total.judged + judged, total.refused + refused)
        }
        #expect(total.judged > total.refused && total.judged > 0, "\(total)")
    }

    // MARK: By hand

    private func number(_ history: inout DiskHistory) -> WriteNumber {
        let number = history.submitWrite(0..<1)
        history.acknowledgeWrite(number, succeeded: true)
        return number
    }

    @Test func whatWasSeenIsNotUnseen() {
        var history = DiskHistory(sectors: 1)
        let old = number(&history)
        let new = history.submitWrite(0..<1)
        #expect(!isFault { try history.checkAtRest(0, .write(old)) })
        #expect(!isFault { try history.checkAtRest(0, .write(new)) })
        // The new one is still under way, but the old one is not, and was gone.
        #expect(isFault { try history.checkAtRest(0, .write(old)) }, "a stale read")
        #expect(!isFault { try history.checkAtRest(0, .write(new)) })
    }

    @Test func replayMayDoAWriteAgain() {
        var history = DiskHistory(sectors: 1)
        let first = history.submitWrite(0..<1)
        let second = history.submitWrite(0..<1)
        for seen in [first, second, first, second] { #expect(!isFault { try history.checkAtRest(0, .write(seen)) }) }
        history.acknowledgeWrite(first, succeeded: true)
        history.acknowledgeWrite(second, succeeded: true)
        #expect(!isFault { try history.checkAtRest(0, .write(first)) })
        #expect(isFault { try history.checkAtRest(0, .write(second)) }, "an old write that landed late")
    }

    @Test func aFlushHoldsWhatWasSeenBeforeIt() {
        var history = DiskHistory(sectors: 1)
        let first = history.submitWrite(0..<1)
        let second = history.submitWrite(0..<1)
        history.acknowledgeWrite(first, succeeded: true)
        history.acknowledgeWrite(second, succeeded: true)
        #expect(!isFault { try history.checkAtRest(0, .write(first)) })
        #expect(!isFault { try history.checkAfterPowerLoss(0, .write(second)) })
        history.acknowledgeFlush(history.submitFlush())
        #expect(isFault { try history.checkAfterPowerLoss(0, .write(second)) })
        #expect(!isFault { try history.checkAfterPowerLoss(0, .write(first)) })
    }

    @Test func aBarriersOwnDataAreDurable() {
        var history = DiskHistory(sectors: 2)
        let under = history.submitWrite(0..<1)
        let moment = history.submitFlush()
        let barrier = history.submitWrite(0..<1)
        for seen in [0, under, barrier] { #expect(!isFault { try history.checkAfterPowerLoss(0, .write(seen)) }) }
        history.acknowledgeBarrier(barrier, moment, succeeded: true)
        for seen in [0, under] { #expect(isFault { try history.checkAfterPowerLoss(0, .write(seen)) }) }
        #expect(isFault { try history.checkAtRest(0, .write(under)) }, "it was before the barrier")
        #expect(!isFault { try history.checkAfterPowerLoss(0, .write(barrier)) })
        let late = history.submitWrite(0..<1)
        for seen in [barrier, late] { #expect(!isFault { try history.checkAfterPowerLoss(0, .write(seen)) }) }
    }

    @Test func aBarrierThatFailedHoldsNothing() {
        var history = DiskHistory(sectors: 1)
        let old = number(&history)
        let moment = history.submitFlush()
        let barrier = history.submitWrite(0..<1)
        history.acknowledgeBarrier(barrier, moment, succeeded: false)
        for seen in [0, old, barrier] { #expect(!isFault { try history.checkAfterPowerLoss(0, .write(seen)) }) }
    }

    @Test func aMixtureNeedsAWriteUnderWay() {
        var history = DiskHistory(sectors: 1)
        let old = number(&history)
        let reading = history.submitRead()
        #expect(history.mixture(0, read: reading).isEmpty)
        let new = history.submitWrite(0..<1)
        #expect(history.mixture(0, read: reading) == [old, new])
        history.acknowledgeWrite(new, succeeded: true)
        #expect(history.mixture(0, read: reading) == [old, new], "it was under way during the reading")
        history.endRead(reading)
        #expect(history.mixture(0, read: history.submitRead()).isEmpty)
    }

    @Test func aMixtureIsOfWhatWasAllowed() {
        let content = SectorContent(run: 7)
        func bytes(_ number: WriteNumber) -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: 512)
            bytes.withUnsafeMutableBytes { content.fill($0, sector: 3, number: number) }
            return bytes
        }
        let torn = Array(bytes(1)[..<205] + bytes(2)[205...])
        torn.withUnsafeBytes { torn in
            #expect(content.find(in: torn, at: 0, sector: 3) != .write(1))
            #expect(content.isMixture(of: [1, 2], in: torn, at: 0, sector: 3))
            #expect(!content.isMixture(of: [2, 4], in: torn, at: 0, sector: 3))
            #expect(!content.isMixture(of: [1], in: torn, at: 0, sector: 3))
            #expect(!content.isMixture(of: [], in: torn, at: 0, sector: 3))
        }
        let begun = Array(bytes(5)[..<8] + [UInt8](repeating: 0, count: 504))
        begun.withUnsafeBytes { #expect(content.isMixture(of: [0, 5], in: $0, at: 0, sector: 3)) }
    }
}
