// SPDX-License-Identifier: BSD-2-Clause
// A process dies between any two steps, and another goes on with its ring and its journal.
import Blkif
import PluginAPI
import Support
import TestSupport
import Testing

@testable import BlockQueue

@Suite("Replay")
struct ReplayTests {
    /// Requests on places of their own, so that what the disk must contain is known.
    private final class Guest {
        let rig: EngineRig
        var random: SplitMix64
        private var open: [(sent: Sent, place: Int)] = []
        private var free = Array(0..<200)
        private var written: [Int: Sent] = [:]
        private(set) var answered = 0
        private(set) var problems: [String] = []

        init(_ rig: EngineRig, seed: UInt64) {
            self.rig = rig
            random = SplitMix64(seed: seed)
        }

        func number(_ below: Int) -> Int { Int(random.next() % UInt64(below)) }

        /// Some requests, as many as there is room for.
        func send(_ count: Int) {
            for _ in 0..<count where rig.guest.free > 0 && !free.isEmpty {
                let place = free.remove(at: number(free.count))
                let sent: Sent
                switch number(20) {
                case 0: sent = rig.flush()
                case 1: sent = rig.barrier(place * 16, 8)
                case 2...9: sent = rig.read(place * 16, 8)
                default: sent = rig.write(place * 16, 8)
                }
                open.append((sent, place))
            }
        }

        /// Looks at what was answered.
        func look() {
            for (sent, place) in open {
                guard let status = rig.status(sent) else { continue }
                answered += 1
                if status != 0 { problems.append("status \(status)") }
                switch sent.operation {
                case BlockOperation.read.rawValue:
                    if !rig.hasDiskData(sent) { problems.append("a read at \(sent.sector) has other data") }
                case BlockOperation.flush.rawValue: break
                default:
                    if !rig.isOnDisk(sent) { problems.append("a write at \(sent.sector) is not on the disk") }
                    written[place] = sent
                }
                rig.givePagesBack(sent)
                free.append(place)
                rig.forget(sent)
            }
            let left = Set(open.map(\.sent.id)).subtracting(rig.answers.map(\.id))
            open = open.filter { left.contains($0.sent.id) }
            rig.forgetAnswers()
        }

        /// The plugin does some of what it has, and says so or not.
        func work() {
            while !rig.plugin.held.isEmpty, number(4) > 0 { rig.plugin.complete(number(rig.plugin.held.count)) }
        }
    }

    @Test("each request is answered once, wherever processes die", arguments: 0..<8, [1, 4])
    func anyStep(_ steps: Int, _ pages: Int) throws {
        for seed in 0..<8 as Range<UInt64> {
            let rig = try EngineRig {
                $0.ringPages = pages
                $0.startIndex = seed % 2 == 0 ? 0xffff_ffd0 : UInt32(seed)
                if seed % 3 == 0 { $0.memoryBytes = 256 << 10 }
                if seed % 5 == 0 { $0.info.logical_block = 4096 }
            }
            let guest = Guest(rig, seed: seed &* 100 &+ UInt64(steps))
            for _ in 0..<30 {
                guest.send(guest.number(40))
                for _ in 0..<guest.number(4) {
                    rig.turn()
                    guest.look()
                    guest.work()
                }
                rig.turn(steps: steps)
                guest.work()
                try rig.succeed()
                // What the dead process showed last is seen now at the latest.
                rig.settleAnswers()
                guest.look()
            }
            rig.run()
            guest.look()
            #expect(guest.problems == [], "seed \(seed)")
            #expect(rig.problems == [], "seed \(seed)")
            #expect(rig.unanswered == 0 && rig.isIdle && rig.use == EngineRig.Use(), "seed \(seed)")
            #expect(guest.answered > 20, "seed \(seed)")
        }
    }

    @Test("requests are done again in their order, before any new one")
    func order() throws {
        let rig = try EngineRig()
        rig.engine.tuning.noCoalesce = true
        let first = (0..<10).map { rig.write($0 * 16, 8) }
        rig.settle()
        for position in [7, 3] { rig.plugin.complete(position) }
        rig.settle()
        #expect(rig.statuses(first).filter { $0 == 0 }.count == 2)
        let new = (10..<14).map { rig.write($0 * 16, 8) }
        _ = rig.guest.publish()
        try rig.succeed()
        rig.engine.tuning.noCoalesce = true
        rig.settle()
        #expect(rig.plugin.held.map(\.sector) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13].map { $0 * 16 })
        #expect(rig.counter(.replayed_requests) == 8)
        rig.run()
        #expect(rig.statuses(first + new).allSatisfy { $0 == 0 })
        #expect(rig.problems == [] && rig.unanswered == 0)
    }

    @Test("a barrier in flight is alone again, and stays behind the writes before it")
    func barrier() throws {
        let rig = try EngineRig()
        let writes = (0..<4).map { rig.write($0 * 16, 8) }
        let barrier = rig.barrier(1000, 8)
        let after = rig.write(2000, 8)
        rig.settle()
        try rig.succeed()
        rig.settle()
        #expect(rig.plugin.held.allSatisfy { $0.sector < 1000 } && rig.plugin.held.count == 4)
        rig.plugin.completeAll()
        rig.settle()
        #expect(rig.statuses(writes).allSatisfy { $0 == 0 } && rig.status(after) == nil)
        rig.run()
        #expect(rig.status(barrier) == 0 && rig.status(after) == 0)
        #expect(rig.problems == [] && rig.unanswered == 0)
    }

    @Test("a request that makes processes crash is found and answered with an error, and no other is")
    func poison() throws {
        let rig = try EngineRig()
        let all = (0..<12).map { $0 % 3 == 0 ? rig.read($0 * 16, 8) : rig.write($0 * 16, 8) }
        rig.settle()
        var deaths = 0
        var alone = 0
        for _ in 0..<40 where rig.unanswered > 0 {
            // Number 5 kills who performs it; the others are performed first if the plugin likes them better.
            if let poison = rig.plugin.held.firstIndex(where: { $0.sector <= 80 && $0.sector + $0.sectorCount > 80 }) {
                deaths += 1
                if rig.plugin.held.count == 1 { alone += 1 }
                while rig.plugin.held.count > poison + 1 { rig.plugin.complete(poison + 1) }
                if deaths > 1 { rig.turn() }
                try rig.succeed(.crashed("signal 11"))
            } else {
                rig.plugin.completeAll()
            }
            rig.settle()
        }
        #expect(deaths == 4 && alone == 2)
        #expect(rig.status(all[5]) == -1)
        #expect(rig.statuses(all).filter { $0 == 0 }.count == 11)
        #expect(rig.counter(.poisoned_requests) == 1)
        #expect(rig.problems == [] && rig.unanswered == 0)
        // The disk goes on as if nothing had been.
        let more = (0..<12).map { rig.write($0 * 16, 8) }
        rig.run()
        #expect(rig.statuses(more).allSatisfy { $0 == 0 })
        #expect(rig.use == EngineRig.Use())
    }

    @Test("who is killed from outside has no poison in it, however often")
    func killed() throws {
        let rig = try EngineRig()
        let all = (0..<8).map { rig.write($0 * 16, 8) }
        for _ in 0..<20 {
            rig.settle()
            try rig.succeed(.killed("signal 9"))
        }
        rig.run()
        #expect(rig.statuses(all).allSatisfy { $0 == 0 })
        #expect(rig.counter(.poisoned_requests) == 0)
    }

    @Test("a request that breaks a rule breaks it again")
    func refused() throws {
        let rig = try EngineRig()
        let bad = rig.read(4090, 8)
        let good = rig.read(0, 8)
        rig.turn(steps: 4)
        try rig.succeed()
        rig.run()
        #expect(rig.status(bad) == -1 && rig.status(good) == 0)
        #expect(rig.problems == [] && rig.unanswered == 0)
    }
}
