// SPDX-License-Identifier: BSD-2-Clause
// Who makes noise fills nobody's log and nobody's XenStore.
import Blkfront
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct NoiseTests {
        private func lines(_ disk: Disk) -> [Substring] { disk.log.split(separator: "\n") }

        /// A frontend that changes its keys as fast as it can, and how often the worker then changed its error node.
        private func makeNoise(_ disk: Disk, _ lab: Lab, rounds: Int, _ change: (any XenStore, Int) throws -> Void)
            throws -> Int
        {
            let store = try lab.guest.openStore()
            let watcher = try lab.xen.platform().openStore()
            try watcher.watch("/local/domain/0/error/backend/vbd/\(lab.guest.id)/\(disk.number)/error", token: "error")
            var writes = -1
            func count() throws { while try watcher.nextWatchEvent() != nil { writes += 1 } }
            for round in 0..<rounds {
                try change(store, round)
                // What was written is looked at before it changes again: the worst case.
                if round % 8 == 0 { _ = try disk.worker.ask("ping") }
                try count()
            }
            try disk.awaitError("state of the frontend is")
            try count()
            return writes
        }

        @Test func aFrontendOfImpossibleStatesFillsNothing() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            try disk.awaitState(2)
            let writes = try makeNoise(disk, lab, rounds: 3000) { store, round in
                try store.write("\(disk.front)/state", round % 2 == 0 ? "7" : "8")
            }
            let noise = lines(disk).filter { $0.contains("state of the frontend is") }
            #expect(!noise.isEmpty && noise.count < 150, "\(noise.count) lines")
            #expect(writes > 0 && writes < 150, "\(writes) writes")
            // The newest one is what stands there in the end, and what was dropped is told.
            try eventually("the last error") { try disk.error()?.has("is 8") == true }
            try eventually("what was dropped is told", seconds: 40) {
                lines(disk).contains { $0.contains("not logged") }
            }
            try lab.guest.openStore().write("\(disk.front)/state", "1")
            try disk.awaitState(2)
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test(arguments: ["print", "notify"]) func aPluginThatSpamsFillsNoLog(_ attempt: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=\(attempt)"))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<3 { #expect(try queue.status(.read, sector: 0, byteCount: 4096) == 0) }
            }
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try device.close()
            try disk.detach()
            let said = attempt == "print" ? "printed: line 0 of" : "nothing happened"
            #expect(lines(disk).contains { $0.contains(said) })
            #expect(lines(disk).contains { $0.contains("not logged") })
            #expect(lines(disk).count < 300, "\(lines(disk).count) lines")
            try lab.finish()
        }

        @Test func theLastWordsOfALibraryAreKept() throws {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=crash"))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096)
                try queue.publish()
            }
            #expect(try disk.worker.awaitExit() == .signalled(SIGABRT))
            #expect(disk.log.has("the last words of a library"))
            device.dismantle()
            lab.stop()
        }

        /// A guest makes noise, and another one's worker is killed again and again; with a log that is read, and with one
        /// whose reader has stalled. A million changes with XBB_LONG=1 (make test-long).
        @Test(arguments: [true, false]) func theNoiseOfAGuestHarmsNoOtherDisk(isLogRead: Bool) throws {
            let lab = try LibxlLab(options: ["--restart-limit", "1000000", "--restart-window", "1"])
            let reader = isLogRead ? nil : try lab.stallLog()
            let (noisy, other) = (try lab.guest(), try lab.guest())
            let noise = LibxlDisk(guest: noisy.id, params: "raw:\(try lab.image("noisy.img"))")
            let disk = LibxlDisk(guest: other.id, params: "raw:\(try lab.image())")
            #expect(try lab.add(noise).status == 0)
            #expect(try lab.add(disk).status == 0)
            let device = try lab.connect(disk, other)
            let isLong = ProcessInfo.processInfo.environment["XBB_LONG"] == "1"
            let store = try noisy.openStore()
            let started = clinux_monotonic_ns()
            var kills = 0
            try inBackground {
                for round in 0..<(isLong ? 1_000_000 : 10_000) {
                    try store.write("\(noise.front)/state", round % 2 == 0 ? "7" : "8")
                }
            } meanwhile: {
                let worker = try lab.worker(disk)
                #expect(kill(worker, SIGKILL) == 0)
                let load = try verifiedLoad(device, count: 100)
                #expect(load.isGood, "\(load)")
                kills += 1
                // What xbbd says is told to whoever asks, all the time.
                try eventually("another worker") { try lab.worker(disk) != worker }
                usleep(100_000)
            }
            let seconds = Int((clinux_monotonic_ns() - started) / 1_000_000_000)
            #expect(kills > 0)
            // The noisy one has harmed itself, and not for ever.
            try store.write("\(noise.front)/state", "1")
            try lab.awaitState("2", of: noise)
            let second = try lab.connect(noise, noisy)
            #expect(try verifiedLoad(second).isGood)
            if isLogRead {
                let lines = lab.log.split(separator: "\n").filter { $0.contains("xbb-vbd \(noisy.id)/") }
                #expect(lines.count < 150 + 6 * seconds, "\(lines.count) lines in \(seconds) s")
                if isLong { print("noise: \(kills) kills in \(seconds) s; \(lines.count) lines of the noisy disk") }
            }
            for (device, disk) in [(second, noise), (device, disk)] {
                try device.close()
                try lab.remove(disk)
            }
            lab.stop()
            withExtendedLifetime(reader) {}
        }

        @Test func whoDoesNotReadTheLogStopsNoWorker() throws {
            let lab = try Lab()
            let disk = try lab.prepare(51712)
            let path = disk.worker.logPath
            #expect(mkfifo(path, 0o600) == 0)
            let reader = open(path, O_RDONLY | O_NONBLOCK)
            try disk.startWorker(["--log-level", "debug"])
            let device = try disk.connect()
            // Far more than a pipe holds: each change of a tunable is a line, and so is each event.
            for value in 0..<3000 { try disk.worker.set("poll_us", value % 2) }
            #expect(try disk.load(device) { $0.count = 200 }.isGood)
            try device.close()
            try disk.detach()
            close(reader)
            unlink(path)
            try lab.finish()
        }
    }
}
