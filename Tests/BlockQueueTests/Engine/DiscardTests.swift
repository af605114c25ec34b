// SPDX-License-Identifier: BSD-2-Clause
// What becomes of discards.
import Blkif
import PluginAPI
import Testing

@testable import BlockQueue

@Suite("Discard")
struct DiscardTests {
    @Test("a discard reaches the plugin with its range and without data")
    func plain() throws {
        let rig = try EngineRig()
        let discard = rig.discard(100, 50)
        rig.run()
        #expect(rig.status(discard) == 0)
        #expect(rig.plugin.log.map(\.sector) == [100])
        #expect(rig.plugin.log.map(\.sectorCount) == [50])
        #expect(rig.disk.tags(100, 50).allSatisfy { $0 == 0 })
        #expect(rig.isUntouched(0..<100) && rig.isUntouched(150..<200))
        #expect(rig.counter(.discard_requests) == 1)
        #expect(rig.counter(.discard_sectors) == 50)
        #expect(rig.guest.copies == 0)
        rig.expectIdle()
    }

    @Test("discards beyond the disk, of nothing, or that wrap around are refused")
    func bounds() throws {
        let rig = try EngineRig()
        let end = UInt64(rig.disk.sectorCount)
        let refused = [
            rig.discard(end, 1), rig.discard(end - 1, 2), rig.discard(0, end + 1), rig.discard(0, 0),
            rig.discard(.max, 2), rig.discard(1, .max), rig.discard(1 << 63, 1 << 63), rig.discard(.max, .max),
        ]
        let good = [rig.discard(end - 1, 1), rig.discard(0, end)]
        rig.run()
        #expect(rig.statuses(refused) == Array(repeating: -1, count: 8))
        #expect(rig.statuses(good) == [0, 0])
        #expect(rig.disk.tag(0) == 0)
        rig.expectIdle()
    }

    @Test("a discard larger than max_discard is cut, at whole blocks", arguments: [512, 4096, 5000, 1 << 20])
    func cut(_ limit: UInt64) throws {
        let rig = try EngineRig { $0.info.max_discard = limit }
        let discard = rig.discard(10, 300)
        rig.run()
        #expect(rig.status(discard) == 0)
        #expect(rig.disk.tags(10, 300).allSatisfy { $0 == 0 })
        #expect(rig.isUntouched(0..<10) && rig.isUntouched(310..<400))
        rig.expectIdle()
    }

    @Test(
        "on a disk of 4096-byte blocks a discard leaves alone what fills no block",
        arguments: [
            (0, 8, 0..<8), (1, 7, 0..<0), (1, 15, 8..<16), (7, 10, 8..<16), (4, 4, 0..<0), (3, 22, 8..<24),
        ])
    func wholeBlocks(_ first: UInt64, _ count: UInt64, _ expected: Range<Int>) throws {
        let rig = try EngineRig { $0.info.logical_block = 4096 }
        let discard = rig.discard(first, count)
        rig.run()
        #expect(rig.status(discard) == 0)
        #expect((0..<40).allSatisfy { (rig.disk.tag($0) == 0) == expected.contains($0) })
        #expect(rig.plugin.log.count == (expected.isEmpty ? 0 : 1))
        rig.expectIdle()
    }

    @Test("the secure flag is passed on where the plugin can, and is nothing where it cannot")
    func secure() throws {
        for capable in [true, false] {
            let rig = try EngineRig { if !capable { $0.remove(UInt64(XBB_CAP_DISCARD_SECURE)) } }
            let all = [rig.discard(0, 8, secure: true), rig.discard(8, 8, secure: false)]
            rig.run()
            #expect(rig.statuses(all) == [0, 0])
            #expect(rig.plugin.log.map(\.flags) == [capable ? Int(XBB_REQ_SECURE) : 0, 0])
            rig.expectIdle()
        }
    }

    @Test("a secure discard that cannot erase all of its sectors fails instead of pretending")
    func secureIsNotAdvice() throws {
        let rig = try EngineRig { $0.info.logical_block = 4096 }
        let ragged = [
            rig.discard(1, 15, secure: true), rig.discard(0, 9, secure: true), rig.discard(1, 3, secure: true),
        ]
        let whole = rig.discard(16, 8, secure: true)
        rig.run()
        #expect(rig.statuses(ragged) == [-1, -1, -1])
        #expect(rig.status(whole) == 0)
        #expect(rig.isUntouched(0..<16))
        rig.expectIdle()
    }

    @Test("where the plugin cannot discard it is not supported")
    func notOffered() throws {
        let rig = try EngineRig { $0.remove(UInt64(XBB_CAP_DISCARD)) }
        let discard = rig.discard(0, 8)
        rig.run()
        #expect(rig.status(discard) == -2)
        rig.expectIdle()
    }
}
