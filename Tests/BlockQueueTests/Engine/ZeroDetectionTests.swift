// SPDX-License-Identifier: BSD-2-Clause
// Writes of nothing but zeroes: `detect-zeroes`.
import Blkif
import Glibc
import PluginAPI
import Testing

@testable import BlockQueue

private let writeOp = Int(XBB_OP_WRITE)
private let zeroesOp = Int(XBB_OP_WRITE_ZEROES)

@Suite("Writes of zeroes")
struct ZeroDetectionTests {
    private func rig(
        _ detection: ZeroDetection, _ change: (inout EngineRig.Setup) -> Void = { _ in }
    ) throws -> EngineRig {
        let rig = try EngineRig(change)
        rig.engine.tuning.zeroDetection = detection
        rig.disk.write(0, 32768, [UInt8](repeating: 0xee, count: 32768), durable: true)
        rig.writesZeroes = true
        return rig
    }

    private func tags(_ rig: EngineRig, _ count: Int) -> Set<UInt64> {
        Set((0..<count).map { rig.disk.tag($0) })
    }

    @Test(
        "they reach the plugin without data, and may be deallocated where that is wished",
        arguments: [(ZeroDetection.off, writeOp, 0), (.on, zeroesOp, 0), (.unmap, zeroesOp, Int(XBB_REQ_MAY_UNMAP))])
    func operation(_ detection: ZeroDetection, _ operation: Int, _ flags: Int) throws {
        let rig = try rig(detection)
        let write = rig.write(0, 64)
        rig.run()
        #expect(rig.status(write) == 0 && tags(rig, 64) == [0])
        #expect(rig.plugin.log.allSatisfy { $0.op == operation && $0.flags == flags })
        #expect(rig.counter(.zero_writes) == (detection == .off ? 0 : UInt64(rig.plugin.log.count)))
        rig.expectIdle()
    }

    @Test("one byte that is none makes it a write", arguments: [0, 1, 7, 8, 4095, 4096, 8191])
    func oneByte(_ place: Int) throws {
        let rig = try rig(.on)
        let write = rig.write(0, 16)
        rig.guest.sector(write.segments[place / 4096].reference, 0).storeBytes(
            of: 1, toByteOffset: place % 4096, as: UInt8.self)
        rig.run()
        #expect(rig.status(write) == 0 && rig.plugin.log.map(\.op) == [writeOp])
        #expect(rig.disk.tag(place / 512) != 0)
    }

    @Test("a list of several requests goes as one; the guest's other data do not")
    func lists() throws {
        let rig = try rig(.on)
        let zeroes = [rig.write(0, 8), rig.write(8, 8)]
        rig.run()
        #expect(rig.plugin.log.map(\.op) == [zeroesOp] && rig.statuses(zeroes) == [0, 0])
        rig.writesZeroes = false
        let data = rig.write(0, 8)
        rig.run()
        #expect(rig.status(data) == 0 && rig.plugin.log.map(\.op) == [zeroesOp, writeOp])
    }

    @Test("a plugin that cannot, or not so much at once, gets the data")
    func limits() throws {
        for change in [
            { (setup: inout EngineRig.Setup) in setup.info.caps &= ~UInt64(XBB_CAP_WRITE_ZEROES) },
            { (setup: inout EngineRig.Setup) in setup.info.max_write_zeroes = 4096 },
        ] {
            let rig = try rig(.unmap, change)
            let write = rig.write(0, 16)
            rig.run()
            #expect(rig.status(write) == 0 && tags(rig, 16) == [0])
            #expect(rig.plugin.log.map(\.op) == [writeOp])
        }
    }

    @Test("barriers and reads are what they were")
    func others() throws {
        let rig = try rig(.on)
        let barrier = rig.barrier(0, 8)
        rig.run()
        #expect(rig.status(barrier) == 0 && tags(rig, 8) == [0] && !rig.plugin.log.contains { $0.op == zeroesOp })
        let read = rig.read(0, 8)
        rig.run()
        #expect(rig.status(read) == 0 && rig.plugin.log.last?.op == Int(XBB_OP_READ))
    }

    @Test(
        "one that fails is written as data: a guest sees no error of an operation that it did not ask for",
        arguments: [EOPNOTSUPP, EIO, EINVAL, EPERM, ENOSPC], [1, 2])
    func failures(_ code: Int32, _ count: Int) throws {
        let rig = try rig(.on)
        rig.engine.tuning.holdsWithoutSpace = true
        let writes = (0..<count).map { rig.write($0 * 8, 8) }
        rig.turn()
        rig.plugin.completeAll(-code)
        rig.run()
        #expect(rig.statuses(writes) == writes.map { _ in 0 } && tags(rig, count * 8) == [0])
        #expect(rig.plugin.log.map(\.op) == [zeroesOp, writeOp])
        #expect(rig.counter(.held_requests) == 0)
        rig.expectIdle()
    }

    @Test("one whose data cannot be written either fails request by request, as any other write does")
    func failuresOfTheData() throws {
        let rig = try rig(.on)
        let writes = [rig.write(0, 8), rig.write(8, 8)]
        rig.turn()
        rig.plugin.completeAll(-EIO)
        rig.turn()
        rig.plugin.completeAll(-EIO)
        rig.turn()
        rig.plugin.completeAll(-EIO)
        rig.run()
        #expect(rig.statuses(writes) == [-1, 0] && tags(rig, 8) != [0])
        #expect(rig.plugin.log.map(\.op) == [zeroesOp, writeOp, writeOp, writeOp])
        rig.expectIdle()
    }

    @Test("with no space for their data either they wait as other writes do")
    func space() throws {
        let rig = try rig(.on)
        rig.engine.tuning.holdsWithoutSpace = true
        let write = rig.write(0, 8)
        rig.turn()
        rig.plugin.completeAll(-ENOSPC)
        rig.turn()
        rig.plugin.completeAll(-ENOSPC)
        rig.settle()
        #expect(rig.status(write) == nil)
        rig.engine.now += SpaceHold.pause
        rig.run()
        #expect(rig.status(write) == 0 && tags(rig, 8) == [0])
        #expect(rig.plugin.log.map(\.op) == [zeroesOp, writeOp, writeOp])
    }
}
