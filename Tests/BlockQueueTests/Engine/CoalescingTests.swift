// SPDX-License-Identifier: BSD-2-Clause
// Which requests become one reqlist, and what the counters say of it.
import Blkif
import PluginAPI
import Testing

@testable import BlockQueue

@Suite("Coalescing")
struct CoalescingTests {
    @Test("adjacent reads become one plugin request, and each gets its own data")
    func adjacentReadsMerge() throws {
        let rig = try EngineRig()
        let reads = (0..<4).map { rig.read(100 + $0 * 8, 8) }
        rig.run()
        #expect(rig.plugin.log.map(\.sectorCount) == [32])
        #expect(rig.plugin.log.first?.sector == 100)
        for read in reads {
            #expect(rig.status(read) == 0)
            #expect(rig.hasDiskData(read))
        }
        #expect(rig.counter(.reqs_received) == 4)
        #expect(rig.counter(.reqs_completed) == 4)
        #expect(rig.counter(.requests_merged) == 3)
        #expect(rig.counter(.total_dispatch) == 1)
        #expect(rig.counter(.normal_dispatch) == 1)
        #expect(rig.counter(.forced_dispatch) == 0)
        #expect(rig.counter(.read_requests) == 4)
        #expect(rig.counter(.read_sectors) == 32)
        rig.expectIdle()
    }

    @Test("adjacent writes of odd sizes and odd places in their pages become one, and the disk has their data")
    func adjacentWritesMerge() throws {
        let rig = try EngineRig()
        var sector = 77
        let writes = [(1, 7), (3, 2), (88, 0), (9, 5), (2, 6)].map { count, skip in
            defer { sector += count }
            return rig.write(sector, count, skip: skip)
        }
        rig.run()
        #expect(rig.plugin.log.map(\.sectorCount) == [103])
        for write in writes {
            #expect(rig.status(write) == 0)
            #expect(rig.isOnDisk(write))
        }
        #expect(rig.disk.tag(76) == FakeDisk.firstTag(76))
        #expect(rig.disk.tag(sector) == FakeDisk.firstTag(sector))
        #expect(rig.counter(.write_sectors) == 103)
        #expect(rig.counter(.requests_merged) == 4)
        rig.expectIdle()
    }

    @Test("a reqlist ends where the operation changes, and the list left behind counts as forced")
    func operationChangeEndsList() throws {
        let rig = try EngineRig()
        rig.read(0, 8)
        rig.read(8, 8)
        rig.write(16, 8)
        rig.read(24, 8)
        rig.run()
        #expect(rig.plugin.log.map(\.op).sorted() == [1, 1, 2])
        #expect(rig.counter(.total_dispatch) == 3)
        #expect(rig.counter(.forced_dispatch) == 2)
        #expect(rig.counter(.normal_dispatch) == 1)
        #expect(rig.counter(.requests_merged) == 1)
        rig.expectIdle()
    }

    @Test(
        "a gap, a step back, a repetition and an overlap end a reqlist",
        arguments: [[0, 9], [8, 0], [0, 0], [0, 4]])
    func onlyTheNextSectorMerges(_ places: [Int]) throws {
        let rig = try EngineRig()
        let reads = places.map { rig.read($0, 8) }
        rig.run()
        #expect(rig.plugin.log.count == 2)
        #expect(rig.counter(.requests_merged) == 0)
        #expect(rig.counter(.forced_dispatch) == 1)
        for read in reads { #expect(rig.hasDiskData(read)) }
        rig.expectIdle()
    }

    @Test("flushes, barriers and discards stand alone and end the list before them")
    func othersStandAlone() throws {
        let rig = try EngineRig()
        rig.write(0, 8)
        rig.flush()
        rig.write(8, 8)
        rig.discard(16, 8)
        rig.discard(24, 8)
        rig.write(32, 8)
        rig.run()
        #expect(rig.counter(.requests_merged) == 0)
        #expect(rig.counter(.total_dispatch) == 6)
        rig.expectIdle()
    }

    @Test("a reqlist is at most as large as max_transfer")
    func maxTransferEndsList() throws {
        let rig = try EngineRig { $0.info.max_transfer = 65536 }
        for number in 0..<10 { rig.read(number * 32, 32) }
        rig.run()
        #expect(rig.plugin.log.map(\.sectorCount) == [128, 128, 64])
        #expect(rig.counter(.forced_dispatch) == 2)
        #expect(rig.counter(.normal_dispatch) == 1)
        #expect(rig.counter(.requests_merged) == 7)
        rig.expectIdle()
    }

    @Test("a reqlist is at most 1 MiB, whatever the plugin takes")
    func oneMebibyteEndsList() throws {
        let rig = try EngineRig { $0.memoryBytes = 16 << 20 }
        for number in 0..<30 { rig.write(number * 88, 88) }
        rig.run()
        #expect(rig.plugin.log.map(\.sectorCount) == [23 * 88, 7 * 88])
        rig.expectIdle()
    }

    @Test("a reqlist is at most a quarter of the memory")
    func memoryEndsList() throws {
        let rig = try EngineRig { $0.memoryBytes = 256 << 10 }
        #expect(rig.engine.rule.maxBytes == 57344)
        for number in 0..<10 { rig.read(number * 56, 56) }
        rig.run()
        #expect(rig.plugin.log.map(\.sectorCount) == [112, 112, 112, 112, 112])
        rig.expectIdle()
    }

    @Test("no_coalesce_reqs sends each request alone, from one turn to the next")
    func noCoalesce() throws {
        let rig = try EngineRig()
        rig.engine.tuning.noCoalesce = true
        for number in 0..<4 { rig.read(number * 8, 8) }
        rig.run()
        #expect(rig.plugin.log.count == 4)
        #expect(rig.counter(.forced_dispatch) == 3)
        #expect(rig.counter(.normal_dispatch) == 1)
        rig.engine.tuning.noCoalesce = false
        for number in 0..<4 { rig.read(number * 8, 8) }
        rig.run()
        #expect(rig.plugin.log.count == 5)
        rig.expectIdle()
    }

    @Test("requests that come in different turns are not joined: nobody waits for a neighbour")
    func noWaitingForNeighbours() throws {
        let rig = try EngineRig()
        rig.read(0, 8)
        rig.turn()
        rig.read(8, 8)
        rig.turn()
        #expect(rig.plugin.held.count == 2)
        rig.run()
        rig.expectIdle()
    }
}

@Suite("Refused requests")
struct RefusedRequestTests {
    @Test("each refused request gets its status, and its neighbours are joined as if it was not there")
    func neighboursAreNotHarmed() throws {
        let rig = try EngineRig { $0.remove(UInt64(XBB_CAP_DISCARD)) }
        let first = rig.write(0, 8)
        let tooMany = rig.send(.write, 8, rig.segments(8), segmentCount: 12)
        let none = rig.send(.read, 8, [])
        let backwards = rig.send(.read, 8, [BlockSegment(reference: rig.newPage(), firstSector: 0, lastSector: 0)])
        let beyond = rig.write(rig.disk.sectorCount - 4, 8)
        let negative = rig.read(-1, 8)
        let discard = rig.discard(0, 8)
        let second = rig.write(8, 8)
        rig.run()
        #expect(rig.statuses([first, second]) == [0, 0])
        #expect(rig.statuses([tooMany, none, beyond, negative]) == [-1, -1, -1, -1])
        #expect(rig.status(discard) == -2)
        #expect(rig.status(backwards) == 0)
        #expect(rig.isOnDisk(second))
        #expect(rig.counter(.rejected_requests) == 5)
        #expect(rig.counter(.reqs_completed_with_error) == 5)
        #expect(rig.counter(.reqs_received) == 8)
        #expect(rig.engine.fault?.error == .unknownOperation)
        rig.expectIdle()
    }

    @Test("a refused request is answered in the turn that reads it, before those that the plugin has")
    func refusedAtOnce() throws {
        let rig = try EngineRig()
        let good = rig.read(0, 8)
        let bad = rig.read(rig.disk.sectorCount, 8)
        rig.turn()
        #expect(rig.status(bad) == -1)
        #expect(rig.status(good) == nil)
        rig.run()
        rig.expectIdle()
    }

    @Test("a ring full of refused requests is answered and leaves nothing behind", arguments: RingABI.allCases)
    func fullRing(_ abi: RingABI) throws {
        let rig = try EngineRig { $0.abi = abi }
        for _ in 0..<3 {
            for number in 0..<32 {
                let id = UInt64(number) << 32 | 0xffff
                rig.guest.put(
                    rig.guest.encoder.slot(operation: UInt8(100 + number), id: id, firstSector: 0, segments: []))
                rig.expectAnswer(id, UInt8(100 + number))
            }
            rig.run()
        }
        #expect(rig.answers.count == 96)
        #expect(rig.answers.allSatisfy { $0.status == -2 })
        #expect(rig.counter(.total_dispatch) == 0)
        rig.expectIdle()
    }

    @Test("a read-only disk refuses write, barrier with and without data, discard, and flush with data")
    func readOnly() throws {
        let rig = try EngineRig { setup in
            setup.readOnly = true
            setup.remove(UInt64(XBB_CAP_WRITE))
        }
        let refused = [rig.write(0, 8), rig.barrier(8, 8), rig.barrier(), rig.discard(0, 8), rig.flush(16, 8)]
        let read = rig.read(0, 8)
        let flush = rig.flush()
        rig.run()
        #expect(rig.statuses(refused) == [-1, -1, -1, -1, -1])
        #expect(rig.statuses([read, flush]) == [0, 0])
        #expect(rig.plugin.log.allSatisfy { $0.op == Int(XBB_OP_READ) || $0.op == Int(XBB_OP_FLUSH) })
        #expect(rig.isUntouched(0..<100))
        rig.expectIdle()
    }

    @Test("where barriers are not offered they are not supported")
    func barrierNotOffered() throws {
        let rig = try EngineRig { $0.offersBarrier = false }
        let refused = [rig.barrier(0, 8), rig.barrier()]
        rig.run()
        #expect(rig.statuses(refused) == [-2, -2])
        rig.expectIdle()
    }
}
