// SPDX-License-Identifier: BSD-2-Clause
// What a flush on one queue means for the others of the disk.
import Testing

@testable import BlockQueue

@Suite("Flush across queues")
struct FlushAcrossQueuesTests {
    @Test("a flush covers what was answered on another queue before it was sent")
    func covers() throws {
        let rigs = try makeQueues(2)
        rigs[0].write(0, 8)
        run(rigs)
        #expect(rigs[0].disk.isDirty(0))
        let flush = rigs[1].flush()
        run(rigs)
        #expect(rigs[1].status(flush) == 0)
        #expect(!rigs[0].disk.isDirty(0))
        for rig in rigs { rig.expectIdle() }
    }

    @Test("a flush waits for no other queue, and none for it")
    func waitsForNobody() throws {
        let rigs = try makeQueues(2)
        rigs[0].write(0, 8)
        settle(rigs)
        let flush = rigs[1].flush()
        settle(rigs)
        rigs[1].plugin.completeAll()
        settle(rigs)
        #expect(rigs[1].status(flush) == 0 && rigs[0].unanswered == 1)
        run(rigs)
        for rig in rigs { rig.expectIdle() }
    }
}
