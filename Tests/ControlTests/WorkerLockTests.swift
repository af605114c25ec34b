// SPDX-License-Identifier: BSD-2-Clause
// Whom xbbd takes for a disk's worker: the file of the lock names it, and the kernel must say the same.
import Base
import CLinux
import Glibc
import Testing

@testable import XBBControl

@Suite("The lock of a worker")
struct WorkerLockTests {
    private func overwrite(_ path: String, _ text: String) {
        let file = clinux_open(path, O_WRONLY | O_TRUNC | O_CLOEXEC, 0)
        _ = text.withCString { write(file, $0, strlen($0)) }
        close(file)
    }

    @Test("a note is read as it was written, and also that of an earlier version") func notes() throws {
        let holder = ProcessIdentity(process: 4711, startTicks: 123_456)
        let next = ProcessIdentity(process: 4712, startTicks: 99)
        for note in [LockNote(), LockNote(holder: holder), LockNote(holder: holder, next: next)] {
            #expect(note.bytes.count == LockNote.size)
            #expect(LockNote(reading: note.bytes) == note)
        }
        #expect(LockNote(reading: Array("4711 123456\n".utf8)) == LockNote(holder: holder))
        // What an earlier version reads: words, between spaces and line feeds.
        #expect(ProcessIdentity(note: String(decoding: LockNote(holder: holder).bytes, as: UTF8.self)) == holder)
        for text in ["", "handed over\n", "next\n", "0 1\n", "-1 4\n", "4711\n", "99999999999 1\n", "a b\nnext c d\n"] {
            #expect(LockNote(reading: Array(text.utf8)) == LockNote())
        }
    }

    @Test("only who has the lock is taken for its holder, only who waits for it for the next one") func holders() throws
    {
        let lab = try DaemonLab()
        let path = lab.root + "/lock"
        guard case .taken(let lock) = try FileLock.attempt(path) else { throw ControlError("lock") }
        let stranger = try Program(["/bin/sleep", "60"])
        let waiting = try WorkerProcess.spawn(
            ["/bin/sleep", "60"], kept: Descriptor(clinux_open(path, O_RDONLY | O_CLOEXEC, 0), "open"))
        let worker = try WorkerProcess.spawn(["/bin/sleep", "60"], kept: lock.file)
        defer {
            for process in [waiting, worker] {
                process.send(SIGKILL)
                while process.takeExit() == nil { usleep(1000) }
            }
        }
        func holder(_ process: WorkerProcess) -> Int32? {
            WorkerProcess.adopt(LockNote(holder: process.identity), ofLockAt: path)?.process
        }
        #expect(holder(worker) == worker.process)
        #expect(holder(waiting) == nil)
        #expect(holder(stranger.process) == nil)
        func next(_ process: WorkerProcess) -> Int32? {
            WorkerProcess.adopt(LockNote(next: process.identity), ofLockAt: path, isFree: true)?.process
        }
        #expect(next(waiting) == waiting.process)
        #expect(next(stranger.process) == nil)
        // The number of a process that has the lock, with another one's start.
        let identity = try #require(worker.identity)
        let other = ProcessIdentity(process: identity.process, startTicks: identity.startTicks &+ 1)
        #expect(WorkerProcess.adopt(LockNote(holder: other), ofLockAt: path) == nil)
    }

    @Test(
        "a process that the file names wrongly is neither taken for a worker nor signalled; who listens and has the lock is",
        arguments: [false, true])
    func forged(_ hasSocket: Bool) throws {
        let lab = try DaemonLab()
        let address = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is started") { lab.starts.count == 1 }
        lab.killDaemons()
        let victim = try Program(["/bin/sleep", "300"])
        let identity = try #require(victim.process.identity)
        let path = lab.run + "/vbd-vbd-1-51712.lock"
        // As a worker of an earlier version, which had the file open for writing, could have done.
        overwrite(path, identity.note)
        let worker = try #require(lab.worker("vbd-1-51712"))
        if !hasSocket { unlink(lab.run + "/vbd-vbd-1-51712.sock") }
        let daemon = try lab.startDaemon(["--stop-workers"])
        try eventually("somebody serves") {
            let row = try lab.row("vbd/1/51712")
            return hasSocket
                ? row?["worker"]?.string == "adopted" && row?["pid"]?.unsigned == UInt64(worker)
                : row?["worker"]?.string == "foreign"
        }
        #expect(try lab.row("vbd/1/51712")?["pid"]?.unsigned != UInt64(victim.process.process))
        _ = try? lab.ask(.upgrade(VBDReference(parsing: "vbd/1/51712")))
        daemon.process.send(SIGTERM)
        #expect(daemon.wait() == .clean)
        #expect(victim.process.takeExit() == nil, "the process that was named lives")
        if hasSocket { return }
        // Back to the truth: the next xbbd knows the worker.
        overwrite(path, try #require(ProcessIdentity(running: worker)).note)
        try lab.startDaemon()
        try eventually("the worker is taken over") { try lab.row("vbd/1/51712")?["worker"]?.string == "adopted" }
        try lab.store.remove(address.backendPath(own: 0), in: .none)
    }

    @Test("no worker and no process that stands by can write into the file") func readOnly() throws {
        let lab = try DaemonLab()
        let address = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is started") { lab.starts.count == 1 }
        try lab.store.write("\(address.backendPath(own: 0))/state", "4")
        try eventually("another one stands by") { lab.starts.count == 2 }
        for start in lab.starts {
            let process = try #require(Int32(start.split(separator: " ")[0]))
            let flags = SmallFile.contents("/proc/\(process)/fdinfo/3", limit: 4096).map {
                String(decoding: $0, as: UTF8.self)
            }
            let line = try #require(flags?.split(separator: "\n").first { $0.hasPrefix("flags:") })
            let mode = try #require(Int32(line.split(separator: "\t")[1], radix: 8))
            #expect(mode & O_ACCMODE == O_RDONLY, "\(start): \(line)")
        }
    }

    @Test("an xbbd that dies while a worker hands over leaves two that the next one knows") func diesInBetween() throws
    {
        let lab = try DaemonLab()
        let address = try lab.makeNode(1, 51712)
        lab.behave("vbd-1-51712", "deaf")
        try lab.startDaemon()
        try eventually("it is started") { lab.starts.count == 1 }
        let old = try #require(lab.worker("vbd-1-51712"))
        _ = try lab.ask(.upgrade(VBDReference(parsing: "vbd/1/51712")))
        let path = lab.run + "/vbd-vbd-1-51712.lock"
        try eventually("the next one is called") {
            LockNote(reading: SmallFile.contents(path, limit: LockNote.size) ?? []).next != nil
        }
        lab.killDaemons()
        try lab.startDaemon()
        try eventually("the old one is taken over") {
            try lab.row("vbd/1/51712")?["pid"]?.unsigned == UInt64(old)
        }
        let next = try #require(lab.worker("vbd-1-51712"))
        kill(old, SIGKILL)
        try eventually("the next one is taken over") {
            try lab.row("vbd/1/51712")?["pid"]?.unsigned == UInt64(next)
        }
        #expect(lab.starts.count == 2, "nobody else was started: \(lab.starts)")
        try lab.store.remove(address.backendPath(own: 0), in: .none)
    }
}
