// SPDX-License-Identifier: BSD-2-Clause
// Disks whose blocks are larger than a sector: what covers only a part of a block.
import Blkif
import Glibc
import PluginAPI
import Testing

@testable import BlockQueue

@Suite("Blocks of 4096 bytes")
struct LargeBlockTests {
    private func rig(_ change: (inout EngineRig.Setup) -> Void = { _ in }) throws -> EngineRig {
        try EngineRig {
            $0.info.logical_block = 4096
            change(&$0)
        }
    }

    @Test("unaligned reads of every place and length get their own sectors", arguments: 0..<8)
    func reads(_ first: Int) throws {
        let rig = try rig()
        for count in [1, 2, 7, 8, 9, 15, 16, 17, 81] {
            let read = rig.read(40 + first, count, skip: count > 80 ? 0 : (first * 3) % 8)
            rig.run()
            #expect(rig.status(read) == 0)
            #expect(rig.hasDiskData(read))
            rig.givePagesBack(read)
        }
        rig.expectIdle()
    }

    @Test("unaligned writes of every place and length change their own sectors and no other", arguments: 0..<8)
    func writes(_ first: Int) throws {
        let rig = try rig()
        for count in [1, 2, 7, 8, 9, 15, 16, 17, 81] {
            let before = rig.disk.tags(0, 200)
            let write = rig.write(40 + first, count, skip: count > 80 ? 0 : (first * 5) % 8)
            rig.run()
            #expect(rig.status(write) == 0)
            #expect(rig.isOnDisk(write))
            for sector in 0..<200 where sector < 40 + first || sector >= 40 + first + count {
                #expect(rig.disk.tag(sector) == before[sector])
            }
            rig.givePagesBack(write)
        }
        rig.expectIdle()
    }

    @Test("two writes to halves of one block, sent together but not adjacent, keep each other's data")
    func halves() throws {
        let rig = try rig()
        let writes = [rig.write(44, 4), rig.write(40, 4), rig.write(50, 1), rig.write(49, 1)]
        rig.run()
        #expect(rig.statuses(writes) == [0, 0, 0, 0])
        for write in writes { #expect(rig.isOnDisk(write)) }
        #expect(rig.isUntouched(0..<40) && rig.isUntouched(51..<80))
        rig.expectIdle()
    }

    @Test("a write to a part of a block waits for those in flight, and those behind it wait for it")
    func alone() throws {
        let rig = try rig()
        let whole = rig.write(40, 8)
        let part = rig.write(42, 2)
        let behind = rig.write(44, 4)
        let read = rig.read(40, 8)
        rig.settle()
        #expect(rig.plugin.held.map(\.op) == [Int(XBB_OP_WRITE)])
        rig.plugin.complete(0)
        rig.settle()
        #expect(rig.plugin.held.map(\.op) == [Int(XBB_OP_READ)])
        rig.run()
        #expect(rig.statuses([whole, part, behind, read]) == [0, 0, 0, 0])
        #expect(rig.disk.tags(40, 8) == Array(whole.tags[..<2]) + part.tags + behind.tags)
        #expect(rig.hasDiskData(read))
        rig.expectIdle()
    }

    @Test("adjacent writes that fill whole blocks together are written together, and read nothing")
    func joined() throws {
        let rig = try rig()
        let writes = [rig.write(40, 3), rig.write(43, 10), rig.write(53, 3)]
        rig.run()
        #expect(rig.plugin.log.map(\.op) == [Int(XBB_OP_WRITE)])
        #expect(rig.statuses(writes) == [0, 0, 0])
        for write in writes { #expect(rig.isOnDisk(write)) }
        rig.expectIdle()
    }

    @Test("only the blocks at the two ends are read before a long unaligned write", arguments: [0, 3], [0, 5])
    func onlyTheEnds(_ head: Int, _ tail: Int) throws {
        let rig = try rig()
        // In the middle stands a block that cannot be read; a write does not need to.
        var number = 0
        let write = rig.write(40 + head, 72 - head - tail)
        rig.settle()
        while let request = rig.plugin.held.first {
            if request.op == Int(XBB_OP_READ) {
                number += request.sectorCount
                #expect(request.sector == 40 || request.sector == 104)
                #expect(request.sectorCount == 8)
            }
            rig.plugin.complete(0)
            rig.settle()
        }
        #expect(number == (head > 0 ? 8 : 0) + (tail > 0 ? 8 : 0))
        #expect(rig.status(write) == 0)
        #expect(rig.isOnDisk(write))
        #expect(rig.isUntouched(0..<(40 + head)) && rig.isUntouched((112 - tail)..<200))
        rig.expectIdle()
    }

    @Test("a write to a part of a block that cannot be read fails, and its block is not written")
    func unreadable() throws {
        let rig = try rig()
        rig.disk.badSectors = [47]
        let part = rig.write(41, 2)
        rig.run()
        #expect(rig.status(part) == -1)
        rig.disk.badSectors = []
        #expect(rig.isUntouched(0..<100))
        rig.expectIdle()
    }

    @Test("barriers and flushes with data of a part of a block are filled up too")
    func barriers() throws {
        let rig = try rig()
        let all = [rig.barrier(41, 2), rig.flush(51, 30), rig.barrier(48, 2)]
        rig.run()
        #expect(rig.statuses(all) == [0, 0, 0])
        for write in all { #expect(rig.isOnDisk(write)) }
        #expect(rig.isUntouched(0..<41) && rig.isUntouched(43..<48) && rig.isUntouched(81..<200))
        #expect(!rig.disk.isDirty(41))
        rig.expectIdle()
    }

    /// Sizes in sectors of one reqlist; few of them fill blocks.
    static let shapes: [(Int, [Int])] = [
        (0, [4, 4, 8]), (3, [1, 1, 1, 1, 1]), (0, [1, 2, 3, 4, 5, 6, 7, 8, 9]), (5, [11, 13, 88, 2, 40]),
        (2, [20, 20, 20, 20]), (7, [1, 8, 8, 8, 1]), (0, [3, 88, 88, 13]),
    ]

    private func touchesBadBlock(_ sent: Sent, _ bad: Set<Int>) -> Bool {
        let first = sent.sector / 8
        let last = (sent.sector + sent.count - 1) / 8
        return bad.contains { (first...last).contains($0 / 8) }
    }

    @Test(
        "of joined requests exactly those fail whose blocks are bad", arguments: shapes, [BlockOperation.read, .write])
    func badBlocks(_ shape: (Int, [Int]), _ operation: BlockOperation) throws {
        let total = shape.1.reduce(0, +)
        for bad in stride(from: 0, to: total, by: 3) {
            let rig = try rig()
            rig.disk.badSectors = [40 + shape.0 + bad]
            var sector = 40 + shape.0
            let all = shape.1.map { count in
                defer { sector += count }
                return rig.send(operation, sector, rig.segments(count))
            }
            rig.run()
            for sent in all {
                let mustFail = touchesBadBlock(sent, rig.disk.badSectors)
                #expect(
                    rig.status(sent) == (mustFail ? -1 : 0),
                    "bad sector \(rig.disk.badSectors), \(sent.sector)+\(sent.count)")
                if !mustFail { #expect(operation == .read ? rig.hasDiskData(sent) : rig.isOnDisk(sent)) }
            }
            #expect(rig.isUntouched(0..<(40 + shape.0)) && rig.isUntouched((40 + shape.0 + total)..<500))
            rig.expectIdle()
        }
    }

    @Test("of joined requests exactly that fails whose grant is bad", arguments: shapes, [BlockOperation.read, .write])
    func badGrants(_ shape: (Int, [Int]), _ operation: BlockOperation) throws {
        for culprit in shape.1.indices {
            let rig = try rig()
            var sector = 40 + shape.0
            let all = shape.1.map { count in
                defer { sector += count }
                return rig.send(operation, sector, rig.segments(count))
            }
            rig.guest.revoked = [all[culprit].segments[all[culprit].segments.count / 2].reference]
            rig.run()
            for (number, sent) in all.enumerated() {
                #expect(rig.status(sent) == (number == culprit ? -1 : 0), "grant of \(culprit), \(number)")
                if number != culprit {
                    #expect(operation == .read ? rig.hasDiskData(sent) : rig.isOnDisk(sent))
                } else if operation == .write {
                    #expect(rig.isUntouched(sent.sector..<(sent.sector + sent.count)))
                }
            }
            rig.expectIdle()
        }
    }

    @Test("a read that failed in a block does not spoil what its neighbour read of the same block")
    func neighbourInTheSameBlock() throws {
        let rig = try rig()
        let reads = [rig.read(40, 4), rig.read(44, 4)]
        rig.settle()
        rig.plugin.complete(0, -EIO)
        rig.settle()
        // One by one: the first attempt succeeds, the second fails and leaves junk behind.
        rig.plugin.complete(0)
        rig.settle()
        rig.plugin.complete(0, -EIO)
        rig.run()
        #expect(rig.statuses(reads).sorted { ($0 ?? 0) < ($1 ?? 0) } == [-1, 0])
        for read in reads where rig.status(read) == 0 { #expect(rig.hasDiskData(read)) }
        rig.expectIdle()
    }

    @Test(
        "where buffers need more alignment than sectors have, requests are made of units that have it",
        arguments: [1024, 4096])
    func memoryAlignment(_ alignment: UInt32) throws {
        let rig = try EngineRig { $0.info.mem_align = alignment }
        let all = [rig.read(41, 3), rig.write(51, 1), rig.read(101, 88), rig.write(301, 88), rig.discard(501, 20)]
        rig.run()
        #expect(rig.statuses(all) == [0, 0, 0, 0, 0])
        #expect(rig.hasDiskData(all[0]) && rig.hasDiskData(all[2]))
        #expect(rig.isOnDisk(all[1]) && rig.isOnDisk(all[3]))
        #expect(rig.isUntouched(52..<301))
        rig.expectIdle()
    }
}
