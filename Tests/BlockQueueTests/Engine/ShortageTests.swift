// SPDX-License-Identifier: BSD-2-Clause
// Little memory, few plugin requests, small limits: everything waits and nothing is lost.
import Blkif
import Glibc
import PluginAPI
import Testing

@testable import BlockQueue

@Suite("Shortages and limits")
struct ShortageTests {
    @Test("requests wait for memory in their order, none is lost, and the shortage is counted")
    func memoryShortage() throws {
        // 32 pages of memory, lists of at most 11 pages.
        let rig = try EngineRig { $0.memoryBytes = 128 << 10 }
        let reads = (0..<20).map { rig.read($0 * 200, 88) }
        rig.settle()
        #expect(rig.plugin.held.count == 2)
        #expect(rig.counter(.kva_shortages) >= 1)
        #expect(rig.counter(.reqs_received) <= 4, "what is not started stays on the ring")
        // One at a time becomes free, and the next in order takes its place.
        var started: [Int] = []
        while !rig.plugin.held.isEmpty {
            started.append(rig.plugin.held[0].sector)
            rig.plugin.complete(0)
            rig.settle()
            #expect(rig.plugin.held.count <= 2)
        }
        #expect(started == (0..<20).map { $0 * 200 })
        #expect(rig.statuses(reads) == Array(repeating: 0, count: 20))
        for read in reads { #expect(rig.hasDiskData(read)) }
        rig.expectIdle()
    }

    @Test("a barrier among requests that wait for memory keeps its place")
    func barrierInShortage() throws {
        let rig = try EngineRig { $0.memoryBytes = 128 << 10 }
        var sent: [Sent] = []
        for number in 0..<3 { sent.append(rig.write(number * 200, 88)) }
        let barrier = rig.barrier(1000, 88)
        let behind = (0..<3).map { rig.write(2000 + $0 * 200, 88) }
        var order: [Int] = []
        for _ in 0..<100 where rig.unanswered > 0 {
            rig.settle()
            if rig.plugin.held.isEmpty { break }
            let last = rig.plugin.held.count - 1
            if rig.plugin.held[last].op == Int(XBB_OP_WRITE) { order.append(rig.plugin.held[last].sector) }
            rig.plugin.complete(last)
        }
        rig.settle()
        #expect(rig.statuses(sent + [barrier] + behind) == Array(repeating: 0, count: 7))
        #expect(Set(order[..<3]) == [0, 200, 400])
        #expect(order[3] == 1000)
        rig.expectIdle()
    }

    @Test("a flush with data waits for memory, one without does not")
    func flushInShortage() throws {
        let rig = try EngineRig { $0.memoryBytes = 128 << 10 }
        let reads = [rig.read(0, 88), rig.read(200, 88)]
        let flush = rig.flush()
        let withData = rig.flush(400, 88)
        rig.settle()
        #expect(rig.plugin.held.map(\.op) == [Int(XBB_OP_READ), Int(XBB_OP_READ), Int(XBB_OP_FLUSH)])
        rig.plugin.complete(2)
        rig.settle()
        #expect(rig.status(flush) == 0)
        rig.run()
        #expect(rig.statuses(reads + [withData]) == [0, 0, 0])
        rig.expectIdle()
    }

    @Test(
        "the smallest memory carries the largest request, on every block size", arguments: [512, 4096],
        [128 << 10, 256 << 10])
    func smallestMemory(_ block: Int, _ bytes: Int) throws {
        let rig = try EngineRig {
            $0.memoryBytes = bytes
            $0.info.logical_block = UInt32(block)
        }
        let all = [rig.read(3, 88), rig.write(203, 88), rig.barrier(403, 88), rig.write(603, 80), rig.read(691, 80)]
        rig.run()
        #expect(rig.statuses(all) == [0, 0, 0, 0, 0])
        for write in all[1...3] { #expect(rig.isOnDisk(write)) }
        rig.expectIdle()
    }

    @Test("a read larger than max_transfer is cut and put together", arguments: [512, 4096, 8192, 65536])
    func maxTransfer(_ limit: UInt64) throws {
        let rig = try EngineRig { $0.info.max_transfer = limit }
        let read = rig.read(10, 88)
        let write = rig.write(1000, 88)
        let neighbours = (0..<4).map { rig.read(2000 + $0 * 24, 24) }
        rig.run()
        #expect(rig.statuses([read, write] + neighbours) == [0, 0, 0, 0, 0, 0])
        #expect(rig.hasDiskData(read))
        #expect(rig.isOnDisk(write))
        for read in neighbours { #expect(rig.hasDiskData(read)) }
        let parts = rig.plugin.log.count { $0.op == Int(XBB_OP_WRITE) }
        #expect(parts == (45056 + Int(limit) - 1) / Int(limit))
        rig.expectIdle()
    }

    @Test("a limit that is no multiple of the block is rounded down", arguments: [1000, 5000, 6143])
    func oddLimit(_ limit: UInt64) throws {
        let rig = try EngineRig { $0.info.max_transfer = limit }
        let read = rig.read(10, 88)
        rig.run()
        #expect(rig.status(read) == 0)
        #expect(rig.hasDiskData(read))
        rig.expectIdle()
    }

    @Test("the plugin never has more than queue_depth, even 1", arguments: [1, 2, 7])
    func queueDepth(_ depth: UInt32) throws {
        let rig = try EngineRig {
            $0.info.queue_depth = depth
            $0.info.max_transfer = 4096
        }
        let all = (0..<20).map { $0 % 2 == 0 ? rig.read($0 * 100, 40) : rig.write($0 * 100, 40) }
        var most = 0
        for _ in 0..<1000 where rig.unanswered > 0 {
            rig.settle()
            most = max(most, rig.plugin.held.count)
            if rig.plugin.held.isEmpty { break }
            rig.plugin.complete(rig.plugin.held.count - 1)
        }
        #expect(most == Int(depth))
        #expect(rig.statuses(all) == Array(repeating: 0, count: 20))
        rig.expectIdle()
    }

    @Test("when plugin requests run out the rest of a list waits, and goes on as they come back", arguments: [1, 3, 8])
    func pluginRequests(_ count: Int) throws {
        let rig = try EngineRig {
            $0.pluginRequests = count
            $0.info.max_transfer = 4096
        }
        let all = [rig.read(0, 88), rig.flush(), rig.write(200, 88), rig.discard(400, 88), rig.barrier(600, 88)]
        rig.settle()
        #expect(rig.plugin.held.count == count)
        for _ in 0..<1000 where rig.unanswered > 0 {
            if !rig.plugin.held.isEmpty { rig.plugin.complete(rig.plugin.held.count / 2) }
            rig.settle()
        }
        #expect(rig.statuses(all) == [0, 0, 0, 0, 0])
        #expect(rig.hasDiskData(all[0]))
        #expect(rig.isOnDisk(all[2]) && rig.isOnDisk(all[4]))
        rig.expectIdle()
    }

    @Test("after a part failed, the parts that still wait are not submitted")
    func restIsNotSubmitted() throws {
        let rig = try EngineRig {
            $0.pluginRequests = 3
            $0.info.max_discard = 512
        }
        let discard = rig.discard(0, 4096)
        rig.settle()
        rig.plugin.complete(1, -EIO)
        rig.run()
        #expect(rig.status(discard) == -1)
        #expect(rig.plugin.submissions == 3)
        rig.expectIdle()
    }

    @Test("when a plugin takes nothing, refused requests make room for the parts that waited for them")
    func refusalFeedsWaiters() throws {
        let rig = try EngineRig {
            $0.pluginRequests = 3
            $0.info.max_transfer = 4096
        }
        let all = [rig.read(0, 88), rig.write(200, 88), rig.flush()]
        rig.plugin.takes = 0
        rig.settle()
        // The loop's stall limit: everything that is ready fails, again and again, until nothing is left.
        for _ in 0..<100 where rig.unanswered > 0 {
            while !rig.engine.plugin.ready.isEmpty { rig.engine.refuseReady(-EIO) }
            rig.settle()
        }
        #expect(rig.statuses(all) == [-1, -1, -1])
        rig.expectIdle()
        rig.plugin.takes = nil
        let next = rig.read(0, 8)
        rig.run()
        #expect(rig.status(next) == 0)
        rig.expectIdle()
    }

    @Test("a plugin that takes one request at a time gets the others again, in their order")
    func shortAcceptance() throws {
        let rig = try EngineRig()
        let all = (0..<10).map { rig.read($0 * 100, 8) }
        rig.plugin.takes = 0
        rig.settle()
        for _ in 0..<10 {
            rig.plugin.takes = 1
            rig.settle()
        }
        #expect(rig.plugin.held.map(\.sector) == (0..<10).map { $0 * 100 })
        rig.plugin.takes = nil
        rig.run()
        #expect(rig.statuses(all) == Array(repeating: 0, count: 10))
        rig.expectIdle()
    }

    @Test(
        "a full ring of the largest requests, many times over, is served from every amount of memory",
        arguments: [128, 256, 1024, 4096])
    func fullRings(_ kibibytes: Int) throws {
        let rig = try EngineRig { $0.memoryBytes = kibibytes << 10 }
        for _ in 0..<4 {
            let all = (0..<32).map { rig.read($0 * 100, 88) }
            rig.run()
            #expect(rig.statuses(all) == Array(repeating: 0, count: 32))
            all.forEach(rig.givePagesBack)
        }
        rig.expectIdle()
    }
}
