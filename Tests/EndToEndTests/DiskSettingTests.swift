// SPDX-License-Identifier: BSD-2-Clause
// What the node of one disk says of queues, rings, requests and grants, over what all workers are told.
import Blkfront
import Foundation
import Testing

extension EndToEnd {
    @Suite struct DiskSettingTests {
        /// What the worker is told, which the node's own settings go over.
        private static let usual = [
            "--max-queues", "4", "--max-ring-page-order", "4", "--max-indirect-segments", "256", "--persistent-grants",
            "off",
        ]

        private func device(_ disk: Disk) throws -> FrontDevice {
            try disk.connect {
                $0.queues = 4
                $0.ringPages = 32
                $0.indirectSegments = 512
                $0.offersPersistentGrants = true
                $0.requestsPerQueue = 32
            }
        }

        /// As `xbbctl attach` writes them, and as libxl passes the target of block-xbb on before its script has run.
        @Test(arguments: [
            (
                "xbb-options",
                "max-queues=2,max_ring_page_order=1,max-indirect-segments=64,persistent-grants=on,memory-mib=4"
            ),
            (
                "params",
                "raw,max-queues=2,max-ring-page-order=1,max-indirect-segments=64,persistent-grants=on:/disk.img"
            ),
        ])
        func aDiskHasWhatItsOwnNodeSays(key: String, value: String) throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.prepare(arguments: Self.usual)
            try disk.write(key, value)
            try disk.startWorker()
            let device = try device(disk)
            #expect(device.queues.count == 2 && device.ringPages == 2 && device.bufferSize == 64 * 4096)
            #expect(try disk.key("max-ring-pages") == "2" && device.info.persistent)
            let report = try disk.load(device) { $0.maxBlockSize = 64 * 4096 }
            #expect(report.isGood, "\(report.text)")
            #expect(try disk.worker.total("indirect_requests") > 0 && disk.worker.total("mapped_copies") > 0)
            try device.close()
            try lab.finish()
        }

        @Test func anotherDiskHasWhatAllHave() throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.attach(arguments: Self.usual)
            let device = try device(disk)
            #expect(device.queues.count == 4 && device.ringPages == 16 && device.info.maxIndirectSegments == 256)
            #expect(!device.info.persistent)
            try device.close()
            try lab.finish()
        }

        /// A plugin gets none of them as an option, and a value that is none is the reason that the operator finds.
        @Test(arguments: ["max-queues=0", "max-queues=65", "persistent-grants=maybe", "max-indirect-segments=4097"])
        func aValueThatIsNoneIsNamedAndNobodyIsServed(option: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, Storage(options: option), arguments: Self.usual)
            try disk.awaitError(option.replacingOccurrences(of: "=", with: " '"))
            #expect(try disk.key("hotplug-status") == "error")
            try lab.finish()
        }

        /// A guest that has read an offer may go by it after the worker and the node have changed.
        @Test func anOfferThatWasMadeIsKeptWhenTheNodeSaysLess() throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.prepare(arguments: Self.usual + ["--journal", "\(lab.directory)/journal"])
            try disk.write("xbb-options", "max-queues=3,max-indirect-segments=128,persistent-grants=on")
            try disk.startWorker()
            let device = try device(disk)
            #expect(try disk.load(device) { $0.maxBlockSize = 512 << 10 }.isGood)
            disk.worker.kill()
            try disk.write("xbb-options", "max-queues=1,max-indirect-segments=0,persistent-grants=off")
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            let report = try disk.load(device) { $0.maxBlockSize = 512 << 10 }
            #expect(report.isGood && device.queues.count == 3, "\(report.text)")
            try device.close()
            let again = try self.device(disk)
            #expect(again.info.maxIndirectSegments == 0 && !again.info.persistent)
            try again.close()
            try lab.finish()
        }
    }
}
