// SPDX-License-Identifier: BSD-2-Clause
// What happens when a page cannot be copied: only its request fails.
import Blkif
import CXen
import PluginAPI
import Testing

@testable import BlockQueue

@Suite("Grant copies that fail")
struct GrantFailureTests {
    /// Sizes of the requests of one reqlist: 12 requests, 22 segments.
    private static let shape = [8, 8, 24, 1, 7, 8, 40, 8, 16, 3, 13, 16]

    @Test(
        "the k-th copy of every k fails its request and no other, for reads and writes",
        arguments: [BlockOperation.read, .write], [512, 4096])
    func everyCopy(_ operation: BlockOperation, _ block: Int) throws {
        // Whole blocks, so that this is about grants alone.
        let shape = block == 512 ? Self.shape : Self.shape.map { ($0 + 7) / 8 * 8 }
        let total = shape.reduce(0) { $0 + ($1 + 7) / 8 }
        for failing in 0..<total {
            let rig = try EngineRig { $0.info.logical_block = UInt32(block) }
            var number = 0
            var culprit: UInt32 = 0
            rig.guest.failCopy = { reference, toGuest in
                #expect(toGuest == (operation == .read))
                defer { number += 1 }
                if number == failing { culprit = reference }
                return number == failing ? Int16(GNTST_bad_gntref) : nil
            }
            var sector = 80
            let all = shape.map { count in
                defer { sector += count }
                return rig.send(operation, sector, rig.segments(count))
            }
            let before = rig.disk.tags(80, shape.reduce(0, +))
            rig.run()
            for sent in all {
                let mustFail = sent.segments.contains { $0.reference == culprit }
                #expect(rig.status(sent) == (mustFail ? -1 : 0))
                if operation == .read {
                    if !mustFail { #expect(rig.hasDiskData(sent)) }
                } else if mustFail {
                    #expect(rig.diskTags(sent) == Array(before[(sent.sector - 80)...].prefix(sent.count)))
                } else {
                    #expect(rig.isOnDisk(sent))
                }
            }
            #expect(rig.counter(.grant_errors) == 1)
            #expect(rig.counter(.reqs_completed_with_error) == 1)
            rig.expectIdle()
        }
    }

    @Test("reads whose grants are all bad fail, the copies of the others are done in the same call")
    func revokedReads() throws {
        let rig = try EngineRig()
        let bad = rig.read(0, 88)
        let good = rig.read(88, 8)
        rig.guest.revoked = Set(bad.segments.map(\.reference))
        rig.run()
        #expect(rig.statuses([bad, good]) == [-1, 0])
        #expect(rig.hasDiskData(good))
        #expect(rig.counter(.grant_errors) == 11)
        #expect(rig.counter(.grant_copy_calls) == 1)
        rig.expectIdle()
    }

    @Test("a write whose grants are all bad never reaches the plugin")
    func revokedWrites() throws {
        let rig = try EngineRig()
        let all = [rig.write(0, 8), rig.barrier(8, 8), rig.flush(16, 8)]
        rig.guest.revoked = Set(all.flatMap { $0.segments.map(\.reference) })
        rig.run()
        #expect(rig.statuses(all) == [-1, -1, -1])
        #expect(rig.plugin.log.allSatisfy { $0.op == Int(XBB_OP_FLUSH) })
        #expect(rig.isUntouched(0..<100))
        rig.expectIdle()
    }

    @Test("a call of the grant table that fails as a whole fails what was in it, and the next call works")
    func wholeCall() throws {
        for operation in [BlockOperation.read, .write] {
            let rig = try EngineRig()
            let all = [rig.send(operation, 0, rig.segments(8)), rig.send(operation, 100, rig.segments(8))]
            rig.failCopyCall = true
            rig.run()
            #expect(rig.statuses(all) == [-1, -1])
            let next = rig.send(operation, 0, rig.segments(8))
            rig.run()
            #expect(rig.status(next) == 0)
            rig.expectIdle()
        }
    }

    @Test("bad grants and bad sectors in one reqlist fail their own requests")
    func both() throws {
        let rig = try EngineRig()
        rig.disk.badSectors = [20]
        let writes = (0..<6).map { rig.write($0 * 8, 8) }
        rig.guest.revoked = [writes[4].segments[0].reference]
        rig.run()
        #expect(rig.statuses(writes) == [0, 0, -1, 0, -1, 0])
        for number in [0, 1, 3, 5] { #expect(rig.isOnDisk(writes[number])) }
        #expect(rig.isUntouched(32..<40))
        let reads = (0..<6).map { rig.read($0 * 8, 8) }
        rig.guest.revoked = [reads[3].segments[0].reference]
        rig.run()
        #expect(rig.statuses(reads) == [0, 0, -1, -1, 0, 0])
        for number in [0, 1, 4, 5] { #expect(rig.hasDiskData(reads[number])) }
        rig.expectIdle()
    }

    @Test("copies touch the sectors of their segments and nothing else of the page")
    func onlyTheSegments() throws {
        let rig = try EngineRig()
        let read = rig.send(
            .read, 40,
            [
                BlockSegment(reference: rig.newPage(), firstSector: 3, lastSector: 4),
                BlockSegment(reference: rig.newPage(), firstSector: 7, lastSector: 7),
                BlockSegment(reference: rig.newPage(), firstSector: 0, lastSector: 0),
            ])
        rig.run()
        #expect(rig.hasDiskData(read))
        for segment in read.segments {
            for number in 0..<8 where number < segment.firstSector || number > segment.lastSector {
                #expect(SectorTag.read(rig.guest.sector(segment.reference, number)) == 0)
            }
        }
        rig.expectIdle()
    }
}
