// SPDX-License-Identifier: BSD-2-Clause
// What the storage cannot do is told where operators look, and a disk without space may wait for some.
import Base
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct StorageErrorTests {
        /// Sends writes of 4 KiB one after the other, and counts those that failed.
        private func write(_ device: FrontDevice, count: Int, from sector: UInt64 = 8) throws -> Int {
            try device.queues[0].withQueue { (queue) throws in
                try (0..<count).reduce(0) { failed, number in
                    let status = try queue.status(
                        .write, sector: sector + UInt64(number % 64) * 8, byteCount: 4096, fill: 7)
                    return failed + (status == 0 ? 0 : 1)
                }
            }
        }

        /// One write in the ring, unanswered.
        private func begin(_ device: FrontDevice, sector: UInt64) throws -> Int {
            try device.queues[0].withQueue { (queue) throws in
                let id = try queue.slot()
                queue.buffer(of: id)[0..<4096].initializeMemory(as: UInt8.self, repeating: 9)
                try queue.submit(id, .write, sector: sector, byteCount: 4096)
                try queue.publish()
                return id
            }
        }

        private func stopped(_ disk: Disk) throws -> [String: Any]? {
            try disk.worker.ask("show")["stopped"] as? [String: Any]
        }

        private func awaitStopped(_ disk: Disk, requests: Int) throws {
            try eventually("\(requests) requests that wait: \(disk.log.suffix(2000))") {
                try stopped(disk)?["requests"] as? Int == requests
            }
        }

        /// The kernel tells an error of writing back to one sync alone, and what it says of may be the data of every flush that is there.
        @Test(arguments: ["off", "on"])
        func allFlushesFailWithOne(direct: String) throws {
            let lab = try Lab()
            let sync = try FailingSync(in: lab.directory)
            let image = try lab.image("disk", bytes: 4 << 20)
            let disk = try lab.attach(
                51712, Storage(path: image, format: "raw", options: "direct=\(direct)"),
                arguments: ["--max-queues", "4"], environment: sync.environment)
            let device = try disk.connect { $0.queues = 4 }
            #expect(device.queues.count == 4)
            func flush(_ index: Int) throws -> Int {
                try device.queues[index].withQueue { (queue) throws in
                    let id = try queue.slot()
                    try queue.submit(id, .flush, sector: 0, byteCount: 0)
                    try queue.publish()
                    return id
                }
            }
            func finish(_ index: Int, _ id: Int) throws -> Int16 {
                try device.queues[index].withQueue { (queue) throws in try queue.finish(id) }
            }
            for index in 0..<4 { #expect(try finish(index, flush(index)) == 0) }
            try sync.set(.failsOnce)
            let first = try flush(0)
            try eventually("the first flush is at it") { try sync.mode() == .isFailing }
            let before = try disk.worker.total("reqs_received")
            let others = try (1..<4).map { ($0, try flush($0)) }
            try eventually("the others were taken") {
                try disk.worker.total("reqs_received") == before + others.count
            }
            // From there it is not far to the threads that do them.
            usleep(200_000)
            try sync.set(.works)
            #expect(try finish(0, first) != 0)
            for (index, id) in others { #expect(try finish(index, id) != 0) }
            // It was told to all who could have lost something.
            for index in 0..<4 { #expect(try finish(index, flush(index)) == 0) }
            try device.close()
            try disk.detach()
            try lab.finish()
        }

        @Test func anErrorOfTheStorageIsTold() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("error", "size=16M,op=write,error=enospc"))
            let device = try disk.connect()
            #expect(try write(device, count: 400) == 400)
            let line = "failed in plugin 'error': No space left on device (ENOSPC)"
            #expect(disk.log.has("queue 0: write of 4096 bytes at sector 8 \(line)"), "\(disk.log.suffix(3000))")
            // What was not logged is counted, and told in the end.
            try eventually("a summary") { disk.log.has("errors of the storage were not logged; all: write ENOSPC 400") }
            #expect(disk.log.components(separatedBy: line).count < 60)
            let show = try disk.worker.ask("show")
            let last = try #require(show["last_error"] as? [String: Any])
            #expect(last["errno"] as? String == "ENOSPC" && last["operation"] as? String == "write")
            #expect(last["text"] as? String == "No space left on device" && last["sectors"] as? Int == 8)
            #expect(last["sector"] as? Int == 8 + 399 % 64 * 8)
            let seconds = try #require(last["time"] as? Int)
            #expect(abs(seconds - Int(Date().timeIntervalSince1970)) < 600)
            let counts = try #require(try disk.worker.ask("stats")["errors"] as? [[String: Any]])
            #expect(counts.count == 1 && counts[0]["count"] as? Int == 400)
            try disk.awaitError("the storage failed: write of 4096 bytes at sector")
            try eventually("a line for xbbctl list") {
                try disk.key("xbb-trouble")?.has("400 errors of the storage, the last at") ?? false
            }
            // What the guest does wrong is something else.
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.read, sector: 1 << 30, byteCount: 4096) != 0)
            }
            #expect(try disk.worker.total("rejected_requests") == 1 && disk.worker.total("plugin_errors") == 400)
            try device.close()
            try lab.finish()
        }

        /// A sparse image in a file system without room for it, and a way to make room.
        private final class SmallPlace {
            let folder: String
            let storage: Storage
            init(_ lab: Lab) throws {
                folder = "\(lab.directory)/small"
                mkdir(folder, 0o755)
                try LibxlLab.shell("mount -t tmpfs -o size=2m tmpfs '\(folder)'")
                storage = Storage(path: try lab.image("small/image", bytes: 16 << 20))
            }
            func makeRoom() throws { try LibxlLab.shell("mount -o remount,size=32m '\(folder)'") }
            deinit { _ = try? LibxlLab.shell("umount -l '\(folder)'") }
        }

        /// Fills what there is, and leaves one write waiting.
        private func fill(_ lab: Lab, _ disk: Disk, _ device: FrontDevice) throws -> Int {
            #expect(try disk.worker.ask("set on_enospc stop")["error"] == nil)
            try LibxlLab.shell("dd if=/dev/zero of='\(lab.directory)/small/rest' bs=4k status=none 2>/dev/null || true")
            let id = try begin(device, sector: 16384)
            try awaitStopped(disk, requests: 1)
            return id
        }

        private func finish(_ device: FrontDevice, _ id: Int) throws -> Int16 {
            try device.queues[0].withQueue { (queue) throws in try queue.finish(id) }
        }

        @Test(.enabled(if: geteuid() == 0, "mounting takes root"))
        func aDiskWithoutSpaceWaitsForSome() throws {
            let lab = try Lab()
            let place = try SmallPlace(lab)
            let disk = try lab.attach(51712, place.storage)
            let device = try disk.connect()
            let id = try fill(lab, disk, device)
            #expect(disk.log.has("stopped: no space"))
            try eventually("a line for xbbctl list") {
                try disk.key("xbb-trouble")?.has("stopped: no space, 1 requests wait since 20") ?? false
            }
            // Reads go on, and what is tried in vain stays.
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.read, sector: 0, byteCount: 4096) == 0)
            }
            #expect(try disk.worker.ask("resume")["tried_again"] as? Int == 1)
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try awaitStopped(disk, requests: 1)
            try place.makeRoom()
            #expect(try disk.worker.ask("resume")["tried_again"] as? Int == 1)
            #expect(try finish(device, id) == 0)
            try eventually("the end of it") { try stopped(disk) == nil && disk.log.has("goes on") }
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.read(sector: 16384, byteCount: 4096).bytes.allSatisfy { $0 == 9 })
            }
            #expect(try disk.worker.total("held_requests") == 1 && disk.worker.total("reqs_completed_with_error") == 0)
            try device.close()
            try lab.finish()
        }

        /// How the worker goes while a request waits for space.
        @Test(.enabled(if: geteuid() == 0, "mounting takes root"), arguments: ["hand-over", "kill"])
        func whatWaitsForSpaceIsASuccessors(_ end: String) throws {
            let lab = try Lab()
            let place = try SmallPlace(lab)
            let succession = try Succession(lab, place.storage)
            let disk = succession.disk
            let device = try disk.connect()
            let id = try fill(lab, disk, device)
            for _ in 0..<2 {
                if end == "hand-over" {
                    try succession.handOver()
                } else {
                    disk.worker.kill()
                    try succession.start(["--predecessor", "killed:signal 9"])
                }
                // The setting and the request have come over.
                try awaitStopped(disk, requests: 1)
            }
            try place.makeRoom()
            #expect(try disk.worker.ask("resume")["tried_again"] as? Int == 1)
            #expect(try finish(device, id) == 0)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.read(sector: 16384, byteCount: 4096).bytes.allSatisfy { $0 == 9 })
            }
            #expect(try disk.worker.total("reqs_completed_with_error") == 0)
            try device.close()
            try lab.finish()
        }

        @Test(.enabled(if: geteuid() == 0, "mounting takes root"), arguments: ["removed", "closing", "report"])
        func whatWaitsForSpaceFailsWhenNobodyGoesOn(_ end: String) throws {
            let lab = try Lab()
            let place = try SmallPlace(lab)
            let disk = try lab.attach(51712, place.storage)
            let device = try disk.connect()
            let id = try fill(lab, disk, device)
            switch end {
            case "removed": try lab.toolstack.remove(disk.back, in: .none)
            case "closing": try lab.toolstack.write("\(disk.front)/state", "5")
            default: #expect(try disk.worker.ask("set on_enospc report")["error"] == nil)
            }
            #expect(try finish(device, id) == -1)
            if end == "removed" {
                #expect(try disk.worker.awaitExit() == .exited(0))
            }
            // A guest whose backend is gone lets its rings go, too.
            do { try device.close() } catch { #expect(end == "removed") }
            try lab.finish()
        }

        /// A pause is complete while requests wait for space, and the disk goes in every way.
        @Test(
            .enabled(if: geteuid() == 0, "mounting takes root"),
            arguments: ["resume", "hand-over", "kill", "removed", "closing", "report"])
        func aPauseIsCompleteWhileRequestsWaitForSpace(_ end: String) throws {
            let lab = try Lab()
            let place = try SmallPlace(lab)
            let succession = try Succession(lab, place.storage)
            let disk = succession.disk
            let device = try disk.connect()
            let id = try fill(lab, disk, device)
            #expect(try disk.worker.ask("pause 600 brief")["paused"] as? Bool == true)
            #expect(try disk.worker.show("intake") == "paused")
            try awaitStopped(disk, requests: 1)
            switch end {
            case "resume", "hand-over", "kill":
                if end == "hand-over" { try succession.handOver() }
                if end == "kill" {
                    disk.worker.kill()
                    try succession.start(["--predecessor", "killed:signal 9"])
                }
                if end != "resume" { try awaitStopped(disk, requests: 1) }
                try place.makeRoom()
                #expect(try disk.worker.ask("resume")["tried_again"] as? Int == 1)
                #expect(try finish(device, id) == 0)
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.read(sector: 16384, byteCount: 4096).bytes.allSatisfy { $0 == 9 })
                }
            case "removed":
                try lab.toolstack.remove(disk.back, in: .none)
                #expect(try finish(device, id) == -1)
                #expect(try disk.worker.awaitExit() == .exited(0))
            case "closing":
                try lab.toolstack.write("\(disk.front)/state", "5")
                #expect(try finish(device, id) == -1)
            default:
                #expect(try disk.worker.ask("set on_enospc report")["error"] == nil)
                #expect(try finish(device, id) == -1)
                #expect(try disk.worker.show("intake") == "paused")
            }
            do { try device.close() } catch { #expect(end == "removed") }
            try lab.finish()
        }

        @Test func countersAndSettingsSurviveTheWorker() throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            let disk = succession.disk
            let device = try disk.connect()
            #expect(try disk.worker.ask("set flush_interval 5")["error"] == nil)
            var expected = 0
            for round in 0..<4 {
                #expect(try disk.load(device) { $0.count = 50 }.isGood)
                let completed = try disk.worker.total("reqs_completed")
                #expect(completed >= expected + 50, "round \(round)")
                expected = completed
                if round % 2 == 0 {
                    disk.worker.kill()
                    try succession.start(["--predecessor", "killed:signal 9"])
                } else {
                    try succession.handOver()
                }
                try eventually("the successor") { try disk.worker.show("stage") == "connected" }
                #expect(try disk.worker.total("reqs_completed") == expected)
                #expect(try disk.worker.total("reqs_received") == expected)
                #expect(try disk.worker.show("in_flight") == "0")
                let tunables = try #require(try disk.worker.ask("show")["tunables"] as? [String: Any])
                #expect(tunables["flush_interval"] as? Int == 5)
                let latencies = try #require(try disk.worker.ask("stats")["latency_ns"] as? [String: [String: Any]])
                let counted = latencies.values.reduce(0) { $0 + ($1["count"] as? Int ?? 0) }
                #expect(counted == expected)
            }
            try device.close()
            // Another disk of the same numbers, with the file still there.
            try disk.detach()
            try lab.toolstack.remove(disk.back, in: .none)
            try disk.makeNodes()
            try succession.start()
            try eventually("the storage") { try disk.worker.show("stage") == "ready" }
            #expect(try disk.worker.total("reqs_completed") == 0)
            let tunables = try #require(try disk.worker.ask("show")["tunables"] as? [String: Any])
            #expect(tunables["flush_interval"] as? Int == 0)
            try lab.finish()
        }

        @Test(arguments: [0, 100, 4096, 9000])
        func damagedStatisticsBeginAtZero(bytes: Int) throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            let disk = succession.disk
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            disk.worker.kill()
            #expect(truncate("\(lab.directory)/51712.stats", off_t(bytes)) == 0)
            try succession.start(["--predecessor", "killed:signal 9"])
            try eventually("the successor") { try disk.worker.show("stage") == "connected" }
            #expect(try disk.worker.total("reqs_completed") == 0)
            #expect(disk.log.has("they begin at zero"))
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test func theReasonOfADiskThatIsNotServedIsShown() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, Storage(path: "\(lab.directory)/missing.img"))
            try disk.awaitError("missing.img")
            #expect(try disk.worker.show("problem").has("missing.img: No such file or directory"))
            _ = FileManager.default.createFile(atPath: "\(lab.directory)/there.img", contents: Data(count: 1 << 20))
            try disk.exchange("\(lab.directory)/there.img")
            try eventually("the image is open") { try disk.worker.show("stage") == "ready" }
            try disk.connect().close()
            #expect(try disk.worker.show("problem") == "<null>")
            try lab.finish()
        }
    }
}
