// SPDX-License-Identifier: BSD-2-Clause
// A barrier on one queue comes after what other queues took, and before what they take next.
import Blkif
import Glibc
import PluginAPI
import TestSupport
import Testing

@testable import BlockQueue

private let writeOp = Int(XBB_OP_WRITE)
private let flushOp = Int(XBB_OP_FLUSH)

@Suite("Barrier across queues")
struct BarrierAcrossQueuesTests {
    @Test("a barrier waits for what other queues have on their way, and they for it")
    func alone() throws {
        let rigs = try makeQueues(3)
        let before = [rigs[1].write(0, 8), rigs[2].read(64, 8)]
        settle(rigs)
        let barrier = rigs[0].barrier(128, 8)
        settle(rigs)
        #expect(rigs[0].plugin.held.isEmpty)
        let after = [rigs[1].write(0, 8), rigs[2].write(256, 8)]
        settle(rigs)
        rigs[1].plugin.completeAll()
        settle(rigs)
        #expect(rigs[0].plugin.held.isEmpty && rigs[1].status(before[0]) == 0)
        rigs[2].plugin.completeAll()
        settle(rigs)
        #expect(rigs[0].plugin.held.map(\.op) == [flushOp])
        rigs[0].plugin.completeAll()
        settle(rigs)
        #expect(rigs[0].plugin.held.map(\.op) == [writeOp])
        #expect(rigs[1].plugin.held.isEmpty && rigs[2].plugin.held.isEmpty)
        #expect(!rigs[0].disk.hasDirty(upTo: .max), "what came before is on stable storage")
        rigs[0].plugin.completeAll()
        settle(rigs)
        #expect(rigs[0].status(barrier) == 0)
        #expect(rigs[1].plugin.held.count == 1 && rigs[2].plugin.held.count == 1)
        run(rigs)
        #expect(rigs[1].status(after[0]) == 0 && rigs[2].status(after[1]) == 0)
        for rig in rigs { rig.expectIdle() }
    }

    @Test("what stands on another ring when the barrier is sent comes before it, however much it is")
    func ringsAreEmptiedFirst() throws {
        // Memory for four lists of the other queue.
        let rigs = try makeQueues(2) { $0.memoryBytes = 256 << 10 }
        let before = (0..<20).map { rigs[1].write($0 * 100, 80) }
        let barrier = rigs[0].barrier()
        // The queue of the barrier looks first.
        rigs[0].turn()
        var answered = false
        rigs[0].onAnswer = { _ in answered = true }
        for _ in 0..<100 where !answered {
            settle(rigs)
            #expect(rigs[0].plugin.held.isEmpty || before.allSatisfy { rigs[1].status($0) == 0 })
            for rig in rigs { rig.plugin.completeAll() }
        }
        #expect(answered && rigs[0].status(barrier) == 0)
        run(rigs)
        for rig in rigs { rig.expectIdle() }
    }

    @Test("barriers of all queues at once are done one after the other")
    func oneAtATime() throws {
        let rigs = try makeQueues(4)
        for (index, rig) in rigs.enumerated() {
            for round in 0..<5 {
                rig.barrier(index * 100 + round * 8, 8)
                rig.write(index * 100 + 50, 8)
            }
        }
        for _ in 0..<1000 where rigs.contains(where: { $0.unanswered > 0 }) {
            settle(rigs)
            let busy = rigs.filter { $0.plugin.held.contains { $0.flags & Int(XBB_REQ_FUA) != 0 || $0.op == flushOp } }
            #expect(busy.count <= 1)
            if let owner = busy.first { #expect(rigs.allSatisfy { $0 === owner || $0.plugin.held.isEmpty }) }
            for rig in rigs { rig.plugin.completeAll() }
        }
        run(rigs)
        for rig in rigs { rig.expectIdle() }
    }

    @Test("a queue that takes nothing holds up a barrier while requests stand on its ring; one that has ended does not")
    func queuesThatRest() throws {
        var rigs = try makeQueues(3)
        let order = try #require(rigs[0].engine.peers.order)
        rigs[1].engine.isHeld = true
        rigs.removeLast()
        let first = rigs[0].barrier(8, 8)
        run(rigs)
        #expect(rigs[0].status(first) == 0)
        let waiting = rigs[1].write(0, 8)
        _ = rigs[1].guest.publish()
        let second = rigs[0].barrier(16, 8)
        run(rigs)
        #expect(rigs[0].status(second) == nil && !rigs[0].hasOnlyHeld)
        // It is paused, and so may the other one be: its barrier waits for the end of the pause.
        order.setResting(1, true)
        settle(rigs)
        #expect(rigs[0].hasOnlyHeld)
        order.setResting(1, false)
        rigs[1].engine.isHeld = false
        settle(rigs)
        #expect(rigs[0].plugin.held.isEmpty && rigs[1].plugin.held.count == 1)
        run(rigs)
        #expect(rigs[0].status(second) == 0 && rigs[1].status(waiting) == 0)
        for rig in rigs { rig.expectIdle() }
    }

    @Test("after a death, what another queue had in flight comes before the barrier, whichever queue begins first")
    func successor() throws {
        let rigs = try makeQueues(2)
        let write = rigs[1].write(0, 8)
        settle(rigs)
        let barrier = rigs[0].barrier(8, 8)
        settle(rigs)
        for rig in rigs { try rig.succeed() }
        rigs[1].engine.isHeld = true
        run(rigs)
        #expect(rigs[0].status(barrier) == nil)
        rigs[1].engine.isHeld = false
        settle(rigs)
        #expect(rigs[0].plugin.held.isEmpty && rigs[1].plugin.held.map(\.op) == [writeOp])
        run(rigs)
        #expect(rigs[0].status(barrier) == 0 && rigs[1].status(write) == 0)
    }

    @Test("where requests of a dead process are done one by one, a barrier waits for no queue that has not begun")
    func careful() throws {
        let rigs = try makeQueues(2)
        rigs[1].write(0, 8)
        settle(rigs)
        let barrier = rigs[0].barrier(8, 8)
        settle(rigs)
        for rig in rigs { try rig.succeed() }
        rigs[0].engine.peers.order?.beginCarefully()
        rigs[1].engine.isHeld = true
        run(rigs)
        #expect(rigs[0].status(barrier) == 0)
    }

    @Test("a queue that ends in the middle of its barrier lets the others go on")
    func ownerEnds() throws {
        let rigs = try makeQueues(2)
        let order = try #require(rigs[0].engine.peers.order)
        rigs[1].write(0, 8)
        settle(rigs)
        rigs[0].barrier()
        settle(rigs)
        let after = rigs[1].write(8, 8)
        order.leave(0)
        run([rigs[1]])
        #expect(rigs[1].status(after) == 0)
    }

    /// A queue whose write waits for space, and one with a barrier.
    private func withoutSpace() throws -> (rigs: [EngineRig], write: Sent, barrier: Sent) {
        let rigs = try makeQueues(2)
        for rig in rigs { rig.engine.tuning.holdsWithoutSpace = true }
        let write = rigs[0].write(0, 8)
        settle(rigs)
        rigs[0].plugin.completeAll(-ENOSPC)
        settle(rigs)
        let barrier = rigs[1].barrier(8, 8)
        settle(rigs)
        #expect(rigs[1].plugin.held.isEmpty && !rigs[1].hasOnlyHeld)
        return (rigs, write, barrier)
    }

    @Test("a pause is complete while a barrier waits for another queue's request that waits for space")
    func pause() throws {
        let (rigs, write, barrier) = try withoutSpace()
        let order = try #require(rigs[0].engine.peers.order)
        for rig in rigs { rig.engine.isHeld = true }
        order.setResting(0, true)
        settle(rigs)
        #expect(rigs[1].hasOnlyHeld)
        order.setResting(0, false)
        for rig in rigs { rig.engine.isHeld = false }
        settle(rigs)
        #expect(!rigs[1].hasOnlyHeld && rigs[1].plugin.held.isEmpty)
        rigs[0].engine.tryHeldAgain()
        run(rigs)
        #expect(rigs[0].status(write) == 0 && rigs[1].status(barrier) == 0)
        for rig in rigs { rig.expectIdle() }
    }

    @Test("a barrier does not pass requests that another queue leaves to a successor, and is left too")
    func handOver() throws {
        let (rigs, _, barrier) = try withoutSpace()
        let order = try #require(rigs[0].engine.peers.order)
        for rig in rigs {
            rig.engine.endHolding(.leave)
            rig.engine.isDraining = true
        }
        #expect(rigs[0].leavesOnlyHeld && !rigs[1].leavesOnlyHeld)
        order.leave(0, leavesRequests: true)
        settle([rigs[1]])
        #expect(rigs[1].leavesOnlyHeld && rigs[1].status(barrier) == nil && rigs[1].plugin.held.isEmpty)
    }

    @Test("random traffic: when a barrier begins, nothing is on its way that is not its own", arguments: 0..<20)
    func random(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let rigs = try makeQueues(2 + Int(seed % 3), blockBytes: seed % 2 == 0 ? 512 : 4096)
        var sent = 0
        for _ in 0..<3000 {
            let rig = random.pick(rigs)
            if sent < 400, rig.unanswered < 12, random.onceIn(2) {
                sent += 1
                let sector = random.below(400)
                switch random.below(12) {
                case 0: rig.barrier(sector, random.below(9))
                case 1: rig.flush(sector, random.below(9))
                case 2: rig.discard(UInt64(sector), 1 + UInt64(random.below(40)))
                case 3...5: rig.read(sector, 1 + random.below(16))
                default: rig.write(sector, 1 + random.below(16))
                }
            }
            rig.turn()
            if let durable = rigs.first(where: { $0.plugin.held.contains { $0.flags & Int(XBB_REQ_FUA) != 0 } }) {
                #expect(rigs.allSatisfy { $0 === durable || $0.plugin.held.isEmpty })
                #expect(durable.plugin.held.count == 1)
            }
            let plugin = random.pick(rigs).plugin
            if !plugin.held.isEmpty, random.onceIn(2) { plugin.complete(random.below(plugin.held.count)) }
        }
        run(rigs)
        for rig in rigs { rig.expectIdle() }
        #expect(rigs[0].engine.peers.order?.lockCount == 0)
    }
}
