// SPDX-License-Identifier: BSD-2-Clause
// One disk on several rings: what holds across them, what each may do to the others, and plugins that have fewer queues.
import Blkfront
import CLinux
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct SeveralQueuesTests {
        private func attach(_ lab: Lab, _ storage: Storage, _ arguments: [String] = [], queues: Int = 4) throws -> Disk
        {
            try lab.attach(
                51712, storage,
                arguments: ["--journal", "\(lab.directory)/journal", "--max-queues", "\(queues)"] + arguments)
        }

        /// Overlapping requests on all queues, with flushes and barriers, while the worker is killed; and the image afterwards.
        private func killed(_ storage: Storage, queues: Int, count: Int = 1500, _ arguments: [String] = []) throws {
            let lab = try Lab()
            let image = try lab.image("image", bytes: 16 << 20)
            var storage = storage
            storage.path = image
            let disk = try attach(lab, storage, arguments)
            let device = try disk.connect { $0.queues = queues }
            #expect(device.queues.count == queues && !device.info.barrier)
            var plan = HistoryPlan()
            plan.count = count
            plan.seed = testSeed("SeveralQueuesTests")
            var kills = 0
            var next = clinux_monotonic_ns() + 50_000_000
            var run = try runHistory(plan, on: device, of: disk) {
                guard clinux_monotonic_ns() >= next, disk.worker.isRunning, kills < 8 else { return }
                disk.worker.kill()
                kills += 1
                try disk.startWorker(["--predecessor", "killed:signal 9"])
                next = clinux_monotonic_ns() + 100_000_000
            }
            #expect(run.errors == 0 && run.answered >= plan.count && kills > 0)
            try device.close()
            let file = try #require(FileHandle(forReadingAtPath: image))
            try run.checkImage(Array(try file.read(upToCount: plan.sectors * 512) ?? Data()))
            try lab.finish(mostLog: 1 << 20)
        }

        private static let slow = "size=16M,keep=on,delay-us=800,reorder=on"

        @Test(arguments: [2, 4])
        func aHistoryIsRightWhileWorkersDie(queues: Int) throws {
            try killed(.plugin("delay", Self.slow), queues: queues)
        }

        @Test(arguments: [2, 4])
        func partsOfLargeBlocksAreKeptWhileWorkersDie(queues: Int) throws {
            try killed(.plugin("delay", Self.slow + ",block=4096"), queues: queues, count: 800)
        }

        @Test(arguments: ["queues=1", "queues=3"])
        func aPluginWithFewerQueuesServesAllRings(queues: String) throws {
            try killed(.plugin("delay", Self.slow + "," + queues), queues: 4)
        }

        @Test(arguments: [2, 4], [150, 260])
        func whatWasFlushedOnAnyQueueSurvivesALossOfPower(queues: Int, count: Int) throws {
            let folder = try makeTemporaryDirectory("faulty")
            try FileManager.default.copyItem(
                atPath: "\(buildDirectory)/libfaulty-test-plugin.so", toPath: "\(folder)/xbb-faulty.so")
            chmod("\(folder)/xbb-faulty.so", 0o755)
            let lab = try Lab()
            let image = try lab.image("image", bytes: 1 << 20)
            var storage = Storage(path: image, format: "faulty")
            storage.options = "fault=forgets-unflushed"
            let disk = try attach(lab, storage, ["--plugin-dir", folder])
            let device = try disk.connect { $0.queues = queues }
            #expect(device.queues.count == queues)
            var plan = HistoryPlan()
            plan.count = count
            plan.seed = UInt64(count + queues)
            plan.readsBack = false
            var run = try HistoryRun(device, plan)
            try run.run()
            #expect(run.errors == 0)
            disk.worker.kill()
            let file = try #require(FileHandle(forReadingAtPath: image))
            try run.checkImageAfterPowerLoss(Array(try file.read(upToCount: plan.sectors * 512) ?? Data()))
            lab.stop()
        }

        @Test func anOfferThatWasMadeIsKept() throws {
            let lab = try Lab()
            // Blocks of 4096 bytes and one queue: the disk is known after four were offered.
            let disk = try attach(lab, .plugin("delay", "size=16M,block=4096,queues=1"))
            let device = try disk.connect { $0.queues = 4 }
            #expect(device.queues.count == 4)
            let report = try disk.load(device) {
                $0.flushEvery = 20
            }
            #expect(report.isGood, "\(report.text)")
            #expect(disk.log.has("4 queues, which share 1 of the plugin"), "\(disk.log)")
            try device.close()
            try lab.finish()
        }

        @Test func aSuccessorKeepsTheOfferOfItsPredecessor() throws {
            let lab = try Lab()
            let disk = try lab.attach(arguments: ["--max-queues", "4"])
            try disk.awaitState(2)
            #expect(try disk.key("multi-queue-max-queues") == "4")
            disk.worker.kill()
            try disk.startWorker(["--max-queues", "1"])
            let device = try disk.connect { $0.queues = 4 }
            #expect(device.queues.count == 4)
            #expect(try disk.load(device) { $0.count = 200 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test func asManyQueuesAreOfferedAsThereAreProcessors() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            try disk.awaitState(2)
            let processors = sysconf(Int32(_SC_NPROCESSORS_ONLN))
            #expect(try disk.key("multi-queue-max-queues") == "\(min(max(processors, 1), 4))")
            try lab.finish()
        }

        @Test func theSizeChangesOnAllQueues() throws {
            let lab = try Lab()
            let disk = try attach(lab, Storage())
            let device = try disk.connect { $0.queues = 4 }
            let sectors = UInt64(device.info.byteCount / 512)
            for queue in device.queues {
                try queue.withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: sectors, byteCount: 512, fill: 1) == -1)
                }
            }
            #expect(truncate(disk.path, Int(sectors * 512 + 4096)) == 0)
            try eventually("the new size") { try disk.key("sectors") == "\(sectors + 8)" }
            for queue in device.queues {
                try queue.withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: sectors, byteCount: 4096, fill: 1) == 0)
                }
            }
            try device.close()
            try lab.finish()
        }

        @Test func everyBadKeyOfAQueueIsNamed() throws {
            let lab = try Lab()
            let disk = try attach(lab, Storage())
            let cases: [(changes: [String: String?], key: String)] = [
                (["queue-0/ring-ref": nil], "queue-0/ring-ref"),
                (["queue-3/ring-ref": nil], "queue-3/ring-ref"),
                (["queue-2/event-channel": nil], "queue-2/event-channel"),
                (["queue-1/event-channel": "0"], "queue-1/event-channel"),
                (["queue-1/ring-ref": "x"], "queue-1/ring-ref"),
                (["multi-queue-num-queues": "0"], "multi-queue-num-queues"),
                (["multi-queue-num-queues": "5"], "multi-queue-num-queues"),
                (["ring-page-order": "1"], "queue-0/ring-ref0"),
            ]
            for (changes, key) in cases {
                let device = try disk.device { $0.queues = 4 }
                try device.findBackend()
                try device.start()
                try device.awaitInitWait()
                try device.makeQueues()
                try HostileFrontend(device).publish(changing: changes)
                try device.setState(.initialised)
                try disk.awaitError(key)
                try device.setState(.closing)
                try device.setState(.closed)
                try disk.awaitState(6)
                device.dismantle()
                for name in ["multi-queue-num-queues", "ring-page-order"] {
                    try? HostileFrontend(device).remove(name)
                }
            }
            let device = try disk.connect { $0.queues = 4 }
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            try device.close()
            try lab.finish()
        }

        /// The layout of requests is one key of the whole device: what a queue says of its own is not looked at.
        @Test func aQueueHasNoLayoutOfItsOwn() throws {
            let lab = try Lab()
            let disk = try attach(lab, Storage())
            let device = try disk.device { $0.queues = 2 }
            try device.findBackend()
            try device.start()
            try device.awaitInitWait()
            try device.makeQueues()
            try HostileFrontend(device).publish(
                changing: ["queue-1/protocol": "x86_32-abi", "queue-1/ring-page-order": "3"])
            try device.setState(.initialised)
            try device.awaitConnected()
            try device.readBackendInfo()
            try device.setState(.connected)
            #expect(try disk.load(device) { $0.count = 200 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test func aBrokenRingHarmsNoOtherQueue() throws {
            let lab = try Lab()
            let disk = try attach(lab, Storage())
            let device = try disk.connect { $0.queues = 4 }
            try device.queues[1].withQueue { (queue) throws in
                queue.moveProducer(by: 1_000_000)
                try queue.notify()
            }
            try eventually("a line in the log") { disk.log.contains("req_prod") }
            for index in [0, 2, 3] {
                try device.queues[index].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 1) == 0)
                    #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
                }
            }
            try device.close()
            try lab.finish()
        }

        @Test func aRequestThatNeverEndsIsNamedAndHarmsNoOtherQueue() throws {
            let lab = try Lab()
            let disk = try attach(
                lab, .plugin("delay", "size=16M,delay-us=100,stuck-at=0,hurries=off"), ["--stall-time", "1"])
            let device = try disk.connect { $0.queues = 4 }
            try device.queues[1].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096)
                try queue.publish()
            }
            try eventually("the request is named") { try disk.key("xbb-stall") != nil }
            #expect(try disk.key("xbb-stall")?.has("queue 1") == true)
            for index in [0, 2, 3] {
                try device.queues[index].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 64, byteCount: 4096, fill: 1) == 0)
                    #expect(try queue.status(.flush, sector: 0, byteCount: 0) == 0)
                }
            }
            try disk.requestDetach()
            try lab.toolstack.remove(disk.front, in: .none)
            #expect(try disk.worker.awaitExit() == .exited(1))
            device.dismantle()
            lab.stop()
        }

        /// One queue always has as much as its ring holds; what the others send is answered nevertheless.
        @Test func aQueueThatFloodsHarmsNoOther() throws {
            let lab = try Lab()
            let disk = try attach(lab, Storage())
            let device = try disk.connect { $0.queues = 2 }
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<32 { try queue.submit(try queue.slot(), .write, sector: 0, byteCount: 45056) }
                try queue.publish()
            }
            var flooded = 0
            for round in 0..<200 {
                try device.queues[1].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 8192, byteCount: 4096, fill: UInt8(round)) == 0)
                }
                try device.queues[0].withQueue { (queue) throws in
                    while let done = try queue.nextCompletion() {
                        #expect(done.status == 0)
                        flooded += 1
                        queue.release(done.id)
                        try queue.submit(try queue.slot(), .write, sector: 0, byteCount: 45056)
                    }
                    try queue.publish()
                }
            }
            #expect(flooded > 0)
            try device.close()
            try lab.finish()
        }
    }
}
