// SPDX-License-Identifier: BSD-2-Clause
// The real xbbd with fake workers.
import BlockQueue
import PluginHost
import Base
import CLinux
import Glibc
import Testing
import Xen

@testable import XBBControl
import Support

@Suite struct SupervisorTests {
    @Test("a worker for each VBD, from its node to its end") func lives() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon(["--backend", "vbd", "--backend", "qdisk", "--plugin-dir", "/p1", "--plugin-dir", "/p2"])
        let second = try lab.makeNode(2, 51728, kind: "qdisk")
        try eventually("both are taken") {
            try lab.row("vbd/1/51712")?["state"]?.string == "initWait"
                && lab.row("qdisk/2/51728")?["state"]?.string == "initWait"
        }
        let shown = try lab.ask(.show(try #require(VBDReference(parsing: "2/51728"))))
        var arguments = (shown["arguments"]?.elements ?? []).compactMap(\.string)
        // A user of the disk's own.
        let place = try #require(arguments.firstIndex(of: "--uid"))
        #expect((1_879_048_192...1_879_113_727).contains(try #require(Int(arguments[place + 1]))))
        arguments.removeSubrange(place...(place + 1))
        #expect(
            Array(arguments.dropFirst()) == [
                "--backend-path", "/local/domain/0/backend/qdisk/2/51728", "--loopback", lab.root + "/xen",
                "--plugin-dir", "/p1", "--plugin-dir", "/p2", "--control", lab.run + "/vbd-qdisk-2-51728.sock",
                "--empty-dir", lab.run + "/empty", "--journal", lab.run + "/vbd-qdisk-2-51728.journal", "--lock", "3",
                "--storage", "5", "--storage-source", "params", "--log-level", "info", "--state-dir", lab.root + "/xen",
            ])
        #expect(shown["request"]?.string == "show")
        let stats = try lab.ask(.stats(try #require(VBDReference(parsing: "vbd/1/51712"))))
        #expect(stats["request"]?.string == "stats")
        let set = try lab.ask(
            .set(
                try #require(VBDReference(parsing: "1/51712")),
                [TunableSetting(key: "poll_us", value: "9"), TunableSetting(key: "flush_interval", value: "2")]))
        #expect(set["request"]?.string == "set poll_us 9 flush_interval 2")
        try lab.store.remove(second.backendPath(own: 0), in: .none)
        try eventually("the second is forgotten") { try lab.row("qdisk/2/51728") == nil }
        #expect(access(lab.run + "/vbd-qdisk-2-51728.lock", F_OK) != 0)
        #expect(lab.starts.count == 2)
    }

    @Test("workers go on without xbbd, and the next one takes them over", arguments: [SIGTERM, SIGINT, SIGKILL])
    func takeOver(_ signal: Int32) throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51744", "mute")
        for device in [51712, 51728, 51744] as [UInt32] { _ = try lab.makeNode(1, device) }
        let first = try lab.startDaemon()
        try eventually("all are started") { lab.starts.count == 3 }
        first.process.send(signal)
        #expect(first.wait() == (signal == SIGKILL ? .signalled(SIGKILL) : .clean))
        // One ends while nobody watches.
        kill(try #require(lab.worker("vbd-1-51728")), SIGTERM)
        try eventually("its lock is free") {
            if case .taken = try FileLock.attempt(lab.run + "/vbd-vbd-1-51728.lock") { true } else { false }
        }
        try lab.startDaemon()
        try eventually("a new worker for the one that ended") { lab.starts.count == 4 }
        #expect(try lab.row("vbd/1/51712")?["worker"]?.string == "adopted")
        #expect(try lab.row("vbd/1/51728")?["worker"]?.string == "running")
        #expect(try lab.row("vbd/1/51744")?["worker"]?.string == "adopted")
        #expect(try lab.row("vbd/1/51712")?["pid"]?.unsigned == lab.worker("vbd-1-51712").map { UInt64($0) })
        // An adopted worker that ends is followed by another.
        kill(try #require(lab.worker("vbd-1-51712")), SIGKILL)
        try eventually("a worker after the adopted one") { lab.starts.count == 5 }
        #expect(lab.starts.last?.hasSuffix(" vbd-1-51712") == true)
    }

    @Test("files of disks that are gone are removed at the start; those of a process that lives, when it has ended")
    func leftovers() throws {
        let lab = try DaemonLab()
        let address = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        lab.killDaemons()
        for name in ["vbd-9-51712", "qdisk-9-51728", "vbd3-2-5"] {
            for ending in ["lock", "sock", "journal", "stats", "log"] { lab.put("run/vbd-\(name).\(ending)", "") }
        }
        let others = ["vbd-x", "vbd-vbd-9-51712.other", "vbd-vbd-9-05.lock", "other.lock", "vbd-vbd-9-9-9.lock"]
        for name in others { lab.put("run/\(name)", "") }
        guard case .taken(let held) = try FileLock.attempt(lab.run + "/vbd-vbd3-2-5.lock") else {
            throw ControlError("the lock is not free")
        }
        func isThere(_ name: String) -> Bool { access("\(lab.run)/\(name)", F_OK) == 0 }
        try lab.startDaemon()
        for ending in ["lock", "sock", "journal", "stats", "log"] {
            #expect(!isThere("vbd-vbd-9-51712.\(ending)") && !isThere("vbd-qdisk-9-51728.\(ending)"), "\(ending)")
            #expect(isThere("vbd-vbd3-2-5.\(ending)"), "\(ending)")
        }
        for name in others { #expect(isThere(name), "\(name) is not ours") }
        // The disk that there is keeps its own, and its worker.
        #expect(isThere("vbd-\(address.fileName).lock") && isThere("vbd-\(address.fileName).sock"))
        #expect(try lab.row("vbd/1/51712")?["worker"]?.string == "adopted")
        flock(held.file.raw, LOCK_UN)
        try eventually("the rest is removed") { !isThere("vbd-vbd3-2-5.lock") && !isThere("vbd-vbd3-2-5.log") }
    }

    @Test("with --stop-workers they are told to hand over") func stopWorkers() throws {
        let lab = try DaemonLab()
        for device in [51712, 51728] as [UInt32] { _ = try lab.makeNode(1, device) }
        let daemon = try lab.startDaemon(["--stop-workers"])
        try eventually("both are taken") {
            try lab.row("vbd/1/51712")?["state"]?.string == "initWait"
                && lab.row("vbd/1/51728")?["state"]?.string == "initWait"
        }
        daemon.process.send(SIGTERM)
        #expect(daemon.wait() == .clean)
        for name in ["vbd-1-51712", "vbd-1-51728"] {
            #expect(ProcessIdentity(running: try #require(lab.worker(name))) == nil)
        }
        #expect(lab.starts.count == 2)
        #expect(access(lab.socket, F_OK) != 0)
    }

    @Test("failing workers wait longer and longer, and others do not", arguments: ["exit 1", "crash"])
    func backOff(_ word: String) throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", word)
        for device in [51712, 51728] as [UInt32] { _ = try lab.makeNode(1, device) }
        try lab.startDaemon()
        try eventually("three attempts") { lab.starts.count { $0.hasSuffix("-51712") } >= 3 }
        let row = try #require(try lab.row("vbd/1/51712"))
        #expect(["waiting", "running"].contains(row["worker"]?.string))
        #expect(row["last_failure"]?.string == (word == "crash" ? "signal 6 (SIGABRT)" : "exit status 1"))
        #expect(lab.starts.count { $0.hasSuffix("-51728") } == 1)
        #expect(throws: ControlError.self) { try lab.ask(.show(try #require(VBDReference(parsing: "1/51712")))) }
        // When the node goes, so does the wait.
        try lab.store.remove("/local/domain/0/backend/vbd/1/51712", in: .none)
        try eventually("it is forgotten") { try lab.row("vbd/1/51712") == nil }
    }

    @Test("wrong usage is given up, told to the toolstack, and tried again when asked") func givenUp() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "exit 2")
        let address = try lab.makeNode(1, 51712)
        let path = address.backendPath(own: 0)
        let daemon = try lab.startDaemon()
        try eventually("it is given up") { try lab.row("vbd/1/51712")?["worker"]?.string == "failed" }
        #expect(try lab.store.text("\(path)/hotplug-status") == "error")
        #expect(
            try lab.store.text("\(path)/hotplug-error")?.hasPrefix("xbbd: the worker ended with exit status 2") == true)
        #expect(try lab.store.text("\(address.errorPath(own: 0))/error") != nil)
        lab.behave("vbd-1-51712", "serve")
        daemon.process.send(SIGHUP)
        try eventually("it is served") { try lab.store.text("\(path)/state") == "2" }
        #expect(try lab.store.text("\(path)/hotplug-status") == nil)
        #expect(try lab.store.text("\(address.errorPath(own: 0))/error") == nil)
    }

    @Test("a given-up VBD is closed by xbbd itself") func closeWithoutWorker() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "exit 2")
        let address = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is given up") { try lab.row("vbd/1/51712")?["worker"]?.string == "failed" }
        #expect(try Toolstack(store: lab.store).detach(address, force: false, seconds: 30) == .closed)
    }

    @Test("a worker whose child lives on has no successor as long") func orphan() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "orphan")
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("the child holds the lock") { try lab.row("vbd/1/51712")?["worker"]?.string == "foreign" }
        #expect(lab.starts.count == 1)
        try eventually("the child has ended") { lab.starts.count >= 2 }
    }

    @Test(
        "a worker is told how the last one ended",
        arguments: [("crash", "crashed:signal 6 (SIGABRT)"), ("exit 1", "killed:exit status 1")])
    func predecessor(_ word: String, _ end: String) throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", word)
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("a failure") { !lab.starts.isEmpty }
        lab.behave("vbd-1-51712", "serve")
        let vbd = try #require(VBDReference(parsing: "1/51712"))
        try eventually("a worker that serves") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        try eventually("its answer") {
            let arguments = try? lab.ask(.show(vbd))["arguments"]?.elements.compactMap(\.string)
            guard let arguments, let index = arguments.firstIndex(of: "--predecessor") else { return false }
            return arguments[index + 1] == end
        }
    }

    @Test("an upgrade replaces workers at once, as often as it is asked for") func upgrade() throws {
        let lab = try DaemonLab()
        for device in [51712, 51728] as [UInt32] { _ = try lab.makeNode(1, device) }
        try lab.startDaemon()
        try eventually("both are started") { lab.starts.count == 2 }
        func processes() throws -> [UInt64] {
            try lab.ask(.list)["vbds"]?.elements.compactMap { $0["pid"]?.unsigned } ?? []
        }
        for round in 1...3 {
            let before = try processes()
            #expect(try lab.ask(.upgrade(nil))["vbds"]?.elements.count == 2)
            try eventually("new workers") { try Set(before).isDisjoint(with: processes()) && processes().count == 2 }
            #expect(lab.starts.count == 2 + 2 * round)
        }
        let vbd = try #require(VBDReference(parsing: "vbd/1/51712"))
        #expect(try lab.row("vbd/1/51712")?["went_back"] == .bool(false))
        #expect(throws: ControlError.self) { try lab.ask(.upgrade(VBDReference(parsing: "vbd/1/51800"))) }
        _ = try lab.ask(.upgrade(vbd))
        try eventually("one more") { lab.starts.count >= 9 }
    }

    @Test("who hands over is followed at once") func handOver() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "hand-over")
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("two starts") { lab.starts.count >= 2 }
    }

    @Test("a worker program that is not there is a failure like others") func noProgram() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon(["--worker", "/nonexistent"])
        let row = try #require(try lab.row("vbd/1/51712"))
        #expect(row["worker"]?.string == "waiting")
        #expect(row["last_failure"]?.string == "start /nonexistent: No such file or directory")
    }

    @Test("a worker that does not answer, or not with JSON, blocks nobody") func badAnswers() throws {
        let lab = try DaemonLab()
        let words = ["51712": "mute", "51728": "garbage", "51744": "endless", "51760": "serve"]
        for (device, word) in words {
            lab.behave("vbd-1-\(device)", word)
            _ = try lab.makeNode(1, try #require(UInt32(device)))
        }
        try lab.startDaemon()
        try eventually("all are taken") {
            let states = try lab.ask(.list)["vbds"]?.elements.compactMap { $0["state"]?.string }
            return states == Array(repeating: "initWait", count: 4)
        }
        // Over connections of their own: the healthy one is asked later and answers before the mute one.
        let mute = try ControlClient(path: lab.socket)
        let order = OrderLog()
        try withThread {
            order.note("mute", try? mute.call(.show(VBDReference(parsing: "1/51712")!)).text)
        } whileRunning: {
            usleep(100_000)
            order.note("healthy", try lab.ask(.show(VBDReference(parsing: "1/51760")!)).serialized)
            // On a busy machine the time for an answer may end before it is too long.
            for (device, ends) in [
                ("51728", ["the worker's answer is not JSON"]),
                ("51744", ["the worker's answer is too long", "the worker does not answer"]),
            ] {
                do throws(ControlError) {
                    let reference = VBDReference(parsing: "1/\(device)")!
                    Issue.record(
                        "answered: \(try ControlClient(path: lab.socket).call(.show(reference)).text.prefix(80))")
                } catch {
                    let text = error.description
                    #expect(ends.contains { text.hasPrefix("vbd/1/\(device): \($0)") }, "\(text)")
                }
            }
        }
        #expect(order.names == ["healthy", "mute"])
        #expect(order.texts.count == 1)
    }

    @Test("junk below backend is ignored") func junk() throws {
        let lab = try DaemonLab()
        for name in ["x/51712", "01/51712", "1/x", "1/051712", "32760/51712", "1/4294967296", "99999999999/1"] {
            try lab.store.write("/local/domain/0/backend/vbd/\(name)/state", "1")
        }
        try lab.store.write("/local/domain/0/backend/vbd/1/51728", "")
        try lab.store.write("/local/domain/0/backend/vbd/1/51744/online", "1")
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try lab.store.write("/local/domain/0/backend/vbd/junk/1/state", "1")
        try lab.store.write("/local/domain/0/backend/vbd/2/51712", "junk")
        _ = try lab.makeNode(2, 51728)
        try eventually("the good ones are served") { lab.starts.count == 2 }
        #expect(try lab.ask(.list)["vbds"]?.elements.count == 2)
    }

    @Test("a storm of watch events is one reading") func storm() throws {
        let lab = try DaemonLab()
        for device in 0..<40 as Range<UInt32> { _ = try lab.makeNode(1, 51712 + device * 16) }
        let daemon = try lab.startDaemon()
        try eventually("all are started") { lab.starts.count == 40 }
        for round in 0..<50 {
            try lab.store.transaction { (transaction) throws(OperationError) in
                for device in 0..<40 as Range<UInt32> {
                    try lab.store.write(
                        "/local/domain/0/backend/vbd/1/\(51712 + device * 16)/junk", "\(round)", in: transaction)
                }
            }
        }
        #expect(try lab.ask(.list)["vbds"]?.elements.count == 40)
        #expect(lab.starts.count == 40)
        // A node that is removed and made anew is the same VBD for a worker that is there.
        for _ in 0..<20 {
            try lab.store.remove("/local/domain/0/backend/vbd/1/51712", in: .none)
            _ = try lab.makeNode(1, 51712)
        }
        try eventually("it is served") { try lab.store.text("/local/domain/0/backend/vbd/1/51712/state") == "2" }
        daemon.process.send(SIGTERM)
        #expect(daemon.wait() == .clean)
    }

    @Test("one xbbd for a run directory") func oneDaemon() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        let second = try Program([
            DaemonLab.products + "/xbbd", "--loopback", lab.root + "/xen", "--run-dir", lab.run, "--log-level", "error",
        ])
        #expect(second.wait() == .failed(1))
        #expect((try? lab.ask(.ping)) != nil)
    }

    @Test("one xbbd for a XenStore, whatever its run directory; who has it is told") func oneDaemonForAStore() throws {
        let lab = try DaemonLab()
        let first = try lab.startDaemon()
        _ = try lab.makeNode(1, 51712)
        try eventually("a worker") { lab.starts.count == 1 }
        func another(_ loopback: String, capture: Bool = true) throws -> Program {
            try Program(
                [
                    "/bin/sh", "-c", "exec \"$@\" 2>&1", "sh", DaemonLab.products + "/xbbd", "--loopback", loopback,
                    "--run-dir", lab.root + "/run2", "--worker", DaemonLab.products + "/fake-worker",
                ], capture: capture)
        }
        // Also by another name of its directory.
        #expect(symlink(lab.root + "/xen", lab.root + "/link") == 0)
        for loopback in [lab.root + "/xen", lab.root + "/link"] {
            let second = try another(loopback)
            let text = second.text()
            #expect(second.wait() == .failed(1))
            let holder = "xbbd, process \(first.process.process), with the run directory \(lab.run), serves the disks"
            #expect(text.contains(holder), "\(text)")
        }
        #expect(lab.starts.count == 1)
        // Another XenStore is another's.
        let other = try DaemonLab()
        try other.startDaemon()
        #expect((try? other.ask(.ping)) != nil)
        // xbbctl finds the one that there is.
        let listed = try lab.control(["list"], socket: false)
        #expect(listed.exit == .clean && listed.text.contains("xvda"), "\(listed)")
        // The claim ends with its holder, however that ends.
        lab.killDaemons()
        let next = try another(lab.root + "/xen", capture: false)
        try eventually("the next one answers") {
            (try? ControlClient(path: lab.root + "/run2/xbbd.sock").call(.ping)) != nil
        }
        next.process.send(SIGTERM)
        next.wait()
    }

    @Test("a worker's exit(0) is no hand-over") func deserted() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "desert")
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it counts") {
            try lab.row("vbd/1/51712")?["last_failure"]?.string == "exit status 0, and did not hand the disk over"
        }
    }

    @Test("who takes over knows that an adopted worker handed over") func adoptedHandOver() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        for round in 1...4 {
            try eventually("a worker") { lab.starts.count == round }
            lab.killDaemons()
            try lab.startDaemon()
            try eventually("adopted") { try lab.row("vbd/1/51712")?["worker"]?.string == "adopted" }
            let worker = try #require(lab.worker("vbd-1-51712"))
            kill(worker, SIGTERM)
            try eventually("its successor") { lab.starts.count == round + 1 }
            #expect(try lab.row("vbd/1/51712")?["last_failure"]?.string == nil)
        }
    }

    @Test("without XenStore it does not start, and ends when XenStore does") func noStore() throws {
        let lab = try DaemonLab()
        let lost = try Program([DaemonLab.products + "/xbbd", "--loopback", "/nonexistent", "--run-dir", lab.run])
        #expect(lost.wait() == .failed(69))
        let daemon = try lab.startDaemon()
        lab.server.stop()
        #expect(daemon.wait() == .failed(69))
    }

    @Test("the service manager is told, and workers do not hear of it") func notify() throws {
        let lab = try DaemonLab()
        let path = lab.root + "/notify"
        let socket = try Descriptor(bindDatagram(path), "bind")
        _ = try lab.makeNode(1, 51712)
        let program = try Program([
            "/usr/bin/env", "NOTIFY_SOCKET=\(path)", "FAKE_WORKER_DIR=\(lab.workers)", DaemonLab.products + "/xbbd",
            "--loopback", lab.root + "/xen", "--run-dir", lab.run, "--worker", DaemonLab.products + "/fake-worker",
        ])
        func message() -> String {
            guard case .bytes(let bytes) = socket.readAvailable() else { return "" }
            return String(decoding: bytes, as: UTF8.self)
        }
        #expect(message() == "READY=1\nSTATUS=1 disks, 1 served")
        try eventually("a worker runs") { lab.worker("vbd-1-51712") != nil }
        let environment = try Descriptor(
            clinux_open("/proc/\(try #require(lab.worker("vbd-1-51712")))/environ", O_RDONLY, 0), "open environ")
        if case .bytes(let bytes) = environment.readAvailable() {
            let variables = bytes.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
            #expect(variables.contains("FAKE_WORKER_DIR=\(lab.workers)"))
            #expect(!variables.contains { $0.hasPrefix("NOTIFY_SOCKET") })
        }
        program.process.send(SIGTERM)
        #expect(message() == "STOPPING=1")
        #expect(program.wait() == .clean)
    }

    @Test("the service manager hears as long as the loop turns, and how many disks there are") func watchdog() throws {
        let lab = try DaemonLab()
        let path = lab.root + "/notify"
        let socket = try Descriptor(bindDatagram(path), "bind")
        let program = try Program([
            "/usr/bin/env", "NOTIFY_SOCKET=\(path)", "WATCHDOG_USEC=400000", "FAKE_WORKER_DIR=\(lab.workers)",
            DaemonLab.products + "/xbbd", "--loopback", lab.root + "/xen", "--run-dir", lab.run, "--worker",
            DaemonLab.products + "/fake-worker",
        ])
        var messages: [String] = []
        /// What comes within so many milliseconds.
        func listen(_ milliseconds: Int32) {
            var entry = pollfd(fd: socket.raw, events: Int16(POLLIN), revents: 0)
            while poll(&entry, 1, milliseconds) == 1, case .bytes(let bytes) = socket.readAvailable() {
                messages.append(String(decoding: bytes, as: UTF8.self))
                if messages.count > 50 { return }
            }
        }
        try eventually("it is ready and beats") {
            listen(50)
            return messages.first == "READY=1\nSTATUS=0 disks, 0 served" && messages.count { $0 == "WATCHDOG=1" } >= 3
        }
        lab.behave("vbd-1-51712", "exit 2")
        for device in [51712, 51728] as [UInt32] { _ = try lab.makeNode(1, device) }
        try eventually("the disks are counted") {
            listen(50)
            return messages.contains("STATUS=2 disks, 1 served; given up: vbd/1/51712")
        }
        // A loop that stands still does not beat.
        program.process.send(SIGSTOP)
        listen(300)
        messages = []
        listen(1000)
        #expect(messages.isEmpty)
        program.process.send(SIGCONT)
        try eventually("it beats again") {
            listen(50)
            return messages.contains("WATCHDOG=1")
        }
        program.process.send(SIGTERM)
        #expect(program.wait() == .clean)
    }

    @Test("plugins are described by the worker program") func plugins() throws {
        let lab = try DaemonLab()
        lab.behave("plugins", "[{\"name\":\"raw\",\"formats\":[\"raw\"],\"options\":[]}]\n")
        try lab.startDaemon()
        #expect(try lab.ask(.plugins)["plugins"]?.elements.first?["name"]?.string == "raw")
        let (text, exit) = try lab.control(["plugins"])
        #expect(exit == .clean && text.hasPrefix("raw -: -\n"))
        lab.behave("plugins", "no JSON")
        #expect(throws: ControlError.self) { try lab.ask(.plugins) }
        lab.behave("plugins", "sleep")
        let error = #expect(throws: ControlError.self) { try lab.ask(.plugins) }
        #expect(error?.description == "the worker program took more than 10 s")
    }
}
