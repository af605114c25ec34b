// SPDX-License-Identifier: BSD-2-Clause
// What is on stable storage when a flush or a barrier is answered, and what waits for what.
import Blkif
import Glibc
import PluginAPI
import Testing

@testable import BlockQueue

private let readOp = Int(XBB_OP_READ)
private let writeOp = Int(XBB_OP_WRITE)
private let flushOp = Int(XBB_OP_FLUSH)

@Suite("Flush")
struct FlushTests {
    @Test("a flush without data is one flush of the plugin and nothing else")
    func plainFlush() throws {
        let rig = try EngineRig()
        let write = rig.write(0, 8)
        rig.run()
        #expect(rig.disk.isDirty(0))
        let flush = rig.flush()
        rig.run()
        #expect(!rig.disk.isDirty(0))
        #expect(rig.statuses([write, flush]) == [0, 0])
        #expect(rig.plugin.log.map(\.op) == [writeOp, flushOp])
        #expect(rig.counter(.flush_requests) == 1)
        rig.expectIdle()
    }

    @Test("a flush with data flushes first and then writes its data")
    func flushWithData() throws {
        let rig = try EngineRig()
        let write = rig.write(0, 8)
        rig.run()
        let flush = rig.flush(100, 16)
        rig.settle()
        #expect(rig.plugin.held.map(\.op) == [flushOp])
        rig.run()
        #expect(rig.statuses([write, flush]) == [0, 0])
        #expect(rig.isOnDisk(flush))
        #expect(!rig.disk.isDirty(0))
        rig.expectIdle()
    }

    @Test("a flush does not hold up what comes behind it")
    func flushIsNoBarrier() throws {
        let rig = try EngineRig()
        rig.flush()
        rig.write(0, 8)
        rig.read(100, 8)
        rig.settle()
        #expect(Set(rig.plugin.held.map(\.op)) == [flushOp, writeOp, readOp])
        rig.run()
        rig.expectIdle()
    }

    @Test("where the plugin has no volatile cache a flush succeeds without it, with and without data")
    func noFlushCapability() throws {
        let rig = try EngineRig { $0.remove(UInt64(XBB_CAP_FLUSH)) }
        let all = [rig.flush(), rig.flush(8, 8)]
        rig.run()
        #expect(rig.statuses(all) == [0, 0])
        #expect(rig.plugin.log.map(\.op) == [writeOp])
        #expect(rig.isOnDisk(all[1]))
        rig.expectIdle()
    }

    @Test("disable_flush answers flushes without doing them, writes their data, and leaves barriers alone")
    func disableFlush() throws {
        let rig = try EngineRig()
        rig.engine.tuning.disableFlush = true
        let all = [rig.flush(), rig.flush(8, 8)]
        rig.run()
        #expect(rig.statuses(all) == [0, 0])
        #expect(rig.plugin.log.map(\.op) == [writeOp])
        let barrier = rig.barrier(16, 8)
        rig.run()
        #expect(rig.status(barrier) == 0)
        #expect(rig.plugin.log.map(\.op) == [writeOp, flushOp, writeOp])
        #expect(!rig.disk.hasDirty(upTo: .max))
        rig.expectIdle()
    }

    @Test("flush_interval n does every n-th flush", arguments: [0, 1, 2, 3, 7])
    func flushInterval(_ interval: UInt64) throws {
        let rig = try EngineRig()
        rig.engine.tuning.flushInterval = interval
        for number in 1...21 {
            let flush = rig.flush()
            rig.run()
            #expect(rig.status(flush) == 0)
            #expect(rig.plugin.log.count == number / Int(max(interval, 1)))
        }
        rig.expectIdle()
    }

    @Test("a flush that fails says so, and its data is not written")
    func failedFlush() throws {
        let rig = try EngineRig()
        let all = [rig.flush(), rig.flush(8, 8)]
        rig.settle()
        rig.plugin.completeAll(-EIO)
        rig.run()
        #expect(rig.statuses(all) == [-1, -1])
        #expect(rig.isUntouched(0..<100))
        rig.expectIdle()
    }
}

@Suite("Barrier")
struct BarrierTests {
    /// The capabilities beside writing: a cache with FUA, a cache without, no cache.
    static let caches: [UInt64] = [UInt64(XBB_CAP_FLUSH) | UInt64(XBB_CAP_FUA), UInt64(XBB_CAP_FLUSH), 0]

    private func rig(_ cache: UInt64) throws -> EngineRig {
        try EngineRig { $0.info.caps = UInt64(XBB_CAP_WRITE) | UInt64(XBB_CAP_DISCARD) | cache }
    }

    @Test("a barrier waits for all before it, flushes, writes durably, and holds up all behind it", arguments: caches)
    func order(_ cache: UInt64) throws {
        let rig = try rig(cache)
        let before = [rig.write(0, 8), rig.read(200, 8), rig.discard(400, 8)]
        let barrier = rig.barrier(8, 8)
        let behind = [rig.write(16, 8), rig.read(300, 8), rig.flush()]
        rig.settle()
        #expect(rig.plugin.held.count == 3)
        #expect(rig.counter(.reqs_received) <= 5, "the ring is not read past a barrier")
        rig.plugin.complete(2)
        rig.settle()
        rig.plugin.complete(0)
        rig.settle()
        #expect(rig.plugin.held.count == 1)
        rig.plugin.complete(0)
        rig.settle()
        let firstStep = rig.plugin.held
        #expect(firstStep.count == 1)
        if cache != 0 {
            #expect(firstStep[0].op == flushOp)
            rig.plugin.complete(0)
            rig.settle()
        }
        #expect(rig.plugin.held.map(\.op) == [writeOp])
        #expect(rig.plugin.held[0].flags == (cache & UInt64(XBB_CAP_FUA) != 0 ? Int(XBB_REQ_FUA) : 0))
        rig.plugin.complete(0)
        rig.turn()
        if cache == UInt64(XBB_CAP_FLUSH) {
            #expect(rig.status(barrier) == nil)
            #expect(rig.plugin.held.map(\.op) == [flushOp])
            rig.plugin.complete(0)
            rig.turn()
        }
        #expect(rig.status(barrier) == 0)
        #expect(rig.isOnDisk(barrier))
        if cache != 0 { #expect(!rig.disk.hasDirty(upTo: .max)) }
        #expect(rig.statuses([behind[0], behind[1]]) == [nil, nil])
        rig.run()
        #expect(rig.statuses(before + behind) == [0, 0, 0, 0, 0, 0])
        #expect(rig.counter(.barrier_requests) == 1)
        rig.expectIdle()
    }

    @Test("a barrier without data is a flush that waits for all before it", arguments: caches)
    func withoutData(_ cache: UInt64) throws {
        let rig = try rig(cache)
        let write = rig.write(0, 8)
        let barrier = rig.barrier()
        let behind = rig.write(8, 8)
        rig.settle()
        #expect(rig.plugin.held.map(\.op) == [writeOp])
        rig.plugin.complete(0)
        rig.settle()
        if cache != 0 {
            #expect(rig.status(barrier) == nil)
            #expect(rig.plugin.held.map(\.op) == [flushOp])
            rig.plugin.complete(0)
            rig.settle()
            #expect(!rig.disk.isDirty(0))
        }
        #expect(rig.status(barrier) == 0)
        rig.run()
        #expect(rig.statuses([write, behind]) == [0, 0])
        rig.expectIdle()
    }

    @Test("many barriers with requests between them are done one after the other", arguments: caches)
    func manyBarriers(_ cache: UInt64) throws {
        let rig = try rig(cache)
        var sent: [Sent] = []
        for number in 0..<8 {
            sent.append(rig.write(number * 100, 8))
            sent.append(rig.barrier(number * 100 + 50, number % 2 == 0 ? 8 : 0))
            sent.append(rig.read(number * 100, 8))
        }
        rig.run()
        #expect(rig.statuses(sent) == Array(repeating: 0, count: 24))
        let places = Dictionary(uniqueKeysWithValues: sent.enumerated().map { ($1.id, $0) })
        let order = rig.answers.compactMap { places[$0.id] }
        for barrier in stride(from: 1, to: 24, by: 3) {
            let place = order.firstIndex(of: barrier)
            #expect(order.prefix(place ?? 0).allSatisfy { $0 < barrier })
            #expect(order.dropFirst((place ?? 0) + 1).allSatisfy { $0 > barrier })
        }
        rig.expectIdle()
    }

    @Test("a barrier that fails in any of its steps is answered once and lets the others go on", arguments: 0..<3)
    func failures(_ step: Int) throws {
        let rig = try rig(UInt64(XBB_CAP_FLUSH))
        let barrier = rig.barrier(0, 8)
        let behind = rig.write(8, 8)
        for _ in 0..<step {
            rig.settle()
            rig.plugin.complete(0)
        }
        rig.settle()
        rig.plugin.complete(0, -EIO)
        rig.run()
        #expect(rig.statuses([barrier, behind]) == [-1, 0])
        rig.expectIdle()
    }

    @Test("refused requests behind a barrier do not overtake it")
    func refusedBehindBarrier() throws {
        let rig = try EngineRig()
        let barrier = rig.barrier(0, 8)
        let first = rig.read(100, 8)
        let refused = rig.read(1 << 40, 8)
        rig.settle()
        #expect(rig.status(refused) == nil)
        rig.run()
        #expect(rig.statuses([barrier, first, refused]) == [0, 0, -1])
        rig.expectIdle()
    }
}
