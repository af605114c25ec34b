// SPDX-License-Identifier: BSD-2-Clause
// The ring's beginning and end: taking over, draining, and a frontend that lies about its index.
import Blkif
import PluginAPI
import Testing

@testable import BlockQueue

@Suite("The ring's life")
struct RingLifeTests {
    /// Where free-running indices wrap, by sign and altogether.
    static let starts: [UInt32] = [0, 1, 31, 0x7fff_fff0, 0x7fff_ffff, 0x8000_0000, 0xffff_ffe0, 0xffff_ffff]

    @Test("indices begin anywhere and wrap around, in every ABI", arguments: starts, RingABI.allCases)
    func anyStart(_ start: UInt32, _ abi: RingABI) throws {
        let rig = try EngineRig {
            $0.startIndex = start
            $0.abi = abi
        }
        for round in 0..<5 {
            let all = (0..<32).map { $0 % 2 == 0 ? rig.read($0 * 16, 8) : rig.write(1000 + $0 * 16 + round, 8) }
            rig.run()
            for sent in all {
                #expect(rig.status(sent) == 0)
                #expect(sent.operation == 0 ? rig.hasDiskData(sent) : rig.isOnDisk(sent))
                rig.givePagesBack(sent)
            }
        }
        #expect(rig.engine.ring.requestConsumer == start &+ 160)
        #expect(rig.engine.ring.responseProducer == start &+ 160)
        rig.expectIdle()
    }

    @Test("an engine that takes over a ring begins at rsp_prod and serves what was sent before it came")
    func takeOver() throws {
        let rig = try EngineRig { $0.startIndex = 0xffff_fff8 }
        let all = (0..<20).map { rig.write($0 * 16, 8) }
        _ = rig.guest.publish()
        #expect(rig.engine.ring.requestConsumer == 0xffff_fff8)
        rig.run()
        #expect(rig.statuses(all) == Array(repeating: 0, count: 20))
        rig.expectIdle()
    }

    @Test(
        "a req_prod that runs ahead or back ends the reading; what was taken is answered",
        arguments: [33, 1_000_000, 0x8000_0000, -1, -20])
    func overflow(_ distance: Int) throws {
        let rig = try EngineRig { $0.startIndex = 0x7fff_fffe }
        let all = (0..<10).map { rig.read($0 * 16, 8) }
        rig.settle()
        let producer = rig.engine.ring.requestConsumer
        // Those that are in flight leave less room; the frontend claims what can never be.
        rig.guest.forgeRequestProducer(producer &+ UInt32(truncatingIfNeeded: distance))
        rig.engine.now += 1
        let first = rig.engine.takeRequests()
        let second = rig.engine.takeRequests()
        #expect(first && !second, "said once, and no endless loop")
        #expect(rig.engine.overflow?.entryCount == 32)
        let mayTake = rig.engine.mayTake
        #expect(!mayTake)
        rig.run()
        #expect(rig.statuses(all) == Array(repeating: 0, count: 10))
        #expect(!rig.turn())
        #expect(rig.counter(.reqs_received) == 10)
        rig.expectIdle()
    }

    @Test("draining leaves what was not read on the ring, and the engine is idle when the rest is answered")
    func draining() throws {
        let rig = try EngineRig()
        let first = [rig.write(0, 8), rig.barrier(8, 8), rig.write(16, 8)]
        rig.settle()
        #expect(!rig.isIdle)
        rig.engine.isDraining = true
        let second = (0..<5).map { rig.write(100 + $0 * 16, 8) }
        rig.run()
        #expect(rig.isIdle)
        #expect(rig.statuses(first) == [0, 0, 0])
        #expect(rig.statuses(second) == [nil, nil, nil, nil, nil])
        #expect(rig.engine.ring.outstanding == 0)
        #expect(rig.engine.ring.requestConsumer == 3)
        // The next backend finds them.
        rig.engine.isDraining = false
        rig.run()
        #expect(rig.statuses(second) == [0, 0, 0, 0, 0])
        rig.expectIdle()
    }

    @Test("draining finishes lists that wait for memory and for a barrier")
    func drainingWaiters() throws {
        let rig = try EngineRig { $0.memoryBytes = 128 << 10 }
        let all = [rig.read(0, 88), rig.read(200, 88), rig.read(400, 88), rig.barrier(600, 8), rig.read(700, 8)]
        rig.settle()
        let taken = Int(rig.counter(.reqs_received))
        rig.engine.isDraining = true
        rig.run()
        #expect(rig.isIdle)
        #expect(rig.statuses(Array(all[..<taken])) == Array(repeating: 0, count: taken))
        #expect(rig.statuses(Array(all[taken...])).allSatisfy { $0 == nil })
        rig.engine.isDraining = false
        rig.run()
        rig.expectIdle()
    }

    @Test("nothing is taken while the connection is not complete")
    func held() throws {
        let rig = try EngineRig()
        rig.engine.isHeld = true
        let read = rig.read(0, 8)
        #expect(!rig.turn())
        rig.engine.isHeld = false
        rig.run()
        #expect(rig.status(read) == 0)
        rig.expectIdle()
    }

    @Test("a ring of 32 pages carries 1024 requests at once", arguments: RingABI.allCases)
    func largestRing(_ abi: RingABI) throws {
        let rig = try EngineRig {
            $0.ringPages = 32
            $0.abi = abi
            $0.sectors = 20_000
            $0.memoryBytes = 16 << 20
            $0.pluginRequests = 1056
        }
        for round in 0..<2 {
            let all = (0..<1024).map { rig.read(($0 * 17 + round) % 19_000, 9) }
            rig.run()
            #expect(rig.statuses(all).allSatisfy { $0 == 0 })
            #expect(all.allSatisfy(rig.hasDiskData))
            all.forEach(rig.givePagesBack)
        }
        rig.expectIdle()
    }

    @Test("what a request held is free before its response can be seen")
    func freeBeforeVisible() throws {
        let rig = try EngineRig()
        let all = [rig.write(0, 88), rig.read(200, 88), rig.flush(), rig.read(400, 8), rig.barrier(600, 8)]
        var seen = 0
        rig.onAnswer = { _ in
            // The audit before each publish compares every pool with what is unanswered; here, in words for one case.
            seen += 1
            if rig.unanswered == 0 {
                #expect(rig.use == EngineRig.Use())
                #expect(rig.engine.ring.outstanding == 0)
            }
        }
        rig.run()
        #expect(seen == 5)
        #expect(rig.statuses(all) == [0, 0, 0, 0, 0])
        rig.onAnswer = nil
        rig.expectIdle()
    }

    @Test("one publish shows all answers of a turn, and at most one event is asked for")
    func oneEvent() throws {
        let rig = try EngineRig()
        for number in 0..<20 { rig.read(number * 16, 8) }
        rig.settle()
        rig.plugin.completeAll()
        rig.turn()
        #expect(rig.answers.count == 20)
        #expect(rig.notifications == 1)
        rig.expectIdle()
    }
}
