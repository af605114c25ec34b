// SPDX-License-Identifier: BSD-2-Clause
// A guest whose requests overlap believes nothing but what it was told; workers die meanwhile.
import Blkfront
import CLinux
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct AcknowledgementTests {
        private func attach(
            _ lab: Lab, _ storage: Storage = Storage(), arguments: [String] = [], environment: [String] = []
        ) throws -> Disk {
            try lab.attach(
                51712, storage, arguments: ["--journal", "\(lab.directory)/journal"] + arguments,
                environment: environment)
        }

        /// Runs a history on `disk` while `meanwhile` does something to its worker, and compares the image afterwards.
        private func run(
            _ lab: Lab, _ disk: Disk, _ plan: HistoryPlan, pages: Int = 1, queues: Int = 1, image: String,
            meanwhile: () throws -> Void
        ) throws {
            let device = try disk.connect {
                $0.ringPages = pages
                $0.queues = queues
            }
            var run = try runHistory(plan, on: device, of: disk, meanwhile: meanwhile)
            #expect(run.errors == 0 && run.answered >= plan.count)
            // Else the history has checked nothing that a load without overlaps does not check.
            #expect(run.history.choices > run.history.comparisons / 100, "\(run.history.choices)")
            #expect(try disk.key("state") == "4")
            #expect(try disk.worker.total("indirect_requests") > 0)
            try device.close()
            try run.checkImage(try content(image, plan))
            try lab.finish(mostLog: 1 << 20)
        }

        /// What is in the image where the history was.
        private func content(_ image: String, _ plan: HistoryPlan) throws -> [UInt8] {
            let file = try #require(FileHandle(forReadingAtPath: image))
            return Array(try file.read(upToCount: plan.sectors * 512) ?? Data())
        }

        enum Place: CaseIterable { case file, rawDisk, slow }

        @Test(arguments: Place.allCases, [1, 4])
        func randomKills(place: Place, pages: Int) throws {
            var random = SplitMix64(seed: testSeed("AcknowledgementTests.randomKills"))
            let lab = try Lab()
            let image = try lab.image("image", bytes: 16 << 20)
            var storage = Storage(path: image)
            defer { if place == .rawDisk { _ = try? LibxlLab.shell("losetup -d \(storage.path ?? "")") } }
            switch place {
            case .file: break
            case .rawDisk: storage.path = try LibxlLab.shell("losetup --find --show '\(image)'")
            case .slow:
                storage.format = "delay"
                storage.options = "size=16M,keep=on,delay-us=1500,reorder=on"
            }
            let disk = try attach(lab, storage)
            var plan = HistoryPlan()
            plan.seed = random.next()
            plan.count = place == .slow ? 1000 : 3000
            var kills = 0
            var next = clinux_monotonic_ns() + 20_000_000
            try run(lab, disk, plan, pages: pages, image: image) {
                guard clinux_monotonic_ns() >= next, disk.worker.isRunning else { return }
                disk.worker.kill()
                kills += 1
                try disk.startWorker(["--predecessor", "killed:signal 9"])
                // Sometimes again before the successor has come to anything.
                next = clinux_monotonic_ns() + (random.onceIn(5) ? 1 : 20 + random.next() % 100) * 1_000_000
            }
            #expect(kills > 2)
        }

        @Test func severalQueuesAreOneDisk() throws {
            let lab = try Lab()
            let image = try lab.image("image", bytes: 16 << 20)
            let disk = try attach(lab, Storage(path: image), arguments: ["--max-queues", "3"])
            var plan = HistoryPlan()
            plan.count = 3000
            plan.seed = testSeed("AcknowledgementTests.severalQueuesAreOneDisk")
            var next = clinux_monotonic_ns() + 50_000_000
            try run(lab, disk, plan, queues: 3, image: image) {
                guard clinux_monotonic_ns() >= next, disk.worker.isRunning else { return }
                disk.worker.kill()
                try disk.startWorker(["--predecessor", "killed:signal 9"])
                next = clinux_monotonic_ns() + 150_000_000
            }
        }

        @Test(arguments: [
            "taking", "taken", "fetched", "copied", "submitted", "completed", "answered", "published", "released",
        ])
        func aWorkerDiesAt(place: String) throws {
            let lab = try Lab()
            let image = try lab.image("image", bytes: 16 << 20)
            var storage = Storage(path: image, format: "delay")
            storage.options = "size=16M,keep=on,delay-us=1500,reorder=on"
            let disk = try attach(lab, storage, environment: ["XBB_KILL_POINT=\(place):10"])
            var plan = HistoryPlan()
            plan.count = 400
            plan.seed = testSeed("AcknowledgementTests.aWorkerDiesAt")
            var deaths = 0
            try run(lab, disk, plan, image: image) {
                guard !disk.worker.isRunning, deaths < 3 else { return }
                deaths += 1
                // The second one dies there, too; it may have all that is left of the run before it.
                let environment = deaths < 2 ? ["XBB_KILL_POINT=\(place):20"] : []
                try disk.startWorker(["--predecessor", "killed:signal 9"], environment: environment)
            }
            #expect(deaths > 0)
        }

        // MARK: Loss of power

        /// Requests on a disk of the faulty plugin, which keeps what was not flushed in its own memory; then its worker is
        /// killed for good. What the file holds is the outcome, with all that the guest was told.
        private func losePower(fault: String, after count: Int) throws -> (run: HistoryRun, left: [UInt8]) {
            let folder = try makeTemporaryDirectory("faulty")
            try FileManager.default.copyItem(
                atPath: "\(buildDirectory)/libfaulty-test-plugin.so", toPath: "\(folder)/xbb-faulty.so")
            chmod("\(folder)/xbb-faulty.so", 0o755)
            let lab = try Lab()
            let image = try lab.image("image", bytes: 1 << 20)
            var storage = Storage(path: image, format: "faulty")
            storage.options = "fault=\(fault)"
            let disk = try attach(lab, storage, arguments: ["--plugin-dir", folder])
            let device = try disk.connect()
            var plan = HistoryPlan()
            plan.count = count
            plan.seed = UInt64(count)
            plan.readsBack = false
            var run = try HistoryRun(device, plan)
            try run.run()
            #expect(run.errors == 0)
            disk.worker.kill()
            let left = try content(image, plan)
            lab.stop()
            return (run, left)
        }

        @Test(arguments: [150, 230, 311])
        func whatWasFlushedSurvivesALossOfPower(count: Int) throws {
            var (run, left) = try losePower(fault: "forgets-unflushed", after: count)
            try run.checkImageAfterPowerLoss(left)
            // Something was lost, and nothing but what may be.
            #expect(throws: HistoryFault.self) { try run.checkImage(left) }
        }

        @Test func aFlushThatDoesNothingIsFoundSo() throws {
            // What was flushed may have been written again since, so one history may not show it.
            let isFound = try [200, 230, 260, 290, 320].contains { count in
                let (run, left) = try losePower(fault: "forgets-flushed", after: count)
                do {
                    try run.checkImageAfterPowerLoss(left)
                    return false
                } catch let fault as HistoryFault {
                    return fault.kind == .lost
                }
            }
            #expect(isFound)
        }
    }
}
