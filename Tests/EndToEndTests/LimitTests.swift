// SPDX-License-Identifier: BSD-2-Clause
// A disk that is held to limits: never more than they allow, whatever its guest does, and never in the way of an end.
//
// What a limit lets through at most does not depend on how busy the machine is; how near it comes to that is told by
// scripts/bench-limits.sh.
import Blkfront
import Blkif
import CLinux
import Foundation
import Testing

extension EndToEnd {
    @Suite struct LimitTests {
        /// A setting as the worker has it.
        private func tunable(_ disk: Disk, _ name: String) throws -> Int {
            let tunables = try #require(try disk.worker.ask("show")["tunables"] as? [String: Any])
            return try #require(tunables[name] as? Int, "no setting \(name)")
        }

        private func awaitThrottled(_ disk: Disk) throws {
            try eventually("requests that wait for the limit: \(try disk.worker.ask("show"))") {
                try Int(disk.worker.show("throttled")) ?? 0 > 0
            }
        }

        /// Puts writes of a page into the ring of the first queue; the guest is told of them.
        private func begin(_ device: FrontDevice, _ count: Int) throws -> [Int] {
            try device.queues[0].withQueue { (queue) throws in
                let ids = try (0..<count).map { _ in
                    let id = try queue.slot()
                    try queue.submit(id, .write, sector: 8, byteCount: 4096)
                    return id
                }
                try queue.publish()
                return ids
            }
        }

        @Test(arguments: [1, 3])
        func neverMoreThanTheLimit(_ queues: Int) throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.attach(arguments: ["--max-queues", "4"])
            let device = try disk.connect {
                $0.ringPages = 2
                $0.queues = queues
            }
            // Of all requests and bytes, of reads alone; what a request of one queue may take too much.
            let cases: [(set: String, count: [String], unit: Int, limit: Double, request: Double)] = [
                ("total_iops_sec 300", ["reqs_received"], 1, 300, 1),
                ("total_iops_sec 0 total_bytes_sec 4M", ["read_sectors", "write_sectors"], 512, 4_194_304, 131_072),
                ("total_bytes_sec 0 read_iops_sec 100", ["read_requests"], 1, 100, 1),
            ]
            for (index, entry) in cases.enumerated() {
                func sum() throws -> Int { try entry.count.reduce(0) { $0 + (try disk.worker.total($1)) * entry.unit } }
                let before = try sum()
                let began = clinux_monotonic_ns()
                #expect(try disk.worker.ask("set \(entry.set)")["error"] == nil)
                let report = try disk.load(device) {
                    $0.verify = false
                    $0.depth = 32
                    $0.count = nil
                    $0.duration = 1_500_000_000
                    $0.seed = UInt64(index)
                }
                #expect(report.isGood, "\(report.text)")
                let passed = Double(try sum() - before)
                let seconds = Double(clinux_monotonic_ns() - began) / 1e9
                let most = entry.limit * (seconds + 0.1) + Double(queues) * entry.request
                #expect(passed <= most, "\(entry.set): \(passed) in \(seconds) s, expected at most \(most)")
            }
            try device.close()
            try lab.finish()
        }

        @Test func aLimitIsLiftedUnderLoad() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            try disk.worker.set("total_iops_sec", 1)
            var isLifted = false
            // It would take half an hour.
            let plan = mixedPlan { $0.count = 1500 }
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                if isLifted { return }
                try awaitThrottled(disk)
                #expect(
                    try disk.worker.ask("pause 600 brief")["paused"] as? Bool == true,
                    "a pause does not wait for the limit")
                #expect(try disk.worker.show("in_flight") == "0")
                #expect(try disk.worker.ask("resume")["paused"] as? Bool == false)
                try awaitThrottled(disk)
                try disk.worker.set("total_iops_sec", 0)
                isLifted = true
            }
            #expect(report.isGood && isLifted, "\(report.text)")
            #expect(try disk.worker.total("throttled_requests") > 0 && disk.worker.show("throttled") == "0")
            try device.close()
            try lab.finish()
        }

        @Test func aHandOverDoesNotWaitForTheLimitAndKeepsIt() throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.attach(arguments: ["--journal", "\(lab.directory)/51712.journal"])
            let device = try disk.connect { $0.ringPages = 4 }
            #expect(
                try disk.worker.ask("set total_iops_sec 1 total_iops_sec_max 2 total_iops_sec_max_length 1")["error"]
                    == nil)
            // Two minutes' worth.
            let ids = try begin(device, 120)
            try awaitThrottled(disk)
            disk.worker.signal(SIGTERM)
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log.suffix(2000))")
            try disk.startWorker(["--predecessor", "handed-over"])
            try awaitThrottled(disk)
            #expect(try tunable(disk, "total_iops_sec") == 1 && tunable(disk, "total_iops_sec_max") == 2)
            #expect(
                try disk.worker.ask("set total_iops_sec 0 total_iops_sec_max 0 total_iops_sec_max_length 0")["error"]
                    == nil)
            try device.queues[0].withQueue { (queue) throws in
                for id in ids { #expect(try queue.finish(id) == 0) }
            }
            try device.close()
            try lab.finish()
        }

        @Test func aForcedDetachAnswersWhatTheLimitHeldBack() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            try disk.worker.set("total_iops_sec", 1)
            let ids = try begin(device, 30)
            try awaitThrottled(disk)
            try lab.toolstack.remove(disk.front, in: .none)
            try eventually("it is closed") { try disk.key("state") == "6" }
            try device.queues[0].withQueue { (queue) throws in
                for id in ids { #expect(try queue.finish(id) == 0) }
            }
            try disk.requestDetach()
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log.suffix(2000))")
            lab.stop()
        }

        @Test func theTargetSaysLimitsToo() throws {
            let lab = try Lab()
            var storage = Storage()
            storage.options = "total-iops-sec=700,read_bytes_sec=1M"
            let disk = try lab.attach(
                51712, storage, arguments: ["--tunable", "total_bytes_sec=5", "--tunable", "total_iops_sec=6"])
            let device = try disk.connect()
            #expect(try tunable(disk, "total_iops_sec") == 700 && tunable(disk, "read_bytes_sec") == 1 << 20)
            #expect(try tunable(disk, "total_bytes_sec") == 0, "the disk's own take the place of the others")
            #expect(try disk.load(device) { $0.count = 20 }.isGood)
            for (number, options) in [(51728, "total-iops-sec=ten"), (51744, "total-iops-sec=1,read-iops-sec=1")] {
                storage.options = options
                let refused = try lab.attach(UInt32(number), storage)
                try eventually("an error: \(refused.log)") { try refused.key("hotplug-status") == "error" }
                let said = try refused.key("hotplug-error") ?? ""
                #expect(said.contains("total-iops-sec"), "\(said)")
            }
            try device.close()
            try lab.finish()
        }

        @Test func whatIsSetTogetherIsSetAsAWhole() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            try eventually("the storage is open") { try disk.worker.show("stage") == "ready" }
            func said(_ line: String) throws -> String? { try disk.worker.ask(line)["error"] as? String }
            #expect(try said("set total_iops_sec 5 total-iops-sec-max 50 poll_us 7") == nil)
            for (line, text) in [
                ("set total_iops_sec 9 poll_us -1", "poll-us"), ("set total_iops_sec 9 none 1", "none"),
                ("set poll_us 9 read_iops_sec 1", "exclude each other"),
                ("set total_iops_sec 0", "needs total-iops-sec"),
                ("set total_iops_sec 51", "is less than"), ("set total_iops_sec", "expected"),
                ("set total_iops_sec 9 poll_us", "expected"), ("set read_bytes_sec -1", "from 0 to"),
                ("set read_bytes_sec 9223372036854775808", "from 0 to"), ("set read_bytes_sec many", "from 0 to"),
                ("set read_iops_sec 1k", "from 0 to"), ("set read_bytes_sec 1Q", "from 0 to"),
            ] {
                let answer = try said(line) ?? "taken"
                #expect(answer.contains(text), "\(line): \(answer)")
                #expect(
                    try tunable(disk, "total_iops_sec") == 5 && tunable(disk, "poll_us") == 7
                        && tunable(disk, "read_iops_sec") == 0, "\(line)")
            }
            #expect(try said("set total_iops_sec 0 total_iops_sec_max 0 read_iops_sec 1 read_bytes_sec 1k") == nil)
            #expect(try tunable(disk, "read_iops_sec") == 1 && tunable(disk, "read_bytes_sec") == 1024)
            try lab.finish()
        }
    }
}
