// SPDX-License-Identifier: BSD-2-Clause
// A disk that is paused takes nothing, loses nothing, and can be left in every way.
import Blkfront
import Blkif
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct PauseTests {
        /// Whether the disk takes requests; waits for a worker that opens its storage still.
        private func awaitIntake(_ state: String, _ disk: Disk) throws {
            try eventually("a disk that is \(state)") { try disk.worker.show("intake") == state }
        }

        /// Pauses and waits until nothing is in flight.
        private func pause(_ disk: Disk, _ how: String = "600 brief") throws {
            try eventually("the storage is open") { try disk.worker.show("intake") != "none" }
            let answer = try disk.worker.ask("pause \(how)")
            #expect(answer["paused"] as? Bool == true, "\(answer)")
            #expect(try disk.worker.show("intake") == "paused")
            #expect(try disk.worker.show("in_flight") == "0")
        }

        private func resume(_ disk: Disk) throws {
            #expect(try disk.worker.ask("resume")["paused"] as? Bool == false)
            #expect(try disk.worker.show("intake") == "running")
        }

        /// What has been done for the guest so far.
        private func work(_ disk: Disk) throws -> [Int] {
            try ["reqs_received", "reqs_completed", "plugin_requests", "grant_copy_operations"].map(disk.worker.total)
        }

        /// A memory disk that outlives its process and takes a while for everything.
        private func kept(_ lab: Lab) throws -> Storage {
            var storage = Storage(path: try lab.image("kept", bytes: 16 << 20), format: "delay")
            storage.options = "size=16M,keep=on,delay-us=1500,reorder=on"
            return storage
        }

        /// One request in the ring, of which nobody has told the frontend anything yet.
        private func begin(_ device: FrontDevice, _ operation: Blkif.BlockOperation) throws -> Int {
            try device.queues[0].withQueue { (queue) throws in
                let id = try queue.slot()
                try queue.submit(id, operation, sector: 8, byteCount: 4096)
                try queue.publish()
                return id
            }
        }

        /// The plugin of tests fails what comes between drain_begin() and drain_end().
        @Test func aPluginIsToldOfAPause() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, try kept(lab))
            let device = try disk.connect()
            func drains() throws -> Int? {
                let plugin = try disk.worker.ask("stats")["plugin"] as? [String: Any]
                return (plugin?["counters"] as? [String: Any])?["drains"] as? Int
            }
            for round in 1...3 {
                try pause(disk)
                try eventually("the plugin knows of pause \(round)") { try drains() == round }
                try resume(disk)
                #expect(try disk.load(device) { $0.count = 50 }.isGood, "\(disk.log)")
            }
            try device.close()
            try lab.finish()
        }

        static let disks: [(format: String, queues: Int)] = [("raw", 1), ("raw", 4), ("delay", 1)]

        @Test(arguments: disks)
        func aLoadGoesOnThroughPauses(_ shape: (format: String, queues: Int)) throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.attach(
                51712, shape.format == "raw" ? Storage() : try kept(lab), arguments: ["--max-queues", "4"])
            let device = try disk.connect {
                $0.ringPages = 4
                $0.queues = shape.queues
            }
            let plan = mixedPlan {
                $0.duration = 2_000_000_000
                if shape.queues > 1 { $0.barrierEvery = 0 }
            }
            var pauses = 0
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                usleep(40_000)
                try pause(disk)
                let before = try work(disk)
                usleep(60_000)
                #expect(try work(disk) == before, "nothing is begun")
                #expect(try disk.key("state") == "4", "the guest sees nothing of it")
                pauses += 1
                try resume(disk)
            }
            #expect(report.isGood && report.verifiedBlocks > 0, "\(report.text) \(disk.log.suffix(4000))")
            #expect(pauses > 5)
            try device.close()
            try lab.finish()
        }

        /// Parts of one block, written on several queues, wait for each other: a pause waits for them.
        @Test(arguments: [2, 4])
        func partsOfLargeBlocksAreWholeAfterPauses(queues: Int) throws {
            let lab = try Lab()
            var storage = try kept(lab)
            storage.options = (storage.options ?? "") + ",block=4096"
            let disk = try lab.attach(51712, storage, arguments: ["--max-queues", "4"])
            let device = try disk.connect { $0.queues = queues }
            var plan = HistoryPlan()
            plan.sectors = 64
            plan.mostSectors = 12
            plan.count = 1200
            plan.startsUnknown = true
            plan.seed = testSeed("PauseTests.partsOfLargeBlocksAreWholeAfterPauses")
            var pauses = 0
            let run = try runHistory(plan, on: device, of: disk) {
                usleep(20_000)
                try pause(disk)
                let before = try work(disk)
                usleep(20_000)
                #expect(try work(disk) == before, "nothing is begun")
                pauses += 1
                try resume(disk)
            }
            #expect(run.errors == 0 && run.answered >= plan.count && pauses > 3)
            #expect(try disk.worker.total("plugin_requests") > 0)
            try device.close()
            try lab.finish()
        }

        @Test func aRequestWaitsForTheEndOfThePause() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            try eventually("the storage is open") { try disk.worker.show("stage") == "ready" }
            // Before there is a frontend, and for the one that comes.
            try pause(disk)
            let device = try disk.connect()
            let id = try begin(device, .read)
            usleep(100_000)
            try device.queues[0].withQueue { (queue) throws in #expect(try queue.nextCompletion() == nil) }
            #expect(try disk.worker.total("reqs_received") == 0)
            try pause(disk)
            try resume(disk)
            try device.queues[0].withQueue { (queue) throws in #expect(try queue.finish(id) == 0) }
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test func aPauseIsOverWhenWhatWasTakenIsAnswered() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("delay", "size=16M,delay-us=400000"))
            let device = try disk.connect()
            let id = try begin(device, .write)
            try eventually("the request is taken") { try disk.worker.total("reqs_received") == 1 }
            let isAnswered = try inBackground({ try disk.worker.ask("pause 600 brief")["paused"] as? Bool }) {
                let answer = try disk.worker.ask("ping")
                #expect(answer["pid"] != nil, "others are answered meanwhile")
            }
            #expect(isAnswered == true)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try #require(try queue.nextCompletion(), "it was answered before the pause").status == 0)
                queue.release(id)
            }
            try resume(disk)
            // A pause that is taken back says so.
            let next = try begin(device, .write)
            try eventually("the request is taken") { try disk.worker.total("reqs_received") == 2 }
            var isResumed = false
            let outcome = try inBackground({ try disk.worker.ask("pause 600 brief")["paused"] as? Bool }) {
                if !isResumed, try disk.worker.show("intake") == "pausing" {
                    isResumed = true
                    try resume(disk)
                }
            }
            #expect(isResumed && outcome != true)
            try device.queues[0].withQueue { (queue) throws in #expect(try queue.finish(next) == 0) }
            try device.close()
            try lab.finish()
        }

        @Test func theSuccessorOfAKilledWorkerIsPausedAsLongAsItWasTold() throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, try kept(lab), arguments: ["--journal", "\(lab.directory)/51712.journal"])
            let device = try disk.connect()
            var kills = 0
            let plan = mixedPlan { $0.count = 400 }
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                guard kills < 4 else { return }
                usleep(30_000)
                // A brief pause is the process's own.
                let isBrief = kills == 3
                try pause(disk, isBrief ? "600 brief" : "600")
                #expect(try disk.key("xbb-paused") != nil || isBrief)
                usleep(20_000)
                disk.worker.kill()
                kills += 1
                try disk.startWorker(["--predecessor", "killed:signal 9"])
                #expect(try disk.worker.ask("ping")["pid"] != nil)
                if isBrief { return }
                try eventually("it serves") { try disk.worker.show("stage") == "connected" }
                try awaitIntake("paused", disk)
                let before = try disk.worker.total("reqs_received")
                usleep(30_000)
                #expect(try disk.worker.total("reqs_received") == before)
                try resume(disk)
                #expect(try disk.key("xbb-paused") == nil)
            }
            #expect(report.isGood, "\(report.text) \(disk.log.suffix(4000))")
            #expect(kills == 4)
            try awaitIntake("running", disk)
            #expect(!disk.log.has("in flight"), "nothing is to be done again: \(disk.log.suffix(2000))")
            try device.close()
            try lab.finish(mostLog: 1 << 20)
        }

        @Test func aPauseEndsByItself() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            for how in ["0.3", "0.3 brief"] {
                try pause(disk, how)
                let id = try begin(device, .read)
                try device.queues[0].withQueue { (queue) throws in #expect(try queue.finish(id) == 0) }
                try awaitIntake("running", disk)
                #expect(try disk.key("xbb-paused") == nil)
            }
            #expect(disk.log.has("the time limit of the pause is over"))
            // A longer one may follow, and a shorter one.
            try pause(disk, "600")
            try pause(disk, "0.2")
            try awaitIntake("running", disk)
            // A successor's ends at the same time, also if that is over.
            for wait in [0, 400_000] as [UInt32] {
                try pause(disk, "0.3")
                disk.worker.kill()
                usleep(wait)
                try disk.startWorker(["--predecessor", "killed:signal 9"])
                try eventually("it serves") { try disk.worker.show("stage") == "connected" }
                try awaitIntake("running", disk)
                #expect(try disk.key("xbb-paused") == nil)
            }
            for wrong in ["0", "-1", "x", "nan", "1e300", "86401", "9223372036854775808"] {
                #expect(try disk.worker.ask("pause \(wrong)")["error"] != nil)
                #expect(try disk.worker.show("intake") == "running")
            }
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test func aPauseThatDoesNotComeAboutLeavesTheDiskAsItWas() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("delay", "size=16M,delay-us=2500000"))
            let device = try disk.connect()
            let id = try begin(device, .write)
            try eventually("the request is taken") { try disk.worker.total("reqs_received") == 1 }
            let answer = try disk.worker.ask("pause 0.5")
            #expect((answer["error"] as? String)?.has("was not paused and goes on") == true, "\(answer)")
            #expect(try disk.worker.show("intake") == "running")
            #expect(try disk.key("xbb-paused") == nil)
            try device.queues[0].withQueue { (queue) throws in #expect(try queue.finish(id) == 0) }
            try device.close()
            try lab.finish()
        }

        /// What an administrator asks for has its time limit, and the disk is as it was before.
        @Test func aDiskWhosePluginHangsKeepsItsStorage() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let image = try lab.image("other.img")
            try lab.administer("attach \(guest.id) xvda delay,size=16M,delay-us=600000000:")
            let disk = LibxlDisk(guest: guest.id, params: "delay:")
            let device = try lab.connect(disk, guest)
            _ = try begin(device, .write)
            let socket = "--socket \(lab.directory)/run/xbbd.sock"
            try eventually("the request is taken") {
                try lab.administer("show \(guest.id) xvda --json").has("\"in_flight\":1")
            }
            for command in ["pause", "pause --release", "swap --image raw:\(image) --force"] {
                let words = command.split(separator: " ", maxSplits: 1).map(String.init)
                let rest = words.count > 1 ? words[1] : ""
                let answer = try lab.xbbctl("\(words[0]) \(guest.id) xvda --timeout 1 \(rest) \(socket)")
                #expect(answer.status == 1 && answer.text.has("goes on"), "\(command): \(answer)")
                let shown = try lab.administer("show \(guest.id) xvda --json")
                #expect(shown.has("\"intake\":\"running\"") && shown.has("\"plugin\":\"delay\""), "\(shown)")
                for key in ["xbb-paused", "xbb-released", "xbb-swap"] { #expect(try lab.key(key, of: disk) == nil) }
            }
            lab.stop()
        }

        @Test func aPausedDiskIsHandedOver() throws {
            let lab = try Lab()
            let succession = try Succession(lab, try kept(lab))
            let disk = succession.disk
            let device = try disk.connect()
            var count = 0
            let plan = mixedPlan { $0.duration = 1_500_000_000 }
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                usleep(30_000)
                try pause(disk)
                try succession.handOver()
                count += 1
            }
            #expect(report.isGood, "\(report.text) \(disk.log.suffix(4000))")
            #expect(count > 1)
            try awaitIntake("running", disk)
            try device.close()
            try lab.finish(mostLog: 1 << 20)
        }

        @Test func aPausedDiskIsDetached() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try pause(disk)
            // The guest's driver goes and comes; the disk is still paused.
            try device.close()
            try disk.awaitState(6)
            let again = try disk.connect()
            let id = try begin(again, .read)
            usleep(50_000)
            try again.queues[0].withQueue { (queue) throws in #expect(try queue.nextCompletion() == nil) }
            try again.close()
            _ = id
            try lab.finish()
        }
    }
}
