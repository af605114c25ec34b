// SPDX-License-Identifier: BSD-2-Clause
// Servers that end, hang and come back, and workers that die: what the guest sees of it, and what nobody may see.
import Blkfront
import Blkif
import CLinux
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct NBDRecoveryTests {
        /// A server that holds the first write until a file is there, and says in another one what it does, in order.
        private static let holding = [
            "eval", "get_size=echo 16M", "thread_model=echo parallel", "can_flush=exit 0", "can_multi_conn=exit 0",
            "pread=dd if='IMAGE' iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=64k status=none",
            """
            pwrite=if mkdir 'BASE.first' 2>/dev/null; then
                echo begins $4 >>'BASE.order'; while ! [ -e 'BASE.gate' ]; do sleep 0.02; done
            fi
            dd of='IMAGE' oflag=seek_bytes conv=notrunc seek=$4 bs=64k status=none && echo ended $4 >>'BASE.order'
            """,
        ]

        private final class Held {
            let lab: NBDLab
            let server: NBDServer
            let device: FrontDevice

            init(_ options: String = "", queues: Int = 1) throws {
                lab = try NBDLab(options: ["--stall-time", "1"])
                server = try lab.serve(.nbdkit, .unix, NBDRecoveryTests.holding)
                device = try lab.disk(server, "xvda", options) { $0.queues = queues }
            }

            private func path(_ name: String) -> String { "\(lab.directory)/1.\(name)" }
            func open() { _ = FileManager.default.createFile(atPath: path("gate"), contents: nil) }
            /// What the server has done, in order.
            var order: [String] {
                ((try? String(contentsOfFile: path("order"), encoding: .utf8)) ?? "").split(separator: "\n").map(
                    String.init)
            }
            /// The guest sends a write, which the server takes and does not do.
            func begin(_ byte: UInt8) throws -> Int {
                let id = try device.queues[0].withQueue { (queue) throws in
                    let id = try queue.slot()
                    queue.buffer(of: id)[0..<4096].initializeMemory(as: UInt8.self, repeating: byte)
                    try queue.submit(id, .write, sector: 8, byteCount: 4096)
                    try queue.publish()
                    return id
                }
                try eventually("the server has the write; \(lab.lab.log)") { order == ["begins 4096"] }
                return id
            }
            func awaitAnswer() throws {
                try device.queues[0].withQueue { (queue) throws in
                    let completion = try queue.next()
                    #expect(completion.status == 0, "\(lab.lab.log)")
                    queue.release(completion.id)
                }
            }
            func write(_ byte: UInt8) throws {
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: byte) == 0)
                }
            }
            /// What the server's image has where the guest writes.
            func content() throws -> Set<UInt8> {
                let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: lab.image()))
                try file.seek(toOffset: 4096)
                return Set(try file.read(upToCount: 4096) ?? Data())
            }
        }

        // MARK: The fence

        /// A write of the dead process that is still at the server: nothing is sent before it has ended, and nothing old comes after.
        @Test func anOldWriteIsNeverDoneAfterANewOne() throws {
            let held = try Held()
            _ = try held.begin(0xaa)
            try held.lab.killWorker()
            try held.lab.awaitLog("has not yet done 1 of the writes that the process before had asked of it")
            // Another one dies while it waits: the next one waits as well.
            try held.lab.killWorker()
            try held.lab.awaitLog("has not yet done 1 of the writes that the process before had asked of it", times: 2)
            try eventually("it is told where an operator looks") {
                try held.lab.control("list").text.has("has not yet done 1 of the writes")
            }
            #expect(held.order == ["begins 4096"], "something was sent")
            held.open()
            try held.awaitAnswer()
            try held.write(0xbb)
            #expect(held.order == ["begins 4096", "ended 4096", "ended 4096", "ended 4096"])
            #expect(try held.content() == [0xbb])
            try held.lab.finish(held.device)
        }

        /// A connection that breaks while the worker lives, with a write that the server had not yet done: it is done by the next server,
        /// by the next worker.
        @Test func aWriteOfABrokenConnectionIsDoneByTheNextOne() throws {
            let lab = try NBDLab()
            let server = try lab.serve(
                .nbdkit, .unix,
                ["--filter=log", "--filter=delay", "file", "IMAGE", "delay-write=600"] + NBDServer.logging)
            let device = try lab.disk(server)
            let worker = try lab.worker()
            try device.queues[0].withQueue { (queue) throws in
                let id = try queue.slot()
                queue.buffer(of: id)[0..<4096].initializeMemory(as: UInt8.self, repeating: 0xaa)
                try queue.submit(id, .write, sector: 8, byteCount: 4096)
                try queue.publish()
            }
            try eventually("the server has the write; \(lab.lab.log)") {
                server.requests.contains { $0.has("Write id=") }
            }
            server.end(SIGKILL)
            server.words = ["file", lab.image()]
            try server.start()
            try device.queues[0].withQueue { (queue) throws in
                let completion = try queue.next()
                #expect(completion.status == 0, "\(lab.lab.log)")
                queue.release(completion.id)
                #expect(try queue.read(sector: 8, byteCount: 4096).bytes.allSatisfy { $0 == 0xaa })
            }
            #expect(try lab.worker() != worker)
            #expect(lab.lab.log.has("the connection to the storage is gone: the next process opens it anew"))
            try lab.finish(device)
        }

        /// xbbd and the worker die at once, and with them the connections: nobody can tell what the server still does.
        @Test func withoutConnectionsTheGuestWaits() throws {
            let held = try Held()
            _ = try held.begin(0xaa)
            let worker = try held.lab.worker()
            held.lab.lab.killDaemon()
            kill(worker, SIGKILL)
            try held.lab.lab.start()
            try held.lab.awaitLog("the guest waits; 'xbbctl detach --force' takes the disk away")
            // Nor does one that follows on the one that waits.
            let waiting = try held.lab.worker()
            kill(waiting, SIGKILL)
            try held.lab.awaitLog("the guest waits; 'xbbctl detach --force' takes the disk away", times: 2)
            try eventually("it is told where an operator looks") {
                let list = try held.lab.control("list").text
                return list.has("stalled") && list.has("may still be doing writes of the process before")
            }
            held.open()
            try eventually("the old write lands") { held.order == ["begins 4096", "ended 4096"] }
            #expect(try held.lab.key("state") == "4")
            #expect(try held.lab.control("detach \(held.lab.guest.id) xvda --force").status == 0)
            #expect(held.order == ["begins 4096", "ended 4096"], "something was sent")
            held.device.dismantle()
            held.lab.lab.stop()
        }

        /// The same with a time after which nothing of it can come any more, as the administrator says.
        @Test func afterTheFenceTimeoutItGoesOn() throws {
            let held = try Held("--option fence-timeout=2")
            _ = try held.begin(0xaa)
            let worker = try held.lab.worker()
            held.lab.lab.killDaemon()
            kill(worker, SIGKILL)
            // What the operator promised.
            held.open()
            try eventually("the old write lands") { held.order == ["begins 4096", "ended 4096"] }
            try held.lab.lab.start()
            try held.lab.awaitLog("they count as done in 2 s (option fence-timeout)")
            try held.awaitAnswer()
            try held.write(0xbb)
            #expect(try held.content() == [0xbb])
            try held.lab.finish(held.device)
        }

        /// An upgrade has nothing to wait for: the worker ends its requests first, and says farewell.
        @Test func aHandOverWaitsForNothing() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["--filter=log", "file", "IMAGE"] + NBDServer.logging)
            let device = try lab.disk(server, "xvda", "--option fence-timeout=60")
            for _ in 0..<2 {
                #expect(try LoadRun(device, mixedPlan { $0.count = 100 }).run().isGood)
                let before = try lab.worker()
                #expect(try lab.control("upgrade \(lab.guest.id) xvda").status == 0)
                try lab.awaitWorker(after: before)
            }
            #expect(try LoadRun(device, mixedPlan { $0.count = 100 }).run().isGood)
            #expect(!lab.lab.log.has("fence-timeout") && !lab.lab.log.has("requests in flight"), "\(lab.lab.log)")
            try lab.finish(device)
        }

        /// A pause promises that what was answered is durable: the server is asked to flush, on whatever connection there is.
        @Test(arguments: ["disable", "emulate"]) func aPauseFlushes(_ connections: String) throws {
            let lab = try NBDLab()
            let server = try lab.serve(
                .nbdkit, .unix,
                ["--filter=log", "--filter=multi-conn", "file", "IMAGE", "multi-conn-mode=\(connections)"]
                    + NBDServer.logging)
            let device = try lab.disk(server)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 7) == 0)
            }
            func flushes() -> Int { server.requests.count { $0.has(" Flush id=") } }
            let before = flushes()
            for round in 1...2 {
                let paused = try lab.control("pause \(lab.guest.id) xvda")
                #expect(paused.status == 0, "\(paused.text)")
                #expect(flushes() == before + round)
                #expect(try lab.control("resume \(lab.guest.id) xvda").status == 0)
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.read, sector: 8, byteCount: 4096) == 0)
                }
            }
            try lab.finish(device)
        }

        /// The fence holds where an administrator has the storage released while a successor cannot reach the server.
        @Test func aReleaseDoesNotForgetWhatADeadProcessHasSent() throws {
            let held = try Held()
            _ = try held.begin(0xaa)
            // Nobody can connect; what is connected stays.
            let (socket, away) = (held.server.socket, held.server.socket + ".away")
            #expect(rename(socket, away) == 0)
            try held.lab.killWorker()
            try held.lab.awaitLog("cannot connect to")
            let released = try held.lab.control("pause \(held.lab.guest.id) xvda --release")
            #expect(rename(away, socket) == 0)
            if released.status == 0 { #expect(try held.lab.control("resume \(held.lab.guest.id) xvda").status == 0) }
            try held.lab.awaitLog("has not yet done 1 of the writes that the process before had asked of it")
            #expect(held.order == ["begins 4096"], "something was sent")
            held.open()
            try held.awaitAnswer()
            try held.write(0xbb)
            #expect(try held.content() == [0xbb])
            try held.lab.finish(held.device)
        }

        // MARK: Under load

        /// A verified load on which `disturb` acts four times, always when a worker serves.
        private func survives(
            _ lab: NBDLab, _ device: FrontDevice, times: Int = 4, _ disturb: (Int) throws -> Void
        ) throws {
            var done = 0
            repeat {
                let report = try inBackground({ try LoadRun(device, mixedPlan { $0.duration = 1_000_000_000 }).run() })
                {
                    guard done < times, lab.lab.log.components(separatedBy: "connected to domain").count > done + 1
                    else { return }
                    // With requests in flight, as a rule.
                    usleep(100_000)
                    try disturb(done)
                    done += 1
                }
                #expect(report.isGood, "\(report.text) \(lab.lab.log.suffix(4000))")
                if !report.isGood { break }
            } while done < times
        }

        /// Whichever way a server ends, it comes back, and the guest sees no error and no wrong data.
        @Test(arguments: ["nbdkit", "qemu-nbd"]) func aServerMayBeRestarted(_ name: String) throws {
            let lab = try NBDLab()
            let server =
                name == "nbdkit"
                ? try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
                : try lab.serve(.qemuNBD, .tcp("127.0.0.1"), ["-e", "8", "-f", "raw", "IMAGE"])
            let device = try lab.disk(server) { $0.queues = 2 }
            try survives(lab, device) { time in
                server.end(time % 2 == 0 ? SIGTERM : SIGKILL)
                try server.start()
            }
            try lab.finish(device)
        }

        /// The last two serve one request or one connection at a time, as nbdkit does with scripting languages: a connection that is
        /// negotiated may be in the way of what the dead process had asked for, and the other way round.
        @Test(arguments: ["nbdkit", "qemu-nbd", "all-requests", "connections"])
        func aWorkerMayDie(_ name: String) throws {
            let lab = try NBDLab()
            let server =
                switch name {
                case "nbdkit": try lab.serve(.nbdkit, .tcp("127.0.0.1"), ["file", "IMAGE"])
                case "qemu-nbd": try lab.serve(.qemuNBD, .unix, ["-e", "8", "-f", "raw", "IMAGE"])
                default:
                    try lab.serve(
                        .nbdkit, .unix,
                        [
                            "--filter=noparallel", "--filter=delay", "file", "IMAGE", "delay-write=1ms",
                            "serialize=\(name)",
                        ])
                }
            let device = try lab.disk(server) { $0.queues = 2 }
            try survives(lab, device) { _ in
                let process = try lab.worker()
                kill(process, SIGKILL)
                try lab.awaitWorker(after: process)
            }
            try lab.finish(device)
        }

        /// A worker that dies with nothing under way: its connection is in nobody's way, also at a server that serves one at a time.
        @Test(arguments: [["--filter=noparallel", "serialize=connections"], ["--filter=limit", "limit=1"]])
        func anIdleWorkerMayDie(_ words: [String]) throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, [words[0], "file", "IMAGE", words[1]])
            let device = try lab.disk(server)
            for _ in 0..<3 {
                #expect(try LoadRun(device, mixedPlan { $0.count = 50 }).run().isGood)
                let worker = try lab.worker()
                kill(worker, SIGKILL)
                try lab.awaitWorker(after: worker)
            }
            #expect(try LoadRun(device, mixedPlan { $0.count = 50 }).run().isGood)
            try lab.finish(device)
        }

        /// A server that has become slower than `connect-timeout` allows: a guest that has the disk waits, and the operator sees for what.
        @Test func aServerThatBecomesSlowIsWaitedFor() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let device = try lab.disk(server, "xvda", "--option connect-timeout=1")
            #expect(try LoadRun(device, mixedPlan { $0.count = 100 }).run().isGood)
            server.end(SIGKILL)
            server.words = ["--filter=delay", "file", lab.image(), "delay-open=8"]
            try server.start()
            try lab.awaitLog("does not answer in the handshake; the guest waits until it does")
            try eventually("it is told where an operator looks") {
                try lab.control("list").text.has("does not answer in the handshake")
            }
            #expect(try LoadRun(device, mixedPlan { $0.count = 100 }).run().isGood)
            #expect(!lab.lab.log.has("did not answer within"), "\(lab.lab.log)")
            try eventually("it is not told any more") {
                try !lab.control("list").text.has("does not answer in the handshake")
            }
            try lab.finish(device)
        }

        /// A server that is gone is waited for, as long as it takes; what the disk waits for is told, and it can be taken away meanwhile.
        @Test func aServerThatIsGoneIsWaitedFor() throws {
            let lab = try NBDLab()
            let server = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let second = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let (device, other) = (try lab.disk(server, "xvda"), try lab.disk(second, "xvdb"))
            server.end(SIGKILL)
            second.end(SIGKILL)
            try device.queues[0].withQueue { (queue) throws in
                let id = try queue.slot()
                queue.buffer(of: id)[0..<4096].initializeMemory(as: UInt8.self, repeating: 9)
                try queue.submit(id, .write, sector: 8, byteCount: 4096)
                try queue.publish()
            }
            try eventually("it is told; \(try lab.control("list").text)") {
                let list = try lab.control("list").text
                return list.components(separatedBy: "cannot connect to nbd+unix").count > 2
            }
            // One of the two is taken away.
            #expect(try lab.control("detach \(lab.guest.id) xvdb --force").status == 0)
            #expect(try lab.key("state") == "4")
            try server.start()
            try device.queues[0].withQueue { (queue) throws in
                let completion = try queue.next()
                #expect(completion.status == 0, "\(lab.lab.log)")
                queue.release(completion.id)
                #expect(try queue.read(sector: 8, byteCount: 4096).bytes.allSatisfy { $0 == 9 })
            }
            #expect(try !lab.control("list").text.has("cannot connect"))
            other.dismantle()
            try lab.finish(device)
        }

        /// A server that hangs is not one that is gone: the guest waits, and it is told.
        @Test func aServerThatHangsIsWaitedFor() throws {
            let lab = try NBDLab(options: ["--stall-time", "1"])
            let server = try lab.serve(.nbdkit, .unix, ["file", "IMAGE"])
            let device = try lab.disk(server)
            let worker = try lab.worker()
            server.signal(SIGSTOP)
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096)
                try queue.publish()
            }
            try eventually("it is told") { try lab.control("list").text.has("stalled") }
            server.signal(SIGCONT)
            try device.queues[0].withQueue { (queue) throws in
                let completion = try queue.next()
                #expect(completion.status == 0)
                queue.release(completion.id)
            }
            #expect(try lab.worker() == worker)
            try lab.finish(device)
        }

        /// xbbd ends and begins anew beside a worker that serves: the connections go to the next worker all the same.
        @Test func theNextXbbdHasTheConnections() throws {
            let held = try Held()
            _ = try held.begin(0xaa)
            let worker = try held.lab.worker()
            held.lab.lab.killDaemon()
            try held.lab.lab.start()
            try eventually("the worker is adopted; log: \(held.lab.lab.log)") { try held.lab.lab.worker() == worker }
            try held.lab.killWorker()
            try held.lab.awaitLog("has not yet done 1 of the writes")
            held.open()
            try held.awaitAnswer()
            try held.write(0xbb)
            #expect(try held.content() == [0xbb])
            try held.lab.finish(held.device)
        }
    }
}
