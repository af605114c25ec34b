// SPDX-License-Identifier: BSD-2-Clause
// What a reader may see, said of small histories by hand and of thousands by a simulated disk.
import Blkfront
import Support
import TestSupport
import Testing

@Suite struct DiskHistoryTests {
    /// The kind of fault that was found, nil for none.
    private func kind(_ body: () throws -> Void) -> HistoryFault.Kind? {
        do {
            try body()
        } catch let fault as HistoryFault {
            return fault.kind
        } catch {
            Issue.record(error)
        }
        return nil
    }

    /// A write of sector 0 from beginning to end.
    private func write(_ history: inout DiskHistory) -> WriteNumber {
        let number = history.submitWrite(0..<1)
        history.acknowledgeWrite(number, succeeded: true)
        return number
    }

    @Test func anAcknowledgedWriteIsThere() {
        var history = DiskHistory(sectors: 1)
        #expect(kind { try history.checkAtRest(0, .write(0)) } == nil)
        let first = write(&history)
        #expect(kind { try history.checkAtRest(0, .write(first)) } == nil)
        #expect(kind { try history.checkAtRest(0, .write(0)) } == .replaced, "a lost write")
        let second = write(&history)
        #expect(kind { try history.checkAtRest(0, .write(second)) } == nil)
        #expect(kind { try history.checkAtRest(0, .write(first)) } == .replaced, "an old write came back")
        #expect(kind { try history.checkAtRest(0, .write(second + 1)) } == .foreign)
        #expect(kind { try history.checkAtRest(0, .mangled("half of each")) } == .mangled)
    }

    @Test func whatIsUnderWayMayBeSeenOrNot() {
        var history = DiskHistory(sectors: 2)
        let old = write(&history)
        let reading = history.submitRead()
        let new = history.submitWrite(0..<1)
        for seen in [old, new] { #expect(kind { try history.check(0, .write(seen), read: reading) } == nil) }
        history.acknowledgeWrite(new, succeeded: true)
        // The reading began before the write ended.
        for seen in [old, new] { #expect(kind { try history.check(0, .write(seen), read: reading) } == nil) }
        history.endRead(reading)
        #expect(kind { try history.checkAtRest(0, .write(old)) } == .replaced)
        #expect(kind { try history.checkAtRest(1, .write(new)) } != nil, "another sector")
    }

    @Test func ofWritesUnderWayTogetherOneRemains() {
        var history = DiskHistory(sectors: 1)
        let first = history.submitWrite(0..<1)
        let second = history.submitWrite(0..<1)
        history.acknowledgeWrite(second, succeeded: true)
        // The first may still land.
        for seen in [first, second] {
            var copy = history
            #expect(kind { try copy.checkAtRest(0, .write(seen)) } == nil)
        }
        #expect(kind { try history.checkAtRest(0, .write(0)) } == .replaced)
        history.acknowledgeWrite(first, succeeded: true)
        #expect(kind { try history.checkAtRest(0, .write(first)) } == nil)
        // It was found to be the first; a second that lands now does so after its acknowledgement.
        #expect(kind { try history.checkAtRest(0, .write(second)) } == .changed)
        #expect(kind { try history.checkAtRest(0, .write(first)) } == nil)
    }

    @Test func aReadingAmongWritesSettlesNothing() {
        var history = DiskHistory(sectors: 1)
        let first = history.submitWrite(0..<1)
        let second = history.submitWrite(0..<1)
        let reading = history.submitRead()
        #expect(kind { try history.check(0, .write(first), read: reading) } == nil)
        history.acknowledgeWrite(first, succeeded: true)
        history.acknowledgeWrite(second, succeeded: true)
        #expect(kind { try history.check(0, .write(first), read: reading) } == nil)
        history.endRead(reading)
        #expect(kind { try history.checkAtRest(0, .write(second)) } == nil)
    }

    @Test func aWriteThatFailedMayBeThereInPart() {
        var history = DiskHistory(sectors: 2)
        let failed = history.submitWrite(0..<2)
        history.acknowledgeWrite(failed, succeeded: false)
        #expect(kind { try history.checkAtRest(0, .write(failed)) } == nil)
        #expect(kind { try history.checkAtRest(1, .write(0)) } == nil)
        // Nobody else writes: what was found stays.
        #expect(kind { try history.checkAtRest(0, .write(0)) } == .changed)
    }

    @Test func aDiscardedSectorIsAnythingUntilItIsWritten() {
        var history = DiskHistory(sectors: 1)
        let number = history.submitDiscard(0..<1)
        history.acknowledgeWrite(number, succeeded: true)
        #expect(kind { try history.checkAtRest(0, .mangled("whatever")) } == nil)
        let next = write(&history)
        #expect(kind { try history.checkAtRest(0, .mangled("whatever")) } == .mangled)
        #expect(kind { try history.checkAtRest(0, .write(next)) } == nil)
    }

    @Test func aFlushHoldsWhatWasAcknowledgedBeforeIt() {
        var history = DiskHistory(sectors: 1)
        let first = write(&history)
        let flush = history.submitFlush()
        let second = write(&history)
        // Nothing is promised yet.
        for seen in [0, first, second] { #expect(kind { try history.checkAfterPowerLoss(0, .write(seen)) } == nil) }
        history.acknowledgeFlush(flush)
        for seen in [first, second] { #expect(kind { try history.checkAfterPowerLoss(0, .write(seen)) } == nil) }
        #expect(kind { try history.checkAfterPowerLoss(0, .write(0)) } == .lost, "the flush did not cover the write")
        #expect(kind { try history.checkAfterPowerLoss(0, .mangled("a torn sector")) } == .mangled)
    }

    @Test func aWriteUnderWayAtAFlushIsNotHeld() {
        var history = DiskHistory(sectors: 1)
        let number = history.submitWrite(0..<1)
        let flush = history.submitFlush()
        history.acknowledgeWrite(number, succeeded: true)
        history.acknowledgeFlush(flush)
        for seen in [0, number] { #expect(kind { try history.checkAfterPowerLoss(0, .write(seen)) } == nil) }
    }

    @Test func theFaultSaysWhatWasAllowed() {
        var history = DiskHistory(sectors: 8)
        _ = write(&history)
        _ = write(&history)
        let reading = history.submitRead()
        _ = history.submitWrite(0..<4)
        do throws(HistoryFault) {
            try history.check(0, .write(1), read: reading)
        } catch {
            let words =
                "sector 0 holds write 1, which was replaced before it was read: by write 2; allowed: 2, 3 (under way)"
            #expect(error.description == words)
            return
        }
        Issue.record("no fault")
    }

    // MARK: A simulated disk

    /// What is wrong with it.
    enum Defect: CaseIterable {
        case none
        /// Acknowledges a write and does not do it.
        case loses
        /// Does a write once more after its acknowledgement, as a worker that was thought dead.
        case repeats
        /// Answers a reading from before it was submitted.
        case readsTooEarly
        /// Does half of the sectors of a write.
        case tears
        /// Acknowledges a flush and forgets what it covers at the loss of power.
        case flushesNothing
    }

    /// A disk of 32 sectors that does each request at one moment between submission and acknowledgement, in any order;
    /// the kind of fault that the history found, nil for none.
    private func simulate(_ defect: Defect, seed: UInt64) -> HistoryFault.Kind? {
        struct Flying {
            var number: WriteNumber?
            var reading: DiskHistory.Moment?
            var flush: DiskHistory.Moment?
            var sectors = 0..<0
            var isDone = false
            var seen: [WriteNumber] = []
        }
        var random = SplitMix64(seed: seed)
        var history = DiskHistory(sectors: 32)
        var disk = [WriteNumber](repeating: 0, count: 32)
        var stable = disk
        var earlier = disk
        var flying: [Flying] = []
        var ghosts: [Flying] = []
        return kind {
            for step in 0..<600 {
                if step % 50 == 0 { earlier = disk }
                if flying.count < 12, random.below(2) == 0 {
                    let first = Int(random.below(28))
                    var next = Flying(sectors: first..<first + 1 + Int(random.below(4)))
                    switch random.below(8) {
                    case 0: next.flush = history.submitFlush()
                    case 1...4: next.number = history.submitWrite(next.sectors)
                    default: next.reading = history.submitRead()
                    }
                    flying.append(next)
                }
                if !flying.isEmpty {
                    let index = Int(random.below(UInt64(flying.count)))
                    let request = flying[index]
                    if !request.isDone {
                        flying[index].isDone = true
                        if let number = request.number {
                            let part = defect == .tears ? request.sectors.dropLast(1) : request.sectors[...]
                            if defect != .loses || random.below(10) > 0 { for sector in part { disk[sector] = number } }
                        } else if request.reading != nil {
                            flying[index].seen = request.sectors.map { (defect == .readsTooEarly ? earlier : disk)[$0] }
                        } else if defect != .flushesNothing {
                            stable = disk
                        }
                    } else if random.below(3) == 0 {
                        flying.remove(at: index)
                        if let number = request.number {
                            history.acknowledgeWrite(number, succeeded: true)
                            ghosts.append(request)
                        } else if let reading = request.reading {
                            for (sector, seen) in zip(request.sectors, request.seen) {
                                try history.check(sector, .write(seen), read: reading)
                            }
                            history.endRead(reading)
                        } else if let flush = request.flush {
                            history.acknowledgeFlush(flush)
                        }
                    }
                }
                if defect == .repeats, random.below(20) == 0, let ghost = ghosts.first, let number = ghost.number {
                    ghosts.removeFirst()
                    for sector in ghost.sectors { disk[sector] = number }
                }
                // A cache writes back by itself, too.
                if defect != .flushesNothing, random.below(10) == 0 {
                    let sector = Int(random.below(32))
                    stable[sector] = disk[sector]
                }
            }
            for sector in 0..<32 { try history.checkAfterPowerLoss(sector, .write(stable[sector])) }
        }
    }

    @Test func aDiskThatIsRightIsNeverBlamed() {
        for seed in 0..<400 {
            let found = simulate(.none, seed: UInt64(seed))
            #expect(found == nil, "seed \(seed)")
        }
    }

    @Test(arguments: Defect.allCases.filter { $0 != .none })
    func aDiskThatIsWrongIsFound(defect: Defect) {
        let found = (0..<60).filter { simulate(defect, seed: UInt64($0)) != nil }.count
        #expect(found > 40, "\(defect): in \(found) of 60 runs")
    }
}
