// SPDX-License-Identifier: BSD-2-Clause
// Parts of one block that are written on several queues at once.
import Blkif
import Glibc
import PluginAPI
import TestSupport
import Testing

@testable import BlockQueue

private let readOp = Int(XBB_OP_READ)
private let writeOp = Int(XBB_OP_WRITE)

@Suite("Large sectors on several queues")
struct LargeSectorsOnSeveralQueuesTests {
    @Test("parts of one block, written on two queues at once, are both on the disk")
    func halves() throws {
        let rigs = try makeQueues(2, blockBytes: 4096)
        let writes = [rigs[0].write(40, 4), rigs[1].write(44, 4)]
        settle(rigs)
        // One of them reads the block, the other one waits.
        #expect(rigs.map(\.plugin.held.count).sorted() == [0, 1])
        run(rigs)
        for (rig, write) in zip(rigs, writes) {
            #expect(rig.status(write) == 0 && rig.isOnDisk(write))
            rig.expectIdle()
        }
        #expect(rigs[0].isUntouched(0..<40) && rigs[0].isUntouched(48..<100))
    }

    @Test("a whole block and a part of it exclude each other, whichever is first", arguments: [false, true])
    func wholeAndPart(_ partFirst: Bool) throws {
        let rigs = try makeQueues(2, blockBytes: 4096)
        var whole: Sent?
        if !partFirst { whole = rigs[1].write(40, 8) }
        settle(rigs)
        let part = rigs[0].write(42, 2)
        settle(rigs)
        if partFirst { whole = rigs[1].write(40, 8) }
        settle(rigs)
        #expect(rigs[0].plugin.held.count + rigs[1].plugin.held.count == 1)
        run(rigs)
        let tags = try #require(whole?.tags)
        let expected = partFirst ? tags : Array(tags[..<2]) + part.tags + Array(tags[4...])
        #expect(rigs[0].disk.tags(40, 8) == expected)
        for rig in rigs { rig.expectIdle() }
    }

    @Test("whole blocks, other blocks and reads wait for no other queue")
    func nothingElseWaits() throws {
        let rigs = try makeQueues(3, blockBytes: 4096)
        rigs[0].write(42, 2)
        rigs[1].write(48, 8)
        rigs[2].write(48, 8)
        rigs[2].write(59, 2)
        settle(rigs)
        #expect(rigs[0].plugin.held.map(\.op) == [readOp])
        #expect(rigs[1].plugin.held.map(\.op) == [writeOp])
        #expect(rigs[2].plugin.held.map(\.op) == [writeOp])
        rigs[1].read(40, 8)
        settle(rigs)
        #expect(rigs[1].plugin.held.count == 2)
        run(rigs)
        for rig in rigs { rig.expectIdle() }
    }

    @Test("random writes of parts, one writer for each sector: each has what was written last", arguments: 0..<20)
    func random(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let count = 2 + Int(seed % 3)
        let rigs = try makeQueues(count, blockBytes: 4096)
        // Each queue has two sectors of each block: what stands in them was written by it.
        var last: [Int: UInt64] = [:]
        var busy: [Set<Int>] = Array(repeating: [], count: count)
        var sent: [[(Sent, Int)]] = Array(repeating: [], count: count)
        for round in 0..<4000 {
            let index = random.below(count)
            let rig = rigs[index]
            let sector = random.below(4) * 8 + index * 2
            if round < 3000, rig.unanswered < 8, busy[index].insert(sector).inserted {
                let write = rig.write(sector, 1 + random.below(2))
                for (offset, tag) in write.tags.enumerated() { last[sector + offset] = tag }
                sent[index].append((write, sector))
            }
            rig.turn()
            sent[index].removeAll { write, sector in
                guard rig.status(write) == 0 else { return false }
                busy[index].remove(sector)
                rig.givePagesBack(write)
                return true
            }
            let plugin = random.pick(rigs).plugin
            if !plugin.held.isEmpty, random.onceIn(2) { plugin.complete(random.below(plugin.held.count)) }
        }
        run(rigs)
        for (sector, tag) in last { #expect(rigs[0].disk.tag(sector) == tag, "sector \(sector)") }
        for rig in rigs { rig.expectIdle() }
        #expect(rigs[0].engine.peers.order?.lockCount == 0)
    }

    @Test("a worker that dies between reading a block and writing it loses nothing of either queue")
    func death() throws {
        let rigs = try makeQueues(2, blockBytes: 4096)
        let writes = [rigs[0].write(40, 4), rigs[1].write(44, 4)]
        settle(rigs)
        for rig in rigs { rig.plugin.completeAll() }
        settle(rigs)
        // Both processes' memory is gone with their locks.
        let order = try #require(rigs[0].engine.peers.order)
        for queue in 0...1 { order.leave(queue) }
        for rig in rigs { try rig.succeed() }
        run(rigs)
        for (rig, write) in zip(rigs, writes) {
            #expect(rig.status(write) == 0 && rig.isOnDisk(write))
        }
    }

    // The engine cannot be copied, which #expect would do.
    private func isAtRest(_ rig: EngineRig) -> Bool {
        rig.engine.isHeld && (rig.engine.isEmpty || rig.engine.hasOnlyHeld)
    }

    @Test("a pause is complete while a part waits for space and another queue's part of the block waits for it")
    func pause() throws {
        let rigs = try makeQueues(2, blockBytes: 4096)
        for rig in rigs { rig.engine.tuning.holdsWithoutSpace = true }
        let order = try #require(rigs[0].engine.peers.order)
        let first = rigs[0].write(40, 4)
        settle(rigs)
        rigs[0].plugin.completeAll()
        settle(rigs)
        rigs[0].plugin.completeAll(-ENOSPC)
        settle(rigs)
        let second = rigs[1].write(44, 4)
        settle(rigs)
        #expect(rigs.allSatisfy { $0.plugin.held.isEmpty })
        for rig in rigs { rig.engine.isHeld = true }
        settle(rigs)
        // The other one could go on any moment, as far as the second queue knows.
        #expect(isAtRest(rigs[0]) && !isAtRest(rigs[1]))
        order.setResting(0, true)
        settle(rigs)
        #expect(isAtRest(rigs[1]))
        order.setResting(1, true)
        for rig in rigs { rig.engine.now += 10 * SpaceHold.pause }
        settle(rigs)
        #expect(rigs.allSatisfy { $0.plugin.held.isEmpty }, "nothing is begun in a pause")
        for (index, rig) in rigs.enumerated() {
            order.setResting(index, false)
            rig.engine.isHeld = false
        }
        settle(rigs)
        run(rigs)
        for (rig, write) in zip(rigs, [first, second]) {
            #expect(rig.status(write) == 0 && rig.isOnDisk(write))
            rig.expectIdle()
        }
    }

    @Test("locks: whole ranges share, a partial one is alone, and each is let go once")
    func locks() {
        var locks = BlockLocks(listCount: 8)
        func lock(_ list: Int, _ first: UInt64, _ end: UInt64, partial: Bool = false, expecting expected: Bool = true) {
            let result = locks.lock(list, first: first, end: end, isPartial: partial)
            #expect(result == expected, "list \(list)")
        }
        func unlock(_ list: Int, expecting expected: Bool = true) {
            let result = locks.unlock(list)
            #expect(result == expected, "list \(list)")
        }
        lock(0, 0, 16)
        lock(1, 8, 24)
        lock(0, 0, 16)
        lock(2, 8, 16, partial: true, expecting: false)
        lock(3, 24, 32, partial: true)
        lock(4, 24, 32, expecting: false)
        lock(4, 16, 25, expecting: false)
        lock(4, 32, 40)
        lock(5, 0, .max, partial: true, expecting: false)
        unlock(0)
        unlock(0, expecting: false)
        unlock(1)
        lock(2, 8, 16, partial: true)
        #expect(locks.count == 3)
        for list in 2...4 { unlock(list) }
        #expect(locks.count == 0)
        lock(5, 0, .max, partial: true)
    }
}
