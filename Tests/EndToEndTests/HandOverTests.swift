// SPDX-License-Identifier: BSD-2-Clause
// A worker that stands by takes over from one that serves: under load, and whoever dies in between.
import Base
import Blkfront
import Blkif
import CLinux
import Foundation
import Testing
import Xen

/// A disk with a lock, whose next worker is started beside the one that serves: what xbbd does, step by step.
final class Succession {
    let disk: Disk
    private let lockPath: String
    /// The numbers by which this "xbbd" writes down its workers.
    private var generation = 4710
    /// The worker that stands by, or has taken over and is not known as the disk's yet.
    private(set) var next: Worker?
    private var channel: Int32 = -1

    init(_ lab: Lab, _ storage: Storage = Storage(), environment: [String] = []) throws {
        lockPath = "\(lab.directory)/51712.lock"
        disk = try lab.prepare(51712, storage, arguments: ["--journal", "\(lab.directory)/51712.journal"])
        try start(environment: environment)
    }

    deinit {
        close(channel)
        next?.kill()
    }

    /// What a worker gets: it must not be able to write into the file.
    private func openLock() throws -> Int32 {
        let file = clinux_open(lockPath, O_RDONLY | O_CREAT | O_CLOEXEC, 0o600)
        guard file >= 0 else { throw OperationError(errno, "open \(lockPath)") }
        return file
    }

    /// Writes down who serves, and who was called to do so next.
    private func note(_ holder: Int, next: Int? = nil) {
        let file = clinux_open(lockPath, O_WRONLY | O_CLOEXEC, 0)
        defer { close(file) }
        let text = "\(holder) 1234\n" + (next.map { "next \($0) 1234\n" } ?? "")
        let line = Array(text.padding(toLength: 96, withPad: "\n", startingAt: 0).utf8)
        #expect(pwrite(file, line, line.count, 0) == line.count)
    }

    /// True while no process has the lock.
    func isFree() throws -> Bool {
        let file = try openLock()
        defer { close(file) }
        return flock(file, LOCK_EX | LOCK_NB) == 0
    }

    /// Starts an ordinary worker, as soon as the lock is free.
    func start(_ arguments: [String] = [], environment: [String] = []) throws {
        let file = try openLock()
        defer { close(file) }
        try eventually("the lock") { flock(file, LOCK_EX | LOCK_NB) == 0 }
        generation += 1
        note(generation)
        try disk.startWorker(["--lock", "3"] + arguments, environment: environment, descriptors: [file])
    }

    /// Starts the next worker; true when it is ready, false when it ended before.
    func prepare(_ environment: [String] = [], _ arguments: [String] = []) throws -> Bool {
        let file = try openLock()
        var ends: [Int32] = [-1, -1]
        try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
        defer {
            close(file)
            close(ends[1])
        }
        close(channel)
        channel = ends[0]
        next = try disk.startBeside(
            ["--lock", "3", "--standby", "4"] + arguments, environment: environment, descriptors: [file, ends[1]])
        close(ends[1])
        ends[1] = -1
        var text = [UInt8](repeating: 0, count: 6)
        return recv(channel, &text, 6, Int32(MSG_WAITALL)) == 6 && text.elementsEqual("ready\n".utf8)
    }

    /// Its turn has come. A process that ended in the meantime hears nothing.
    func call(_ end: String = "") {
        generation += 1
        if end.isEmpty { note(generation - 1, next: generation) } else { note(generation) }
        let line = Array("go \(generation) 1234\(end)\n".utf8)
        _ = send(channel, line, line.count, Int32(MSG_NOSIGNAL))
    }

    /// Whoever was given up is not needed any more.
    func hangUp() {
        close(channel)
        channel = -1
    }

    /// The next worker is the disk's now.
    func follow() throws {
        note(generation)
        disk.follow(with: try #require(next))
        next = nil
    }

    /// Tells the old worker to go and the new one to come; both live.
    func handOver() throws {
        try #require(try prepare(), "\(disk.log)")
        call()
        disk.worker.signal(SIGTERM)
        #expect(try disk.worker.awaitExit() == .exited(0))
        try follow()
    }
}

extension EndToEnd {
    @Suite struct HandOverTests {
        /// A memory disk that outlives its process and takes a while for everything.
        private func kept(_ lab: Lab) throws -> Storage {
            var storage = Storage(path: try lab.image("kept", bytes: 16 << 20), format: "delay")
            storage.options = "size=16M,keep=on,delay-us=1500,reorder=on"
            return storage
        }

        @Test(arguments: [("raw", 1), ("raw", 32), ("delay", 4)])
        func aLoadGoesOnThroughHandOvers(_ disk: (format: String, pages: Int)) throws {
            let lab = try Lab()
            let succession = try Succession(lab, disk.format == "raw" ? Storage() : try kept(lab))
            let device = try succession.disk.connect { $0.ringPages = disk.pages }
            let plan = mixedPlan { $0.duration = 3_000_000_000 }
            var count = 0
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                try succession.handOver()
                count += 1
                usleep(100_000)
            }
            #expect(report.isGood, "\(report.text) \(succession.disk.log.suffix(4000))")
            #expect(count > 2)
            #expect(!succession.disk.log.has("in flight"), "nothing is to be done again: \(succession.disk.log)")
            #expect(try succession.disk.key("state") == "4")
            try device.close()
            try lab.finish(mostLog: 1 << 20)
        }

        /// Who dies where: the old worker, the new one.
        static let deaths: [(old: String?, new: String?)] =
            [
                (nil, "prepared"), (nil, "called"), (nil, "inherited"), (nil, "opened"), (nil, "mapped"),
                (nil, "bound"),
                (nil, "connected"), (nil, "started"), ("draining", nil), ("drained", nil), ("closed", nil),
                ("letGo", nil),
                ("draining", "inherited"), ("draining", "opened"), ("drained", "called"), ("closed", "started"),
                ("letGo", "inherited"), ("letGo", "submitted"),
            ]

        @Test(arguments: deaths)
        func eitherMayDieAnywhere(_ death: (old: String?, new: String?)) throws {
            let lab = try Lab()
            let environment = death.old.map { ["XBB_KILL_POINT=\($0)"] } ?? []
            let succession = try Succession(lab, try kept(lab), environment: environment)
            let disk = succession.disk
            let device = try disk.connect()
            let plan = mixedPlan { $0.count = 600 }
            var isBegun = false
            var deaths = 0
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                if !isBegun {
                    isBegun = true
                    usleep(30_000)
                    if try !succession.prepare(death.new.map { ["XBB_KILL_POINT=\($0)"] } ?? []) {
                        #expect(try succession.next?.awaitExit() == .signalled(SIGKILL))
                        deaths += 1
                        #expect(disk.worker.isRunning, "the old one was not told")
                        return
                    }
                    succession.call()
                    disk.worker.signal(SIGTERM)
                }
                guard !disk.worker.isRunning else { return }
                if try disk.worker.awaitExit() == .signalled(SIGKILL) { deaths += 1 }
                if succession.next != nil { return try succession.follow() }
                try succession.start(["--predecessor", "killed:signal 9"])
            }
            #expect(report.isGood, "\(report.text) \(disk.log)")
            #expect(deaths == (death.old == nil ? 0 : 1) + (death.new == nil ? 0 : 1), "\(disk.log)")
            try device.close()
            try lab.finish(mostLog: 1 << 20)
        }

        @Test func nobodyServesBesideOneThatDoesNotLetGo() throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            let disk = succession.disk
            let device = try disk.connect()
            #expect(try succession.prepare())
            succession.call()
            // It was told that its turn has come, and the old one has not let go: it waits, also for one that hangs.
            disk.worker.signal(SIGSTOP)
            usleep(300_000)
            #expect(succession.next?.isRunning == true && succession.next?.hasSocket == false)
            disk.worker.signal(SIGCONT)
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            #expect(try disk.worker.show("stage") == "connected")
            // Killed without a chance to hand over: what was in flight is done again.
            let plan = mixedPlan { $0.count = 400 }
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                guard succession.next != nil else { return }
                usleep(20_000)
                disk.worker.kill()
                try succession.follow()
            }
            #expect(report.isGood, "\(report.text) \(disk.log)")
            #expect(!(try succession.isFree()))
            try device.close()
            try lab.finish()
        }

        @Test func whoStandsByEndsWithItsChannelOrASignal() throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            let device = try succession.disk.connect()
            #expect(try succession.prepare())
            succession.hangUp()
            #expect(try succession.next?.awaitExit() == .exited(0))
            #expect(try succession.prepare())
            succession.next?.signal(SIGTERM)
            #expect(try succession.next?.awaitExit() == .exited(0))
            #expect(try succession.disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test func aPluginThatCannotBeLoadedIsFoundOutBefore() throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            let device = try succession.disk.connect()
            let plugin = "\(lab.plugins)/xbb-file.so"
            try FileManager.default.moveItem(atPath: plugin, toPath: "\(plugin).old")
            #expect(!(try succession.prepare()))
            #expect(try succession.next?.awaitExit() == .exited(1))
            #expect(succession.next?.log.has("no plugin 'file'") == true)
            try FileManager.default.moveItem(atPath: "\(plugin).old", toPath: plugin)
            #expect(try succession.disk.load(device) { $0.count = 50 }.isGood)
            try succession.handOver()
            #expect(try succession.disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test func theImagesLockGoesOverToo() throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            let device = try succession.disk.connect()
            try succession.handOver()
            #expect(try succession.disk.load(device) { $0.count = 50 }.isGood)
            let second = try lab.attach(51728, Storage(path: succession.disk.path))
            try second.awaitError(succession.disk.path)
            try device.close()
            try lab.finish()
        }

        /// The guest would go on in another file, and write into it.
        @Test func anotherImageIsNotServedToAConnectedGuest() throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            let disk = succession.disk
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            #expect(try succession.prepare())
            #expect(rename(disk.path, "\(disk.path).old") == 0)
            let other = try lab.image("51712.img", bytes: 16 << 20)
            let before = try Data(contentsOf: URL(fileURLWithPath: other))
            succession.call()
            disk.worker.signal(SIGTERM)
            #expect(try disk.worker.awaitExit() == .exited(0))
            try succession.follow()
            try disk.awaitError("another image stands in the place of the one that was served")
            try disk.awaitState(5)
            try device.close()
            #expect(try Data(contentsOf: URL(fileURLWithPath: other)) == before)
            try lab.finish()
        }

        @Test func withoutAJournalNothingIsLostEither() throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            let device = try succession.disk.connect()
            let plan = mixedPlan { $0.duration = 1_500_000_000 }
            let report = try inBackground({ try LoadRun(device, plan).run() }) {
                usleep(50_000)
                #expect(try succession.prepare([], ["--journal", "\(lab.directory)/none/journal"]))
                succession.call()
                succession.disk.worker.signal(SIGTERM)
                #expect(try succession.disk.worker.awaitExit() == .exited(0))
                try succession.follow()
            }
            #expect(report.isGood, "\(report.text) \(succession.disk.log.suffix(4000))")
            try device.close()
            try lab.finish(mostLog: 1 << 20)
        }

        @Test func aGuestWithoutAConnectionFindsTheNewWorker() throws {
            let lab = try Lab()
            let succession = try Succession(lab)
            try succession.disk.awaitState(2)
            try succession.handOver()
            let device = try succession.disk.connect()
            #expect(try succession.disk.load(device) { $0.count = 50 }.isGood)
            try succession.handOver()
            try device.close()
            try succession.handOver()
            let again = try succession.disk.connect()
            #expect(try succession.disk.load(again) { $0.count = 50 }.isGood)
            try again.close()
            try lab.finish()
        }
    }
}
