// SPDX-License-Identifier: BSD-2-Clause
// Workers die at any instant, and the guest sees nothing but a delay.
import Blkfront
import Blkif
import CLinux
import Foundation
import TestSupport
import Testing
import Xen

extension EndToEnd {
    @Suite struct RecoveryTests {
        /// A disk with a journal.
        private func attach(
            _ lab: Lab, _ number: UInt32 = 51712, _ storage: Storage = Storage(), environment: [String] = [],
            arguments: [String] = []
        ) throws -> Disk {
            try lab.attach(
                number, storage, arguments: ["--journal", journal(lab, number)] + arguments, environment: environment)
        }

        private func journal(_ lab: Lab, _ number: UInt32 = 51712) -> String { "\(lab.directory)/\(number).journal" }

        /// A memory disk that outlives its process and takes a while for everything.
        private func kept(
            _ lab: Lab, _ plugin: String = "delay", _ options: String = "delay-us=1500,reorder=on"
        ) throws -> Storage {
            var storage = Storage(path: try lab.image("kept", bytes: 16 << 20), format: plugin)
            storage.options = "size=16M,keep=on,\(options)"
            return storage
        }

        private func connectAndLoad(_ disk: Disk, pages: Int, _ plan: LoadPlan) throws -> LoadReport {
            let device = try disk.connect { $0.ringPages = pages }
            let report = try LoadRun(device, plan).run()
            try device.close()
            return report
        }

        // MARK: Named places

        /// Where the first worker dies and, of some, where its successor does.
        static let deaths: [(first: String, second: String?)] =
            ["taking", "taken", "copied", "submitted", "completed", "answered", "published", "released"]
            .flatMap { [("\($0):1", nil), ("\($0):8", nil)] }
            + ["opened", "journalBegun", "mapped", "bound", "connected", "started", "draining", "drained"]
            .map { ($0, nil) }
            + ["opened", "mapped", "bound", "connected", "started", "replayed", "copied", "submitted", "published:2"]
            .map { ("submitted:8", $0) }

        @Test(arguments: deaths)
        func aWorkerMayDieAnywhere(_ death: (first: String, second: String?)) throws {
            let lab = try Lab()
            let disk = try attach(lab, 51712, try kept(lab), environment: ["XBB_KILL_POINT=\(death.first)"])
            var kills = 0
            let plan = mixedPlan { $0.count = 150 }
            let report = try inBackground({ try connectAndLoad(disk, pages: 1, plan) }) {
                guard !disk.worker.isRunning, try disk.worker.awaitExit() == .signalled(SIGKILL) else { return }
                kills += 1
                let next = kills == 1 ? death.second : nil
                try disk.startWorker(
                    ["--predecessor", "killed:signal 9"], environment: next.map { ["XBB_KILL_POINT=\($0)"] } ?? [])
            }
            #expect(report.isGood, "\(report.text) \(disk.log)")
            #expect(kills == (death.second == nil ? 1 : 2), "\(disk.log)")
            try lab.finish()
        }

        // MARK: Random kills

        /// Kills workers of `disks` now and then while `body` runs; returns what it does.
        private func kill<Value>(
            _ disks: [Disk], atMost limit: Int, random: inout SplitMix64, while body: @escaping () throws -> Value
        ) throws -> (value: Value, kills: Int) {
            var kills = 0
            var next = clinux_monotonic_ns()
            var generator = random
            let value = try inBackground(body) {
                let now = clinux_monotonic_ns()
                if kills >= limit || now < next { return }
                // Sometimes again before the successor has come to anything.
                let pause = generator.onceIn(5) ? generator.below(10) : 20 + generator.below(150)
                next = now + UInt64(pause) * 1_000_000
                let disk = disks[generator.below(disks.count)]
                guard disk.worker.isRunning else { return }
                disk.worker.kill()
                kills += 1
                try disk.startWorker(["--predecessor", "killed:signal 9"])
            }
            random = generator
            return (value, kills)
        }

        @Test(arguments: [1, 4, 32])
        func randomKillsOfAFile(pages: Int) throws {
            var random = SplitMix64(seed: testSeed("randomKillsOfAFile"))
            let lab = try Lab()
            let disk = try attach(lab)
            let device = try disk.connect { $0.ringPages = pages }
            let plan = mixedPlan {
                $0.duration = 1_500_000_000
                $0.seed = random.next()
            }
            let (report, kills) = try kill([disk], atMost: .max, random: &random) { try LoadRun(device, plan).run() }
            #expect(report.isGood, "\(report.text) \(disk.log.suffix(4000))")
            #expect(kills > 5)
            #expect(try disk.key("state") == "4")
            try device.close()
            try lab.finish(mostLog: 1 << 20)
        }

        @Test func randomKillsOfSeveralDisks() throws {
            var random = SplitMix64(seed: testSeed("randomKillsOfSeveralDisks"))
            let lab = try Lab(pages: 32768)
            var loop: String?
            defer { if let loop { _ = try? LibxlLab.shell("losetup -d \(loop)") } }
            if geteuid() == 0 {
                let image = try lab.image("loop", bytes: 32 << 20)
                loop = try? LibxlLab.shell("losetup --find --show '\(image)'")
            }
            var disks = [try attach(lab), try attach(lab, 51728, try kept(lab))]
            if let loop { disks.append(try attach(lab, 51744, Storage(path: loop))) }
            let devices = try disks.map { disk in try disk.connect { $0.ringPages = 2 } }
            let plan = mixedPlan {
                $0.duration = 2_000_000_000
                $0.seed = random.next()
            }
            let (reports, kills) = try kill(disks, atMost: .max, random: &random) {
                let runs = try devices.map { try LoadRun($0, plan) }
                let results = runs.map { run in
                    let reports = Reports()
                    let box = Box(run)
                    Thread { reports.put(box.value.run()) }.start()
                    return reports
                }
                return results.map { $0.take() }
            }
            for (report, disk) in zip(reports, disks) {
                #expect(report.isGood, "\(report.text) \(disk.log.suffix(4000))")
            }
            #expect(kills > 5)
            for device in devices { try device.close() }
            try lab.finish(mostLog: 1 << 20)
        }

        @Test func severalQueuesGoOnTogether() throws {
            var random = SplitMix64(seed: testSeed("severalQueuesGoOnTogether"))
            let lab = try Lab()
            let disk = try attach(lab, 51712, try kept(lab), arguments: ["--max-queues", "3"])
            let device = try disk.connect { $0.queues = 3 }
            #expect(device.queues.count == 3)
            let plan = mixedPlan {
                $0.duration = 2_000_000_000
                $0.barrierEvery = 0
            }
            let (report, kills) = try kill([disk], atMost: .max, random: &random) { try LoadRun(device, plan).run() }
            #expect(report.isGood && kills > 3, "\(report.text) \(disk.log.suffix(4000))")
            try device.close()
            try lab.finish(mostLog: 1 << 20)
        }

        /// xbbd, its workers, xbb-blkfront and xbbctl, as an administrator has them; xbbd is killed too.
        @Test func xbbdReplacesKilledWorkers() throws {
            let output = try LibxlLab.shell(
                "'\(packageDirectory)/scripts/kill-test.sh' 12 debug 150 2>&1 || echo FAILED")
            print(output)
            #expect(output.hasSuffix("kill-test: ok"), "\(output)")
        }

        // MARK: A request that kills

        @Test func aRequestThatKillsItsWorkerFailsAlone() throws {
            let lab = try Lab()
            let disk = try attach(
                lab, 51712, try kept(lab, "error", "misbehave=crash,op=write,start=1M,length=4k"))
            let device = try disk.connect()
            var crashes = 0
            let (statuses, after) = try inBackground({
                try device.queues[0].withQueue { (queue) throws in
                    var places: [Int: Int] = [:]
                    for place in 0..<16 {
                        let id = try queue.slot()
                        places[id] = place
                        // Number 4 is at 1 MiB.
                        try queue.submit(id, .write, sector: UInt64(place) * 512, byteCount: 4096)
                    }
                    try queue.publish()
                    var statuses = [Int16](repeating: 99, count: 16)
                    for _ in 0..<16 {
                        let completion = try queue.next()
                        statuses[places[completion.id] ?? 0] = completion.status
                        queue.release(completion.id)
                    }
                    return (statuses, try queue.status(.write, sector: 0, byteCount: 4096, fill: 1))
                }
            }) {
                guard !disk.worker.isRunning, try disk.worker.awaitExit() == .signalled(SIGABRT) else { return }
                crashes += 1
                try disk.startWorker(["--predecessor", "crashed:signal 6"])
            }
            #expect(statuses == (0..<16).map { $0 == 4 ? -1 : 0 })
            #expect(after == 0 && crashes == 4, "\(disk.log)")
            #expect(disk.log.has("write of 4096 bytes at 1048576: plugin 'error' crashed with this request alone"))
            #expect(disk.log.has("crashed (signal 6) with"))
            try device.close()
            try lab.finish()
        }

        // MARK: What cannot be gone on with

        /// Requests are in flight when the worker is killed; then `change` happens.
        private func expectClosing(after change: (Lab, Disk) throws -> Void, saying text: String) throws {
            let lab = try Lab()
            let disk = try attach(lab, 51712, try kept(lab, "delay", "delay-us=100000"))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<16 { try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096) }
                try queue.publish()
            }
            usleep(30_000)
            disk.worker.kill()
            try change(lab, disk)
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            try disk.awaitError(text)
            try disk.awaitState(5)
            try device.close()
            #expect(device.leakedGrants.isEmpty)
            let again = try disk.connect()
            #expect(try disk.load(again) { $0.count = 4 }.isGood)
            try again.close()
            try lab.finish()
        }

        @Test(
            arguments: [
                ("emptied", "empty or cut off"), ("cut", "size is not what it says"), ("junk", "it is no journal"),
                ("numbers", "requests in flight"), ("removed", "empty or cut off"),
            ])
        func aDamagedJournalClosesTheDisk(_ damage: String, _ text: String) throws {
            try expectClosing(
                after: { lab, _ in
                    let path = journal(lab)
                    switch damage {
                    case "emptied": truncate(path, 0)
                    case "cut": truncate(path, 8192)
                    case "removed": unlink(path)
                    case "junk": try Data(repeating: 0x5a, count: 16384).write(to: URL(fileURLWithPath: path))
                    default:
                        let file = open(path, O_RDWR)
                        var number: UInt64 = 77
                        pwrite(file, &number, 8, 4096)
                        close(file)
                    }
                }, saying: text)
        }

        @Test func withoutAnythingInFlightADamagedJournalIsNoLoss() throws {
            let lab = try Lab()
            let disk = try attach(lab)
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            disk.worker.kill()
            truncate(journal(lab), 5000)
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            // Only what stands in the ring before it looks could have been in flight.
            try eventually("the successor") { try disk.worker.show("stage") == "connected" }
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            #expect(try disk.key("state") == "4")
            // And the journal is a good one again.
            disk.worker.kill()
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }

        /// A guest that is idle, and a journal that says nothing else, make no difference.
        @Test(
            arguments: [
                ("killed:signal 9", true, nil), ("killed:signal 9", false, nil), ("handed-over", false, nil),
                ("killed:signal 9", false, 5000), ("killed:signal 9", false, 0), ("handed-over", false, 0),
            ] as [(String, Bool, Int?)])
        func anotherImageInItsPlaceIsNotServed(_ end: (how: String, isBusy: Bool, journalBytes: Int?)) throws {
            let lab = try Lab()
            let disk = try attach(lab)
            let device = try disk.connect()
            disk.worker.kill()
            if end.isBusy {
                try device.queues[0].withQueue { (queue) throws in
                    try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096)
                    try queue.publish()
                }
            }
            if let bytes = end.journalBytes { truncate(journal(lab), off_t(bytes)) }
            #expect(rename(disk.path, "\(disk.path).old") == 0)
            _ = try lab.image("51712.img", bytes: 16 << 20)
            try disk.startWorker(["--predecessor", end.how])
            try disk.awaitError("another image")
            try disk.awaitState(5)
            try device.close()
            try lab.finish()
        }

        /// The same image, and nothing that says so.
        @Test func aDiskWhoseImageNobodyKnowsIsNotServed() throws {
            let lab = try Lab()
            let disk = try attach(lab)
            let device = try disk.connect()
            #expect(try disk.key("xbb-storage")?.contains(":") == true)
            disk.worker.kill()
            truncate(journal(lab), 0)
            try lab.toolstack.remove("\(disk.back)/xbb-storage", in: .none)
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            try disk.awaitError("nothing says which image was served")
            try disk.awaitState(5)
            try device.close()
            try lab.finish()
        }

        @Test func anImageThatVanishedClosesTheDisk() throws {
            let lab = try Lab()
            let disk = try attach(lab)
            let device = try disk.connect()
            disk.worker.kill()
            #expect(unlink(disk.path) == 0)
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            try disk.awaitError("No such file")
            try disk.awaitState(5)
            try device.close()
            try lab.finish()
        }

        @Test func aFrontendThatGoesWhileNobodyServesItIsLetGo() throws {
            let lab = try Lab()
            let disk = try attach(lab, 51712, try kept(lab))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<16 { try queue.submit(try queue.slot(), .write, sector: 0, byteCount: 4096) }
                try queue.publish()
            }
            disk.worker.kill()
            try inBackground({ try device.close() }) {
                if !disk.worker.isRunning {
                    usleep(50_000)
                    try disk.startWorker(["--predecessor", "killed:signal 9"])
                }
            }
            #expect(device.leakedGrants.isEmpty)
            try lab.finish()
        }

        @Test(.enabled(if: geteuid() == 0, "mounting takes root"))
        func aFullRunDirectoryCostsRecoveryAndNothingElse() throws {
            let lab = try Lab()
            let folder = "\(lab.directory)/run"
            mkdir(folder, 0o755)
            try LibxlLab.shell("mount -t tmpfs -o size=8k tmpfs '\(folder)'")
            defer { _ = try? LibxlLab.shell("umount '\(folder)'") }
            let disk = try lab.attach(
                51712, try kept(lab, "delay", "delay-us=100000"), arguments: ["--journal", "\(folder)/journal"])
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 4 }.isGood)
            #expect(disk.log.has("No space left on device; if this process is killed, the guest loses its disk"))
            // A kill while nothing is in flight is no loss.
            disk.worker.kill()
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            try eventually("the successor") { try disk.worker.show("stage") == "connected" }
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096)
                try queue.publish()
            }
            usleep(30_000)
            disk.worker.kill()
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            try disk.awaitError("requests in flight are lost")
            try device.close()
            try lab.finish()
        }

        @Test func aDiskWithoutAPlaceForItsJournalIsServed() throws {
            let lab = try Lab()
            let disk = try lab.attach(arguments: ["--journal", "\(lab.directory)/none/journal"])
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            #expect(disk.log.has("if this process is killed, the guest loses its disk"))
            // Who hands over needs none.
            disk.worker.signal(SIGTERM)
            #expect(try disk.worker.awaitExit() == .exited(0))
            try disk.startWorker(["--predecessor", "handed-over"])
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }
    }
}

/// A verified load with flushes, barriers and discards among its operations.
func mixedPlan(_ change: (inout LoadPlan) -> Void = { _ in }) -> LoadPlan {
    var plan = LoadPlan()
    plan.pattern = .randrw
    plan.maxBlockSize = 128 << 10
    plan.depth = 32
    plan.verify = true
    plan.flushEvery = 16
    plan.barrierEvery = 50
    plan.discardEvery = 40
    change(&plan)
    return plan
}

/// Runs `body` on a thread, and `meanwhile` here again and again until it is done.
func inBackground<Value>(_ body: @escaping () throws -> Value, meanwhile: () throws -> Void) throws -> Value {
    let outcome = Outcome<Value>()
    let box = Box(body)
    Thread { outcome.put(Result { try box.value() }) }.start()
    while true {
        if let result = outcome.take() { return try result.get() }
        try meanwhile()
        usleep(1000)
    }
}

/// Runs a history to its end, and `meanwhile` here again and again until then; an error has the disk's log with it.
func runHistory(
    _ plan: HistoryPlan, on device: FrontDevice, of disk: Disk, meanwhile: () throws -> Void
) throws -> HistoryRun {
    let begun = try HistoryRun(device, plan)
    return try inBackground(
        {
            var run = begun
            do {
                try run.run()
            } catch {
                throw LabError("\(error); \(disk.log.suffix(4000))")
            }
            return run
        }, meanwhile: meanwhile)
}

/// A result from another thread.
private final class Outcome<Value>: @unchecked Sendable {
    private let lock = NSLock()
    private var result: Result<Value, any Error>?
    func put(_ result: Result<Value, any Error>) { lock.withLock { self.result = result } }
    func take() -> Result<Value, any Error>? { lock.withLock { result } }
}
