// SPDX-License-Identifier: BSD-2-Clause
// Requests whose segments stand in other pages: fetched, parsed, and done like all others.
import Blkif
import Glibc
import PluginAPI
import Testing

@testable import BlockQueue
@testable import PluginHost

@Suite("Segments outside of the slot")
struct IndirectTests {
    private func rig(
        _ most: UInt32 = 256, _ change: (inout EngineRig.Setup) -> Void = { _ in }
    ) throws -> EngineRig {
        try EngineRig {
            $0.indirectSegments = most
            $0.memoryBytes = 16 << 20
            $0.sectors = 65536
            change(&$0)
        }
    }

    @Test(
        "reads and writes of 1 to 4096 segments", arguments: [1, 11, 12, 511, 512, 513, 4096],
        [RingABI.x86_64, .x86_32])
    func sizes(_ count: Int, _ abi: RingABI) throws {
        let rig = try rig(4096) {
            $0.abi = abi
            $0.memoryBytes = 128 << 20
            $0.guestPages = 4200
        }
        let write = rig.sendIndirect(.write, 800, rig.segments(count * 8))
        rig.run()
        #expect(rig.status(write) == 0 && rig.isOnDisk(write))
        let read = rig.sendIndirect(.read, 800, write.segments)
        rig.run()
        #expect(rig.status(read) == 0 && rig.hasDiskData(read))
        rig.expectIdle()
    }

    @Test("not offered, they are unknown")
    func notOffered() throws {
        let rig = try EngineRig()
        let sent = rig.sendIndirect(.read, 0, rig.segments(8))
        rig.run()
        #expect(rig.status(sent) == -2)
        rig.expectIdle()
    }

    @Test("what breaks a rule is refused, and its neighbours are done")
    func refusals() throws {
        let rig = try rig(64)
        let before = rig.write(0, 8)
        let tooMany = rig.sendIndirect(.read, 100, rig.segments(64 * 8), segmentCount: 65)
        let none = rig.sendIndirect(.read, 100, rig.segments(8), segmentCount: 0)
        let flush = rig.sendIndirect(.flush, 100, rig.segments(8))
        let nested = rig.sendIndirect(.discard, 100, rig.segments(8))
        let inner = rig.sendIndirect(.write, 100, rig.segments(8), inner: BlkifLimits.indirectOperation)
        let beyond = rig.sendIndirect(.read, 65536 - 95, rig.segments(96))
        let huge = rig.sendIndirect(.write, -1, rig.segments(96))
        let backwards = rig.sendIndirect(.write, 200, rig.segments(96)) { pages in
            rig.guest.sector(pages[0], 0).storeBytes(of: 7, toByteOffset: 4 + 8 * 3, as: UInt8.self)
            rig.guest.sector(pages[0], 0).storeBytes(of: 6, toByteOffset: 5 + 8 * 3, as: UInt8.self)
        }
        let wide = rig.sendIndirect(.write, 200, rig.segments(96)) { pages in
            rig.guest.sector(pages[0], 0).storeBytes(of: 8, toByteOffset: 5 + 8 * 11, as: UInt8.self)
        }
        let good = rig.sendIndirect(.write, 400, rig.segments(96))
        let after = rig.write(1000, 8)
        rig.run()
        #expect(rig.statuses([before, good, after]) == [0, 0, 0])
        #expect(rig.statuses([tooMany, none, beyond, huge, backwards, wide]) == [-1, -1, -1, -1, -1, -1])
        // Not -2: the answer says flush, and the guest would take the flush for one that does not work.
        #expect(rig.statuses([flush, nested, inner]) == [-1, -1, -1])
        #expect(rig.isOnDisk(good) && rig.isUntouched(200..<296))
        rig.expectIdle()
    }

    @Test("a bad reference for page k fails its request alone", arguments: 0..<8)
    func badPage(_ page: Int) throws {
        let rig = try rig(4096) {
            $0.memoryBytes = 128 << 20
            $0.guestPages = 4200
        }
        let before = rig.write(0, 8)
        var pages: [UInt32] = []
        let bad = rig.sendIndirect(.read, 1000, rig.segments(4096 * 8)) { pages = $0 }
        let after = rig.sendIndirect(.write, 40000, rig.segments(96))
        rig.guest.revoked = [pages[page]]
        rig.run()
        #expect(rig.statuses([before, bad, after]) == [0, -1, 0])
        #expect(rig.engine.fault?.error == .unreachableSegments && rig.counter(.grant_errors) == 1)
        rig.expectIdle()
    }

    @Test("nine pages: more segments than the protocol has are refused, whatever was offered")
    func ninePages() throws {
        let rig = try rig(5000) { $0.guestPages = 6000 }
        let many = rig.sendIndirect(.read, 0, rig.segments(8), segmentCount: 4097)
        let most = rig.sendIndirect(.read, 0, rig.segments(8), segmentCount: 65535)
        rig.run()
        #expect(rig.statuses([many, most]) == [-1, -1] && rig.counter(.indirect_requests) == 0)
        rig.expectIdle()
    }

    @Test("a bad reference among the data fails its request alone")
    func badData() throws {
        let rig = try rig()
        let one = rig.sendIndirect(.write, 0, rig.segments(96))
        let bad = rig.sendIndirect(.write, 96, rig.segments(96))
        let other = rig.sendIndirect(.write, 192, rig.segments(96))
        rig.guest.revoked = [bad.segments[7].reference]
        rig.run()
        #expect(rig.statuses([one, bad, other]) == [0, -1, 0])
        #expect(rig.isOnDisk(one) && rig.isUntouched(96..<192) && rig.isOnDisk(other))
        rig.expectIdle()
    }

    @Test("a page of segments that cannot be read fails its request alone")
    func unreachable() throws {
        let rig = try rig(600)
        let one = rig.sendIndirect(.write, 0, rig.segments(96))
        var pages: [UInt32] = []
        let bad = rig.sendIndirect(.write, 1000, rig.segments(600 * 8)) { pages = $0 }
        let other = rig.sendIndirect(.write, 10000, rig.segments(96))
        rig.guest.revoked = [pages[1]]
        rig.run()
        #expect(rig.statuses([one, bad, other]) == [0, -1, 0])
        #expect(rig.isUntouched(1000..<1008))
        #expect(rig.engine.fault?.error == .unreachableSegments)
        rig.guest.revoked = []
        rig.failCopyCall = true
        let failed = rig.sendIndirect(.read, 0, one.segments)
        rig.run()
        #expect(rig.status(failed) == -1)
        rig.expectIdle()
    }

    @Test("a read-only disk refuses them too")
    func readOnly() throws {
        let rig = try rig { $0.readOnly = true }
        let write = rig.sendIndirect(.write, 0, rig.segments(96))
        let read = rig.sendIndirect(.read, 0, rig.segments(96))
        rig.run()
        #expect(rig.statuses([write, read]) == [-1, 0])
        rig.expectIdle()
    }

    @Test("a barrier behind them waits for them")
    func barrier() throws {
        let rig = try rig()
        let first = rig.sendIndirect(.write, 0, rig.segments(96))
        let barrier = rig.barrier(500, 8)
        let second = rig.sendIndirect(.write, 1000, rig.segments(96))
        rig.settle()
        // The plugin has the first write, and neither the barrier's flush nor what came behind it.
        #expect(rig.plugin.held.map(\.sector) == [0])
        rig.run()
        #expect(rig.statuses([first, barrier, second]) == [0, 0, 0])
        let order = rig.plugin.log.map { $0.op == Int(XBB_OP_FLUSH) ? -1 : $0.sector }
        #expect(order.first == 0 && order.last == 1000 && order.contains(500))
        rig.expectIdle()
    }

    @Test("of two barriers behind them, none passes them or the other one", arguments: [0, 1, 2])
    func twoBarriers(_ between: Int) throws {
        let rig = try rig()
        let first = rig.sendIndirect(.write, 0, rig.segments(96))
        for place in 0..<between { rig.write(2000 + place * 100, 8) }
        let barriers = [rig.barrier(500, 8), rig.barrier(0, 8)]
        let last = rig.write(0, 4)
        // They were taken at once; the storage does one thing after the other.
        for _ in 0..<64 {
            rig.settle()
            if rig.plugin.held.isEmpty { break }
            rig.plugin.complete(rig.plugin.held.count - 1)
        }
        #expect(rig.statuses([first] + barriers + [last]) == [0, 0, 0, 0])
        let order = rig.plugin.log.filter { $0.op == Int(XBB_OP_WRITE) && $0.sector < 2000 }.map(\.sector)
        #expect(order == [0, 500, 0, 0])
        #expect(rig.disk.tags(0, 8) == Array(last.tags) + Array(barriers[1].tags[4...]))
        #expect(rig.disk.tags(8, 4) == Array(first.tags[8..<12]))
        rig.expectIdle()
    }

    @Test(
        "what was taken behind a barrier does not begin before it, with segments of its own or without",
        arguments: [false, true])
    func behindBarrier(_ isIndirect: Bool) throws {
        let rig = try rig()
        let first = rig.sendIndirect(.write, 0, rig.segments(96))
        let barrier = rig.barrier(500, 8)
        let second = isIndirect ? rig.sendIndirect(.write, 1000, rig.segments(96)) : rig.write(1000, 8)
        rig.settle()
        #expect(rig.plugin.held.map(\.sector) == [0])
        rig.run()
        #expect(rig.statuses([first, barrier, second]) == [0, 0, 0])
        let order = rig.plugin.log.filter { $0.op == Int(XBB_OP_WRITE) }.map(\.sector)
        #expect(order == [0, 500, 1000])
        rig.expectIdle()
    }

    @Test("a barrier that waits for memory passes none of them")
    func barrierWithoutMemory() throws {
        let rig = try rig(64) {
            $0.memoryBytes = 1
            $0.guestPages = 4096
        }
        // They fill the memory.
        let before = (0..<7).map { rig.sendIndirect(.write, 4096 + $0 * 512, rig.segments(512)) }
        rig.settle()
        let first = rig.sendIndirect(.write, 0, rig.segments(512))
        let large = rig.write(2048, 88)
        let second = rig.write(3000, 88)
        let barrier = rig.barrier(0, 8)
        rig.run()
        #expect(rig.statuses(before + [first, large, second, barrier]).allSatisfy { $0 == 0 })
        #expect(rig.isOnDisk(barrier) && rig.disk.tags(8, 4) == Array(first.tags[8..<12]))
        rig.expectIdle()
    }

    @Test("what is taken behind a barrier begins after it, whatever kind it is", arguments: [false, true])
    func behindBarrierOfAKilledBackend(_ dies: Bool) throws {
        let rig = try rig()
        let first = rig.sendIndirect(.write, 0, rig.segments(96))
        let barrier = rig.barrier(500, 8)
        // Not indirect: it waits already when the first one's segments are there.
        let second = rig.write(1000, 8)
        if dies {
            rig.turn(steps: 2)
            try rig.succeed()
        }
        rig.settle()
        #expect(rig.plugin.held.map(\.sector) == [0])
        rig.run()
        #expect(rig.statuses([first, barrier, second]) == [0, 0, 0])
        let order = rig.plugin.log.map { $0.op == Int(XBB_OP_FLUSH) ? -1 : $0.sector }
        #expect(order.first == 0 && order.last == 1000 && order.contains(500), "\(order)")
        #expect(rig.isIdle && rig.use == EngineRig.Use() && rig.problems == [])
    }

    @Test("a barrier waits for what was taken before it, also where that waits for memory", arguments: 0..<6)
    func barrierBehindWhatWaitsForMemory(_ left: Int) throws {
        let rig = try rig(32) {
            $0.ringPages = 4
            $0.memoryBytes = 128 << 10
            $0.guestPages = 2000
        }
        rig.engine.tuning.noCoalesce = true
        let pages = rig.memory.byteCount / 4096
        var sector = 2000
        for _ in 0..<100 where pages - rig.use.pages > left {
            let count = min(11, pages - rig.use.pages - left)
            rig.read(sector, count * 8)
            sector += count * 8
            rig.settle()
        }
        rig.turn()
        let first = rig.sendIndirect(.write, 0, rig.segments(16))
        let second = rig.write(200, 16)
        let barrier = rig.barrier(500, 8)
        let third = rig.write(1000, 8)
        rig.settle()
        while rig.unanswered > 0, rig.problems.isEmpty {
            let isBarrier = rig.plugin.held.contains { $0.sector == 500 && $0.op != Int(XBB_OP_READ) }
            if isBarrier { #expect(rig.statuses([first, second]) == [0, 0] && rig.status(third) == nil) }
            if rig.plugin.held.contains(where: { $0.sector == 1000 }) { #expect(rig.status(barrier) == 0) }
            guard !rig.plugin.held.isEmpty else { break }
            rig.plugin.complete(rig.plugin.held.count - 1)
            rig.settle()
        }
        rig.run()
        #expect(rig.statuses([first, second, barrier, third]) == [0, 0, 0, 0])
        rig.expectIdle()
    }

    @Test("the guest changes its pages after they were fetched: nothing happens")
    func changedAfterwards() throws {
        let rig = try rig()
        var page: UInt32 = 0
        let write = rig.sendIndirect(.write, 0, rig.segments(96)) { page = $0[0] }
        rig.guest.onCopy = { reference, _ in
            if reference == page { memset(rig.guest.sector(page, 0), 0xff, 4096) }
        }
        rig.run()
        #expect(rig.status(write) == 0 && rig.isOnDisk(write))
        rig.expectIdle()
    }

    @Test("they are done again after the process died")
    func replay() throws {
        let rig = try rig()
        let write = rig.sendIndirect(.write, 0, rig.segments(800))
        rig.settle()
        #expect(rig.plugin.held.count > 0)
        try rig.succeed()
        rig.run()
        #expect(rig.status(write) == 0 && rig.isOnDisk(write))
        #expect(rig.isIdle && rig.unanswered == 0 && rig.use == EngineRig.Use() && rig.problems == [])
    }

    @Test("a successor fetches the segments again, and checks what it finds")
    func replayChecks() throws {
        let rig = try rig()
        var page: UInt32 = 0
        let write = rig.sendIndirect(.write, 0, rig.segments(96)) { page = $0[0] }
        let read = rig.read(500, 8)
        rig.settle()
        rig.guest.sector(page, 0).storeBytes(of: 8, toByteOffset: 5 + 8 * 11, as: UInt8.self)
        try rig.succeed()
        rig.run()
        #expect(rig.statuses([write, read]) == [-1, 0] && rig.counter(.indirect_requests) == 2)
        #expect(rig.engine.fault?.error == .segmentBeyondPage)
        #expect(rig.isIdle && rig.unanswered == 0 && rig.use == EngineRig.Use() && rig.problems == [])
    }

    @Test("one that crashes plugins is answered with the inner operation, and named")
    func poison() throws {
        let rig = try rig()
        let write = rig.sendIndirect(.write, 800, rig.segments(96))
        for _ in 0..<4 {
            rig.settle()
            try rig.succeed(.crashed("signal 11"))
        }
        rig.run()
        #expect(rig.status(write) == -1 && rig.engine.replaying.poison?.text == "write at 409600")
        #expect(rig.unanswered == 0 && rig.problems == [])
    }

    @Test("many of them beside others, in little memory and with few vectors", arguments: [0, 1, 3], [512, 4096])
    func many(_ vectors: UInt32, _ block: UInt32) throws {
        let rig = try rig(64) {
            $0.memoryBytes = 1
            $0.guestPages = 2048
            $0.info.max_iov = vectors
            $0.info.logical_block = block
            $0.info.max_transfer = 65536
        }
        var place = 0
        var sent: [Sent] = []
        for round in 0..<28 {
            let count = round % 3 == 0 ? 8 : 64 * 8 - round
            sent.append(
                round % 3 == 0
                    ? rig.write(place, count) : rig.sendIndirect(.write, place, rig.segments(count, skip: round % 8)))
            place += count + round % 5
        }
        rig.run()
        for one in sent { #expect(rig.status(one) == 0 && rig.isOnDisk(one)) }
        rig.expectIdle()
    }
}
