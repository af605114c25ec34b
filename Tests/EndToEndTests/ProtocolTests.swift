// SPDX-License-Identifier: BSD-2-Clause
// Keys of blkif.h that few frontends or toolstacks write. docs/protocol.md has all of them.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct ProtocolTests {
        /// A frontend in state 4 whose keys are right but for `changes`.
        private func connect(
            _ disk: Disk, _ changes: [String: String?] = [:], _ options: (inout FrontOptions) -> Void = { _ in }
        ) throws -> FrontDevice {
            let device = try disk.device(options)
            try device.findBackend()
            try device.start()
            try device.awaitInitWait()
            try device.makeQueues()
            try HostileFrontend(device).publish(changing: changes)
            try device.setState(.initialised)
            try device.awaitConnected()
            try device.readBackendInfo()
            try device.setState(.connected)
            return device
        }

        @Test func aFrontendThatDoesNotTrustIsServed() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try connect(disk, ["trusted": "0"])
            #expect(try disk.load(device) { $0.count = 200 }.isGood)
            try device.close()
            try lab.finish()
        }

        /// A frontend that could count in larger sectors counts in 512 bytes like every other one.
        @Test func aFrontendOfLargeSectorsCountsInSectorsOf512() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("delay", "size=16M,delay-us=0,block=4096"))
            let device = try connect(disk) { $0.largeSectors = true }
            #expect(device.info.sectorUnit == 512 && device.info.byteCount == 16 << 20)
            #expect(device.info.physicalSectorSize == 4096)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 32767, byteCount: 512, fill: 7) == 0)
                #expect(try queue.read(sector: 32767, byteCount: 512).bytes.allSatisfy { $0 == 7 })
                #expect(try queue.status(.write, sector: 32768, byteCount: 512, fill: 7) == -1)
            }
            try device.close()
            try lab.finish()
        }

        @Test(arguments: [nil, "1", "0"])
        func discardIsOfferedUnlessTheToolstackForbidsIt(_ value: String?) throws {
            let lab = try Lab()
            let disk = try lab.prepare()
            if let value { try disk.write("discard-enable", value) }
            try disk.startWorker()
            let device = try disk.connect()
            let isOffered = value != "0"
            #expect(device.info.discard == isOffered)
            #expect(try (disk.key("discard-granularity") != nil) == isOffered)
            #expect(try (disk.key("discard-alignment") != nil) == isOffered)
            try device.queues[0].withQueue { (queue) throws in
                let status = try queue.raw {
                    RequestEncoder(layout: RingLayout(.native)).discard(
                        id: $0, firstSector: 0, sectorCount: 8, secure: false)
                }
                #expect(status == (isOffered ? 0 : -2))
            }
            try device.close()
            try lab.finish()
        }

        /// A secure discard of a disk that cannot erase is a plain one (blkif.h: "ignored if discard-secure=0").
        @Test func theSecureFlagIsIgnoredWhereItIsNotOffered() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            #expect(!device.info.secureDiscard && device.info.discard)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 9) == 0)
                let status = try queue.raw {
                    RequestEncoder(layout: RingLayout(.native)).discard(
                        id: $0, firstSector: 0, sectorCount: 8, secure: true)
                }
                #expect(status == 0)
                #expect(try queue.read(sector: 0, byteCount: 4096).bytes.allSatisfy { $0 == 0 })
            }
            try device.close()
            try lab.finish()
        }

        @Test(arguments: [(nil, nil, 0), ("cdrom", nil, 1), (nil, "1", 2), ("cdrom", "1", 3)])
        func theMediumIsOfTheKindThatTheToolstackSays(_ type: String?, _ removable: String?, _ info: Int) throws {
            let lab = try Lab()
            let disk = try lab.prepare()
            if let type { try disk.write("device-type", type) }
            if let removable { try disk.write("removable", removable) }
            try disk.startWorker()
            let device = try disk.connect()
            #expect(device.info.info == info)
            try device.close()
            try lab.finish()
        }

        @Test(arguments: ["0", "1"])
        func directIOIsSafeWhateverTheToolstackThinks(_ value: String) throws {
            let lab = try Lab()
            let disk = try lab.prepare()
            try disk.write("direct-io-safe", value)
            try disk.startWorker()
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            try device.close()
            try lab.finish()
        }

        /// A guest that was suspended has other rings and goes from state 4 to 3; what was on the old ones it sends again.
        @Test func aGuestThatResumesBringsNewRings() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            for round in 0..<3 {
                let device = try disk.connect { $0.queues = 1 + round % 2 }
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: UInt64(8 * round), byteCount: 4096, fill: 5) == 0)
                    // On their way when the guest is stopped.
                    for _ in 0..<8 { try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 45056) }
                    try queue.publish()
                }
                // xenbus_reset_state of a resumed frontend.
                try device.setState(.closing)
                try device.setState(.closed)
                try disk.awaitState(6)
                device.dismantle()
                #expect(device.leakedGrants.isEmpty)
            }
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.read(sector: 0, byteCount: 12288).bytes.allSatisfy { $0 == 5 })
            }
            try device.close()
            try lab.finish()
        }
    }
}
