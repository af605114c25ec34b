// SPDX-License-Identifier: BSD-2-Clause
// Requests for which the storage has no space: they fail, or they wait, and nothing of them is lost.
import Blkif
import Glibc
import PluginAPI
import Testing

@testable import BlockQueue

@Suite("No space")
struct SpaceTests {
    private func rig(holds: Bool = true, _ change: (inout EngineRig.Setup) -> Void = { _ in }) throws -> EngineRig {
        let rig = try EngineRig(change)
        rig.engine.tuning.holdsWithoutSpace = holds
        return rig
    }

    // The engine cannot be copied, which #expect would do.
    private func held(_ rig: EngineRig) -> Int { rig.engine.heldRequests }
    private func isHolding(_ rig: EngineRig) -> Bool { rig.engine.hold.isActive }
    private func leavesOnlyHeld(_ rig: EngineRig) -> Bool { rig.engine.leavesOnlyHeld }
    private func isAtRest(_ rig: EngineRig) -> Bool { rig.engine.isHeld && rig.engine.hasOnlyHeld }
    private func lastFailure(_ rig: EngineRig) -> (last: StorageFailure, count: UInt64)? { rig.engine.failure }

    private func waitFiveSeconds(_ rig: EngineRig) { rig.engine.now += SpaceHold.pause }

    @Test(
        "without the policy the guest gets the error, and whoever reports it all that is to be told",
        arguments: [
            (ENOSPC, "No space left on device (ENOSPC)"), (EIO, "Input/output error (EIO)"),
        ])
    func reported(_ error: (code: Int32, text: String)) throws {
        let rig = try rig(holds: false)
        let write = rig.write(40, 8)
        rig.turn()
        rig.plugin.completeAll(-error.code)
        rig.settle()
        #expect(rig.status(write) == -1)
        let failure = try #require(lastFailure(rig))
        #expect(failure.last == StorageFailure(operation: .write, code: error.code, firstSector: 40, sectorCount: 8))
        #expect(failure.count == 1)
        #expect(
            rig.statistics.errors == [StorageErrorCount(operation: .write, code: error.code, count: 1)])
        rig.statistics.setLast(failure.last, time: 1_700_000_000)
        #expect(rig.statistics.lastError?.text == "write of 4096 bytes at sector 40: \(error.text)")
        rig.expectIdle()
    }

    @Test("each request of a list that was split is told by its own sector")
    func sectors() throws {
        let rig = try rig(holds: false)
        rig.disk.badSectors = [17]
        _ = [rig.write(0, 8), rig.write(8, 8), rig.write(16, 8)]
        rig.run()
        #expect(lastFailure(rig)?.last.firstSector == 16 && lastFailure(rig)?.last.sectorCount == 8)
        rig.expectIdle()
    }

    @Test("what broke a rule of the protocol is no error of the storage")
    func refusals() throws {
        let rig = try rig()
        let read = rig.read(1 << 20, 8)
        rig.run()
        #expect(rig.status(read) == -1)
        #expect(lastFailure(rig) == nil && rig.statistics.errors.isEmpty && rig.counter(.rejected_requests) == 1)
    }

    @Test("writes wait, reads go on; there is room, and the data are on the disk", arguments: [ENOSPC, EDQUOT])
    func waits(_ code: Int32) throws {
        let rig = try rig()
        let writes = [rig.write(0, 8), rig.write(8, 8), rig.write(100, 8)]
        rig.turn()
        rig.plugin.completeAll(-code)
        rig.settle()
        #expect(rig.statuses(writes) == [nil, nil, nil])
        #expect(held(rig) == 3 && rig.plugin.held.isEmpty)
        let read = rig.read(200, 8)
        rig.run()
        #expect(rig.status(read) == 0)
        // Not all the time.
        #expect(rig.counter(.plugin_errors) == 2)
        for _ in 0..<3 {
            waitFiveSeconds(rig)
            rig.turn()
            #expect(rig.plugin.held.count == 2)
            rig.plugin.completeAll(-code)
            rig.settle()
            #expect(held(rig) == 3)
        }
        // Told once, however often it was tried.
        #expect(lastFailure(rig)?.count == 2)
        waitFiveSeconds(rig)
        rig.run()
        #expect(rig.statuses(writes) == [0, 0, 0])
        for write in writes { #expect(rig.isOnDisk(write)) }
        rig.turn()
        #expect(held(rig) == 0 && !isHolding(rig))
        rig.expectIdle()
    }

    @Test("a flush and a write through the cache are never tried again: they fail")
    func flushes() throws {
        let rig = try rig()
        let flush = rig.flush()
        rig.turn()
        rig.plugin.completeAll(-ENOSPC)
        rig.settle()
        #expect(rig.status(flush) == -1)
        let barrier = rig.barrier(0, 8)
        rig.turn()
        rig.plugin.completeAll()  // the flush before it
        rig.settle()
        #expect(rig.plugin.held.first.map { $0.flags & Int(XBB_REQ_FUA) } == Int(XBB_REQ_FUA))
        rig.plugin.completeAll(-ENOSPC)
        rig.settle()
        #expect(rig.status(barrier) == -1 && held(rig) == 0)
        rig.expectIdle()
    }

    @Test("a barrier waits behind writes that wait, and a flush covers what was answered")
    func order() throws {
        let rig = try rig()
        let write = rig.write(0, 8)
        rig.turn()
        rig.plugin.completeAll(-ENOSPC)
        rig.settle()
        let flush = rig.flush()
        rig.run()
        #expect(rig.status(flush) == 0 && rig.status(write) == nil)
        let barrier = rig.barrier(0, 8)
        rig.run()
        #expect(rig.status(barrier) == nil && rig.plugin.held.isEmpty)
        waitFiveSeconds(rig)
        rig.run()
        #expect(rig.status(write) == 0 && rig.status(barrier) == 0)
        #expect(rig.isOnDisk(barrier), "the barrier's data are the later ones")
        rig.expectIdle()
    }

    @Test("at the end what waits fails at once, or after a last trial", arguments: [HoldEnd.fail, .tryOnce])
    func ends(_ end: HoldEnd) throws {
        for hasRoom in [false, true] {
            let rig = try rig()
            let writes = [rig.write(0, 8), rig.write(8, 8), rig.write(100, 8)]
            rig.turn()
            rig.plugin.completeAll(-ENOSPC)
            rig.settle()
            rig.engine.endHolding(end)
            rig.run(completing: hasRoom ? 0 : -ENOSPC)
            // Those that were joined are tried one by one in either case.
            let alone: Int16 = hasRoom && end == .tryOnce ? 0 : -1
            #expect(rig.statuses(writes) == [hasRoom ? 0 : -1, hasRoom ? 0 : -1, alone])
            // Nothing waits any more.
            let late = rig.write(300, 8)
            rig.run(completing: -ENOSPC)
            #expect(rig.status(late) == -1)
            rig.expectIdle()
        }
    }

    @Test("a successor finds in the journal what waits, and what waits behind it")
    func left() throws {
        let rig = try rig()
        let writes = [rig.write(0, 8), rig.write(100, 8)]
        rig.turn()
        rig.plugin.completeAll(-ENOSPC)
        rig.settle()
        let barrier = rig.barrier(0, 8)
        rig.settle()
        rig.engine.endHolding(.leave)
        rig.engine.isDraining = true
        rig.settle()
        #expect(leavesOnlyHeld(rig))
        waitFiveSeconds(rig)
        rig.turn()
        #expect(rig.plugin.held.isEmpty, "it is the successor's now")
        try rig.succeed(.left)
        rig.run()
        #expect(rig.statuses(writes) == [0, 0] && rig.status(barrier) == 0)
        #expect(rig.isOnDisk(writes[1]) && rig.isOnDisk(barrier))
        // Requests are counted once more where they are done again: the counters are those of two processes.
        rig.audit()
        #expect(rig.problems == [] && rig.unanswered == 0 && rig.isIdle)
    }

    @Test("a queue that takes nothing is at rest with what waits, which is not tried before it takes again")
    func paused() throws {
        let rig = try rig()
        let write = rig.write(0, 8)
        rig.turn()
        rig.engine.isHeld = true
        #expect(!isAtRest(rig))
        rig.plugin.completeAll(-ENOSPC)
        rig.settle()
        #expect(isAtRest(rig) && held(rig) == 1)
        waitFiveSeconds(rig)
        rig.turn()
        #expect(rig.plugin.held.isEmpty && isAtRest(rig))
        rig.engine.isHeld = false
        rig.turn()
        #expect(rig.plugin.held.count == 1 && !isAtRest(rig))
        rig.run()
        #expect(rig.status(write) == 0)
        rig.expectIdle()
    }

    @Test("another error beside the want of space is told at once")
    func mixed() throws {
        let rig = try rig { $0.info.max_transfer = 4096 }
        let write = rig.write(0, 16)
        rig.turn()
        #expect(rig.plugin.held.count == 2)
        rig.plugin.complete(0, -ENOSPC)
        rig.plugin.complete(0, -EIO)
        rig.settle()
        #expect(rig.status(write) == -1 && held(rig) == 0)
        rig.expectIdle()
    }
}
