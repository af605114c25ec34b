// SPDX-License-Identifier: BSD-2-Clause
// Who makes noise fills nobody's log and nobody's XenStore.
import Blkfront
import CLinux
import Foundation
import Testing
import Xen

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
