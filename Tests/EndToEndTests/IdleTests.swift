// SPDX-License-Identifier: BSD-2-Clause
// A disk on which nothing happens: nobody of its processes is woken, and what happens then is seen nevertheless.
import Blkfront
import CLinux
import Foundation
import Testing

extension EndToEnd {
    @Suite struct IdleTests {
        /// How often the threads of a process and of its children have slept, by their names.
        private func sleeps(_ process: pid_t) -> [String: Int] {
            var found: [String: Int] = [:]
            let children =
                (try? String(contentsOfFile: "/proc/\(process)/task/\(process)/children", encoding: .utf8)) ?? ""
            for member in [process] + children.split(separator: " ").compactMap({ pid_t($0) }) {
                let threads = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(member)/task")) ?? []
                for thread in threads {
                    let status =
                        (try? String(contentsOfFile: "/proc/\(member)/task/\(thread)/status", encoding: .utf8)) ?? ""
                    let line = status.split(separator: "\n").first { $0.hasPrefix("voluntary_ctxt_switches:") }
                    found["\(member)/\(thread)"] = line?.split(separator: "\t").last.flatMap { Int($0) } ?? -1
                }
            }
            return found
        }

        /// Waits until nobody of the process and its children has been woken for three seconds.
        private func awaitQuiet(_ process: pid_t) throws {
            var before = sleeps(process)
            #expect(before.count > 3, "\(before)")
            var since = clinux_monotonic_ns()
            try eventually("nobody to be woken", seconds: 60) {
                let now = sleeps(process)
                if now != before {
                    before = now
                    since = clinux_monotonic_ns()
                }
                usleep(100_000)
                return clinux_monotonic_ns() - since > 3_000_000_000
            }
        }

        /// With this stall time a worker looks after itself twice a second, and xbbd asks it once.
        private static let looks = ["--stall-time", "1"]

        @Test func nobodyWakesForADiskThatIsNotUsed() throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, .plugin("null", "size=16M"), arguments: Self.looks + ["--max-queues", "2"])
            let device = try disk.connect { $0.queues = 2 }
            for _ in 0..<2 {
                #expect(try disk.load(device) { ($0.pattern, $0.verify, $0.count) = (.randrw, false, 200) }.isGood)
                try awaitQuiet(disk.worker.process)
            }
            try device.close()
            try lab.finish()
        }

        @Test func xbbdWakesNoWorkerThatSleeps() throws {
            let lab = try LibxlLab(options: Self.looks)
            let guest = try lab.guest()
            let disk = LibxlDisk(guest: guest.id, params: "null,size=16M:/dev/null")
            try lab.add(disk)
            let device = try lab.connect(disk, guest)
            let worker = try lab.worker(disk)
            try awaitQuiet(worker)
            // One that is stopped has run for that, and is asked.
            kill(worker, SIGSTOP)
            try eventually("it is told") { lab.log.has("worker \(worker) does not answer") }
            kill(worker, SIGCONT)
            try eventually("it goes on") { lab.log.has("worker \(worker) answers again") }
            try awaitQuiet(worker)
            try device.close()
            lab.stop()
        }

        /// Nobody looked at the disk when the request came.
        @Test(arguments: [1, 4])
        func aRequestThatNeverEndsIsNamedAfterAnyRest(queues: Int) throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, .plugin("delay", "size=16M,delay-us=100,stuck-at=1048576,hurries=off"),
                arguments: Self.looks + ["--max-queues", "4"])
            let device = try disk.connect { $0.queues = queues }
            try device.queues[queues - 1].withQueue { (queue) throws in
                for _ in 0..<40 { #expect(try queue.status(.write, sector: 0, byteCount: 4096, fill: 1) == 0) }
            }
            try awaitQuiet(disk.worker.process)
            try device.queues[queues - 1].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 2048, byteCount: 4096)
                try queue.publish()
            }
            try eventually("the request is named") { try disk.key("xbb-stall")?.has("queue \(queues - 1)") == true }
            try disk.requestDetach()
            try lab.toolstack.remove(disk.front, in: .none)
            #expect(try disk.worker.awaitExit() == .exited(1))
            device.dismantle()
            lab.stop()
        }

        @Test func theEndOfXenStoreWakesWhoHasAskedForNothing() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("null", "size=16M"), arguments: Self.looks)
            let device = try disk.connect()
            try awaitQuiet(disk.worker.process)
            lab.xen.stopStore()
            try eventually("it is told", seconds: 10) { try disk.worker.show("xenstore") == "lost" }
            #expect(disk.log.has("the disk is served on and cannot be detached any more"))
            device.dismantle()
            lab.stop()
        }
    }
}
