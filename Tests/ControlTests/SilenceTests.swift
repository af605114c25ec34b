// SPDX-License-Identifier: BSD-2-Clause
// A worker that does not answer is told, wherever one looks.
import Glibc
import Support
import Testing

@testable import XBBControl

@Suite struct SilenceTests {
    private static let second = RestartPolicy.second

    @Test("a worker that answers is asked once in 10 s, and more often where it is to be known sooner")
    func calm() {
        for (limit, interval) in [(UInt64(10), UInt64(10)), (60, 10), (1, 1)] {
            var watch = AnswerWatch(limit: limit * Self.second, now: 0)
            var now: UInt64 = 0
            for _ in 0..<5 {
                #expect(watch.deadline == now + interval * Self.second)
                now = watch.deadline
                watch.ask(now: now)
                #expect(watch.answered(now: now) == nil && watch.unansweredSince == nil)
            }
        }
    }

    @Test("one that has not run since it answered is not woken, and one that has is asked")
    func asleep() {
        var watch = AnswerWatch(limit: 10 * Self.second, now: 0)
        #expect(watch.sleepsOn(runs: 5, now: 10 * Self.second) == false, "it has never answered")
        watch.ask(now: 10 * Self.second)
        #expect(watch.sleepsOn(runs: 5, now: 11 * Self.second) == false, "a question is on its way")
        #expect(watch.answered(now: 12 * Self.second, runs: 7) == nil)
        for second in stride(from: UInt64(22), to: 60, by: 10) {
            #expect(watch.sleepsOn(runs: 7, now: second * Self.second) == true)
            // Those that sleep are looked at together.
            #expect(watch.deadline == (second / 10 + 1) * 10 * Self.second)
        }
        // Whatever it did, it has to answer after that.
        #expect(watch.sleepsOn(runs: 8, now: 60 * Self.second) == false)
        watch.ask(now: 60 * Self.second)
        #expect(watch.sleepsOn(runs: 8, now: 61 * Self.second) == false && watch.isOver(now: 70 * Self.second))
        #expect(watch.answered(now: 71 * Self.second, runs: nil) == 11)
        #expect(watch.sleepsOn(runs: nil, now: 90 * Self.second) == false, "nobody counts")
    }

    @Test("it is silent when its time is over, once, until it answers; nobody waits for a second question")
    func silent() {
        var watch = AnswerWatch(limit: 10 * Self.second, now: 0)
        watch.ask(now: 10 * Self.second)
        #expect(watch.deadline == 20 * Self.second)
        #expect(!watch.isOver(now: 20 * Self.second - 1) && watch.isOver(now: 20 * Self.second))
        #expect(!watch.isOver(now: 30 * Self.second) && watch.isSilent)
        #expect(watch.deadline == .max, "it costs nothing any more")
        #expect(watch.seconds(now: 33 * Self.second) == 23)
        #expect(watch.answered(now: 40 * Self.second) == 30)
        #expect(!watch.isSilent && watch.deadline == 50 * Self.second)
    }

    @Test("where nobody listens, it is tried again, and the time goes on")
    func deaf() {
        var watch = AnswerWatch(limit: 3 * Self.second, now: 0)
        var now = watch.deadline
        let began = now
        while !watch.isOver(now: now) {
            if watch.askAt <= now {
                watch.ask(now: now)
                watch.failed(now: now)
            }
            now = watch.deadline
        }
        #expect(now == began + 3 * Self.second)
        #expect(watch.deadline <= now + Self.second)
    }

    @Test("a process's state is read whatever its name is")
    func states() throws {
        #expect(ProcessState(of: getpid()) != nil)
        #expect(ProcessState(of: 0x3fff_ffff) == nil && ProcessState.runs(of: 0x3fff_ffff) == nil)
        let program = try Program(["/bin/sleep", "60"])
        try eventually("it sleeps") { program.process.state == .sleeps }
        let runs = program.process.runs
        kill(program.process.process, SIGSTOP)
        try eventually("it is stopped") { program.process.state == .stopped }
        // Where it is counted: whoever is stopped has run for that.
        if let runs { #expect((program.process.runs ?? 0) > runs) }
        kill(program.process.process, SIGKILL)
    }

    /// Lines of the log that contain a text.
    private func lines(_ lab: DaemonLab, _ text: String) throws -> [String] {
        try lab.ask(.log(nil))["events"]?.elements.compactMap { $0["text"]?.string }.filter { $0.contains(text) } ?? []
    }

    @Test("list, show, upgrade and the log name a worker that never answers")
    func mute() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "mute")
        for device in [51712, 51728] as [UInt32] { _ = try lab.makeNode(1, device) }
        try lab.startDaemon(["--stall-time", "1"])
        try eventually("it is silent") { try lab.row("vbd/1/51712")?["silent"]?.string != nil }
        let worker = try #require(lab.worker("vbd-1-51712"))
        let row = try #require(try lab.row("vbd/1/51712"))
        for name in ["silent", "trouble"] {
            let text = row[name]?.string ?? ""
            #expect(text.hasPrefix("worker \(worker) does not answer for ") && text.contains("kill -9"), "\(text)")
        }
        let list = try lab.control(["list"]).text.split(separator: "\n").first { $0.contains("xvda") } ?? ""
        #expect(list.contains(" silent ") && list.contains("worker \(worker) does not answer"), "\(list)")
        for command in [["show"], ["stats"], ["set", "poll-us=1"]] {
            let words = command.prefix(1) + ["1", "xvda"] + command.dropFirst()
            let (text, exit) = try lab.control(words + ["--json"])
            #expect(
                exit == WorkerExit(code: 75, signal: 0) && text.contains("worker \(worker) does not answer"), "\(text)")
        }
        let upgrade = try lab.control(["upgrade", "1", "xvda"])
        #expect(upgrade.exit == .failed(1) && upgrade.text.contains("worker \(worker) does not answer"), "\(upgrade)")
        try eventually("a line") { try lines(lab, "worker \(worker) does not answer").count == 1 }
        // Its neighbour answers, and nothing is told of it.
        #expect(try lab.row("vbd/1/51728")?["silent"] == .null && lab.row("vbd/1/51728")?["trouble"] == .null)
        // Another one takes its place.
        lab.behave("vbd-1-51712", "serve")
        kill(worker, SIGKILL)
        try eventually("it is over") { try lab.row("vbd/1/51712")?["silent"] == .null }
    }

    @Test("one that is stopped is told at once, and that it goes on")
    func stopped() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon(["--stall-time", "1"])
        try eventually("it is served") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        let worker = try #require(lab.worker("vbd-1-51712"))
        kill(worker, SIGSTOP)
        try eventually("it is told") {
            try lab.row("vbd/1/51712")?["trouble"]?.string?.contains(
                "it is stopped by a signal; 'kill -CONT \(worker)' lets it go on") == true
        }
        try eventually("a line") { try lines(lab, "it is stopped by a signal").count == 1 }
        kill(worker, SIGCONT)
        try eventually("it goes on") { try lines(lab, "worker \(worker) answers again, after ").count == 1 }
        #expect(try lab.row("vbd/1/51712")?["silent"] == .null)
        #expect(lab.starts.count == 1)
    }

    @Test("who waits for it is told why")
    func waited() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is served") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        let worker = try #require(lab.worker("vbd-1-51712"))
        kill(worker, SIGSTOP)
        let detach = try lab.control(["detach", "1", "xvda", "--timeout", "1", "--json"])
        #expect(
            detach.exit == WorkerExit(code: 75, signal: 0) && detach.text.contains("it is stopped by a signal"),
            "\(detach)")
        kill(worker, SIGCONT)
        #expect(try lab.control(["detach", "1", "xvda"]).exit == .clean)
    }

    @Test("a worker of whom no file says that it serves is known by the kernel's word")
    func unnoted() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is served") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        let worker = try #require(lab.worker("vbd-1-51712"))
        lab.killDaemons()
        // As in a file system that was full.
        let lock = lab.run + "/vbd-vbd-1-51712.lock"
        #expect(truncate(lock, 0) == 0)
        try lab.startDaemon(["--stall-time", "1"])
        try eventually("it is adopted") { try lab.row("vbd/1/51712")?["worker"]?.string == "adopted" }
        #expect(try lab.row("vbd/1/51712")?["pid"]?.unsigned == UInt64(worker))
        try eventually("it is written down") { FileLock.note(lock).hasPrefix("\(worker) ") }
        #expect(lab.starts.count == 1)
    }

    @Test("a lock of an unknown process is told, with its file")
    func foreign() throws {
        let lab = try DaemonLab()
        let lock = lab.run + "/vbd-vbd-1-51712.lock"
        guard case .taken(let mine) = try FileLock.attempt(lock) else { throw ControlError("the lock is not free") }
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is told") {
            try lab.row("vbd/1/51712")?["trouble"]?.string?.contains("fuser \(lock)") == true
        }
        #expect(try lab.row("vbd/1/51712")?["worker"]?.string == "foreign")
        withExtendedLifetime(mine) {}
    }
}
