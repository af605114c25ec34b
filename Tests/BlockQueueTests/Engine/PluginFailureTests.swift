// SPDX-License-Identifier: BSD-2-Clause
// What the guest sees when the plugin fails: exactly the requests that touch bad sectors fail.
import Blkif
import Glibc
import PluginAPI
import TestSupport
import Testing

@testable import BlockQueue

@Suite("Plugin failures")
struct PluginFailureTests {
    /// Sizes in sectors of the requests of one reqlist.
    static let shapes: [[Int]] = [
        [8, 8, 8, 8], [1, 1, 1], [88, 1, 88], [1, 88, 2, 88, 3], [7, 9, 5, 11, 13], [88, 88, 88, 88, 88, 88, 88, 88],
    ]

    private static func touched(_ sent: Sent, _ bad: Set<Int>) -> Bool {
        (sent.sector..<(sent.sector + sent.count)).contains { bad.contains($0) }
    }

    @Test(
        "of a reqlist of reads exactly those that touch a bad sector fail, the others get their data", arguments: shapes
    )
    func reads(_ shape: [Int]) throws {
        let total = shape.reduce(0, +)
        for bad in [[], [0], [total - 1], [total / 2], [shape[0]], [shape[0] - 1, total - 1], [0, total - 1]] {
            let rig = try EngineRig()
            rig.disk.badSectors = Set(bad.map { $0 + 50 })
            var sector = 50
            let reads = shape.map { count in
                defer { sector += count }
                return rig.read(sector, count, skip: count > 80 ? 0 : sector % 8)
            }
            rig.run()
            for read in reads {
                let mustFail = Self.touched(read, rig.disk.badSectors)
                #expect(rig.status(read) == (mustFail ? -1 : 0))
                if !mustFail { #expect(rig.hasDiskData(read)) }
            }
            #expect(rig.counter(.reqlists_split) == (bad.isEmpty ? 0 : 1))
            rig.expectIdle()
        }
    }

    @Test(
        "of a reqlist of writes exactly those that touch a bad sector fail, the others are on the disk",
        arguments: shapes)
    func writes(_ shape: [Int]) throws {
        let total = shape.reduce(0, +)
        for bad in [[], [0], [total - 1], [total / 2], [shape[0]], [shape[0] - 1, total - 1], [0, total - 1]] {
            let rig = try EngineRig()
            rig.disk.badSectors = Set(bad.map { $0 + 50 })
            var sector = 50
            let writes = shape.map { count in
                defer { sector += count }
                return rig.write(sector, count, skip: count > 80 ? 0 : sector % 8)
            }
            rig.run()
            for write in writes {
                let mustFail = Self.touched(write, rig.disk.badSectors)
                #expect(rig.status(write) == (mustFail ? -1 : 0))
                if !mustFail { #expect(rig.isOnDisk(write)) }
            }
            #expect(rig.disk.tag(49) == FakeDisk.firstTag(49))
            #expect(rig.disk.tag(50 + total) == FakeDisk.firstTag(50 + total))
            rig.expectIdle()
        }
    }

    @Test("a reqlist of reads of which none can be read is answered, with no other request to help it along")
    func allReadsFail() throws {
        let rig = try EngineRig()
        rig.disk.badSectors = [3, 11, 19]
        let reads = [rig.read(0, 8), rig.read(8, 8), rig.read(16, 8)]
        rig.run()
        #expect(rig.statuses(reads) == [-1, -1, -1])
        #expect(rig.guest.copies == 0)
        rig.expectIdle()
    }

    @Test("a reqlist of writes of which none can be written is answered")
    func allWritesFail() throws {
        let rig = try EngineRig()
        rig.disk.badSectors = [3, 11, 19]
        let writes = [rig.write(0, 8), rig.write(8, 8), rig.write(16, 8)]
        rig.run()
        #expect(rig.statuses(writes) == [-1, -1, -1])
        rig.expectIdle()
    }

    @Test("a reqlist that fails once is done again and succeeds")
    func transientFailure() throws {
        for operation in [BlockOperation.read, .write] {
            let rig = try EngineRig()
            let all = (0..<4).map { rig.send(operation, $0 * 24, rig.segments(24)) }
            rig.settle()
            #expect(rig.plugin.held.count == 1)
            rig.plugin.complete(0, -ENOSPC)
            rig.run()
            #expect(rig.statuses(all) == [0, 0, 0, 0])
            for sent in all {
                #expect(operation == .read ? rig.hasDiskData(sent) : rig.isOnDisk(sent))
            }
            #expect(rig.counter(.plugin_errors) == 1)
            #expect(rig.counter(.plugin_requests) == 5)
            #expect(rig.counter(.reqs_completed_with_error) == 0)
            rig.expectIdle()
        }
    }

    @Test("a write that failed after it reached the disk in part leaves its neighbours alone")
    func partialWrites() throws {
        let rig = try EngineRig()
        rig.disk.badSectors = [30]
        rig.plugin.sectorsOfFailedWrite = 5
        let writes = [rig.write(0, 24), rig.write(24, 24), rig.write(48, 24)]
        rig.run()
        #expect(rig.statuses(writes) == [0, -1, 0])
        #expect(rig.isOnDisk(writes[0]))
        #expect(rig.isOnDisk(writes[2]))
        #expect(rig.disk.tags(24, 5) == Array(writes[1].tags[..<5]))
        #expect(rig.isUntouched(29..<48))
        rig.expectIdle()
    }

    @Test("one failed part of a request that was cut by max_transfer fails that request alone", arguments: [0, 5, 10])
    func oneOfManyParts(_ part: Int) throws {
        let rig = try EngineRig { $0.info.max_transfer = 4096 }
        rig.disk.badSectors = [part * 8 + 3]
        let bad = rig.read(0, 88)
        let good = rig.read(1000, 88)
        let write = rig.write(0, 88)
        rig.run()
        #expect(rig.statuses([bad, good, write]) == [-1, 0, -1])
        #expect(rig.hasDiskData(good))
        rig.expectIdle()
    }

    @Test("a single request gets not-supported where the plugin says EOPNOTSUPP, and error for all else")
    func statuses() throws {
        let rig = try EngineRig()
        for (status, expected) in [(-EOPNOTSUPP, Int16(-2)), (-EIO, -1), (-ENOSPC, -1), (Int32.min, -1)] {
            let all = [rig.read(0, 8), rig.write(8, 8), rig.flush(), rig.discard(16, 8), rig.barrier(24, 8)]
            rig.run(completing: status)
            #expect(rig.statuses(all) == Array(repeating: expected, count: 5))
        }
        rig.expectIdle()
    }

    @Test("a status above zero is no success")
    func positiveStatus() throws {
        let rig = try EngineRig()
        let read = rig.read(0, 8)
        rig.run(completing: 8)
        #expect(rig.status(read) == -1)
        rig.expectIdle()
    }

    @Test("what a failed read left in the memory does not reach the guest")
    func failedReadShowsNothing() throws {
        let rig = try EngineRig()
        let before = rig.read(0, 8)
        rig.run()
        rig.disk.badSectors = [4]
        let read = rig.read(0, 8)
        let untouched = rig.guestTags(read)
        rig.run()
        #expect(rig.statuses([before, read]) == [0, -1])
        #expect(rig.guestTags(read) == untouched)
        rig.expectIdle()
    }

    @Test("completions in any order, from another thread, reach the right requests", arguments: [1, 2, 3])
    func otherThread(_ seed: UInt64) throws {
        var random = SplitMix64(seed: seed)
        let rig = try EngineRig()
        let worker = Worker()
        var sent: [Sent] = []
        for round in 0..<50 {
            for number in 0..<8 {
                sent.append(number % 2 == 0 ? rig.read(number * 100, 16) : rig.write(2000 + round * 40 + number, 1))
            }
            rig.turn()
            while !rig.plugin.held.isEmpty {
                let position = random.below(rig.plugin.held.count)
                rig.plugin.complete(position, 0, on: random.onceIn(2) ? worker : nil)
                if random.onceIn(3) { rig.turn() }
            }
            worker.wait()
            rig.run()
            #expect(rig.statuses(sent).allSatisfy { $0 == 0 })
            for one in sent {
                #expect(one.operation == 0 ? rig.hasDiskData(one) : rig.isOnDisk(one))
                rig.givePagesBack(one)
            }
            sent = []
        }
        rig.expectIdle()
    }
}
