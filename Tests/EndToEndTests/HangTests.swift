// SPDX-License-Identifier: BSD-2-Clause
// What never ends is a state of its disk: it is told, everything else is answered, and the disk can be taken away.
import Blkfront
import CLinux
import Foundation
import Testing
import Xen

extension EndToEnd {
    @Suite struct HangTests {
        /// What takes the disk away.
        enum End: String, CaseIterable {
            case handOver, forcedDetach, backendRemoved
        }

        private func take(_ end: End, _ disk: Disk, _ lab: Lab) throws {
            switch end {
            case .handOver: disk.worker.signal(SIGTERM)
            case .forcedDetach:
                try disk.requestDetach()
                try lab.toolstack.remove(disk.front, in: .none)
            case .backendRemoved: try lab.toolstack.remove(disk.back, in: .none)
            }
        }

        /// What `show` says does not end.
        private func stalled(_ disk: Disk) throws -> [[String: Any]] {
            try disk.worker.ask("show")["stalled"] as? [[String: Any]] ?? []
        }

        private func awaitStall(_ disk: Disk, _ text: String) throws {
            try eventually("it is told that it does not end; log: \(disk.log)") { try !stalled(disk).isEmpty }
            let key = try disk.key("xbb-stall")
            #expect(key?.has(text) == true, "\(key ?? "no key")")
            #expect(disk.log.split(separator: "\n").count { String($0).has(text) } == 1, "\(disk.log)")
        }

        private func submit(_ device: FrontDevice) throws {
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 8, byteCount: 4096)
                try queue.publish()
            }
        }

        /// The worker ends although it has not waited, in its time, and nothing of the guest is held.
        private func expectEnd(_ end: End, _ disk: Disk, _ lab: Lab) throws {
            try take(end, disk, lab)
            #expect(try disk.worker.awaitExit() == .exited(1), "\(disk.log)")
            #expect(disk.log.has("ends without waiting"))
            try eventually("the guest's pages are free") {
                try lab.control.domain(lab.guest.id)?.mappedGrants == 0
            }
        }

        @Test(arguments: End.allCases) func aRequestThatNeverEndsIsNamedAndNoObstacle(_ end: End) throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, .plugin("delay", "size=16M,delay-us=600000000,hurries=off"), arguments: ["--stall-time", "1"])
            let neighbour = try lab.attach(51728)
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .write, sector: 8, byteCount: 4096)
                try queue.publish()
            }
            try awaitStall(disk, "plugin 'delay' does not answer a write of 4096 bytes at 4096 (queue 0)")
            let stall = try #require(try stalled(disk).first)
            #expect(stall["plugin"] as? String == "delay" && stall["operation"] as? String == "write", "\(stall)")
            #expect(stall["sector"] as? Int == 8 && stall["sectors"] as? Int == 8, "\(stall)")
            #expect(stall["seconds"] as? Int ?? 0 >= 1, "\(stall)")
            let other = try neighbour.connect()
            #expect(try neighbour.load(other) { $0.count = 100 }.isGood)
            try other.close()
            try expectEnd(end, disk, lab)
            device.dismantle()
            try lab.finish()
        }

        /// A plugin that can finish its requests is asked to, where nobody waits for them any more.
        @Test(arguments: [End.forcedDetach, .backendRemoved]) func aPluginIsAskedToHurry(_ end: End) throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, .plugin("delay", "size=16M,delay-us=600000000"), arguments: ["--stall-time", "60"])
            let device = try disk.connect()
            try submit(device)
            try eventually("it is taken") { try disk.worker.show("in_flight") == "1" }
            try take(end, disk, lab)
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            #expect(!disk.log.has("ends without waiting"))
            device.dismantle()
            try lab.finish()
        }

        /// What is found to hang when its node is gone does not bring the node back.
        @Test func aNodeThatIsGoneStaysGone() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=hang_open"), arguments: ["--stall-time", "2"])
            try eventually("it opens") { try disk.worker.show("stage").has("opening for ") }
            try lab.toolstack.remove(disk.back, in: .none)
            #expect(try disk.worker.awaitExit() == .exited(1), "\(disk.log)")
            #expect(disk.log.has("does not return from open()"))
            #expect(try disk.key("xbb-stall") == nil)
            try lab.finish()
        }

        @Test func whatGoesOnIsNoLongerTold() throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, .plugin("delay", "size=16M,delay-us=4000000"), arguments: ["--stall-time", "1"])
            let device = try disk.connect()
            try submit(device)
            try awaitStall(disk, "plugin 'delay' does not answer a read of 4096 bytes at 4096")
            try device.queues[0].withQueue { (queue) throws in #expect(try queue.next().status == 0) }
            try eventually("it is over") { try stalled(disk).isEmpty && disk.key("xbb-stall") == nil }
            #expect(disk.log.has("it goes on after"))
            try device.close()
            try lab.finish()
        }

        @Test(arguments: ["hang_submit", "hang_get_info"], End.allCases)
        func aCallOfAConnectedDiskThatHangsIsNoObstacle(_ attempt: String, _ end: End) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=\(attempt)"), arguments: ["--stall-time", "1"])
            let device = try disk.connect()
            try submit(device)
            try awaitStall(
                disk,
                attempt == "hang_submit"
                    ? "plugin 'evil' does not answer a read of 4096 bytes at 4096"
                    : "plugin 'evil' does not return from get_info()")
            try expectEnd(end, disk, lab)
            device.dismantle()
            try lab.finish()
        }

        @Test(arguments: End.allCases) func anOpeningThatHangsIsNoObstacle(_ end: End) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=hang_open"), arguments: ["--stall-time", "1"])
            try awaitStall(disk, "the storage does not return from open() of /, format evil")
            #expect(try disk.worker.show("stage").has("opening for "))
            #expect(try disk.worker.ask("stats")["totals"] != nil)
            try expectEnd(end, disk, lab)
            try lab.finish()
        }

        @Test(arguments: End.allCases) func aQueueThatDoesNotOpenIsNoObstacle(_ end: End) throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, .plugin("evil", "attempt=hang_queue_open"), arguments: ["--stall-time", "1"])
            let device = try disk.device { $0.timeout = 1000 }
            #expect(throws: (any Error).self) { try device.connect() }
            try awaitStall(disk, "plugin 'evil' does not return from the start of queue 0")
            try expectEnd(end, disk, lab)
            // The frontend has not connected and keeps what it granted.
            lab.stop()
        }

        @Test(arguments: ["hang_queue_close", "hang_close"]) func anEndThatHangsIsNoObstacle(_ attempt: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=\(attempt)"), arguments: ["--stall-time", "1"])
            let device = try disk.connect()
            try disk.requestDetach()
            try eventually("the backend closes") { try disk.key("state") == "5" }
            try device.setState(.closed)
            // The guest has let it go: nothing else is waited for.
            #expect(try disk.worker.awaitExit() == .exited(1), "\(disk.log)")
            #expect(
                disk.log.has(
                    attempt == "hang_close" ? "does not return from close()" : "does not return from the end of queue 0"
                ),
                "\(disk.log)")
            // The next worker finds that nothing is left to do.
            try disk.startWorker()
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            #expect(try disk.key("state") == "6")
            device.dismantle()
            try lab.finish()
        }

        @Test func watchesAreTakenWhileNothingEnds() throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, .plugin("delay", "size=16M,delay-us=600000000"), arguments: ["--stall-time", "60"])
            let device = try disk.connect()
            try submit(device)
            try eventually("it is taken") { try disk.worker.total("reqs_received") == 1 }
            try device.setState(.closing)
            try eventually("it drains") { try disk.worker.show("stage") == "draining" }
            func memory() throws -> Int {
                Int(try #require(disk.worker.status("VmRSS").first).split(separator: " ").first ?? "") ?? 0
            }
            let before = try memory()
            let store = try lab.guest.openStore()
            for round in 0..<50_000 {
                try store.write("\(disk.front)/state", round % 2 == 0 ? "5" : "6")
                if round % 10_000 == 0 { #expect(try disk.worker.show("stage") == "draining") }
            }
            #expect(try memory() - before < 8192, "kB")
            #expect(try disk.worker.show("in_flight") == "1")
            disk.worker.kill()
            device.dismantle()
            lab.stop()
        }

        @Test func silentClientsKeepNobodyFromTheSocket() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            var clients: [Int32] = []
            for index in 0..<100 {
                let client = try disk.worker.call()
                clients.append(client)
                // Half a line, a line whose answer is not read, nothing.
                let text = ["sho", "show\n", ""][index % 3]
                if !text.isEmpty { _ = write(client, text, text.utf8.count) }
                if index % 10 == 0 { #expect(try disk.worker.ask("ping")["pid"] != nil) }
            }
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            for client in clients { close(client) }
            try lab.finish()
        }
    }
}
