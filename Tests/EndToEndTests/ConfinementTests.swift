// SPDX-License-Identifier: BSD-2-Clause
// What a worker can still do when it serves: docs/confinement.md says it, this tries it.
import Blkfront
import CLinux
import Foundation
import Testing
import XenLoopback

extension EndToEnd {
    /// Changing root directory and user takes root, as xbbd is; those tests are for root.
    @Suite struct ConfinementTests {
        /// Has the plugin of a confined worker try something while it serves a read.
        private func attempt(_ name: String, _ arguments: [String] = [], _ check: (Disk, FrontDevice) throws -> Void)
            throws
        {
            let lab = try Lab()
            let disk = try lab.attach(51712, .plugin("evil", "attempt=\(name)"), arguments: arguments)
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096)
                try queue.publish()
            }
            try check(disk, device)
            lab.stop()
        }

        /// Swift's own handler would start a program, which the filter does not allow: the signal would be SIGSYS.
        @Test(arguments: [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP])
        func aFaultIsToldByItsOwnSignal(_ signal: Int32) throws {
            let lab = try Lab()
            let disk = try lab.attach(environment: ["SWIFT_BACKTRACE=enable=yes"])
            try eventually("the storage") { try disk.worker.show("stage") == "ready" }
            disk.worker.signal(signal)
            #expect(try disk.worker.awaitExit() == .signalled(signal))
            lab.stop()
        }

        /// A log line that says how an attempt ended.
        private func outcome(_ name: String, _ arguments: [String] = []) throws -> String {
            var outcome = ""
            try attempt(name, arguments) { disk, _ in
                try eventually("an outcome; log: \(disk.log)", seconds: 10) {
                    disk.log.has("attempt \(name): ") || !disk.worker.isRunning
                }
                let lines = disk.log.split(separator: "\n")
                outcome = String(lines.first { $0.contains("attempt \(name): ") } ?? "none: \(disk.log)")
            }
            return String(outcome.split(separator: "attempt \(name): ").last ?? "")
        }

        @Test(arguments: [
            "rename", "socket", "socketpair", "netlink", "execve", "fork", "vfork", "ptrace", "read_memory", "kill",
            "tgkill", "setuid", "capset", "chroot", "mount", "unshare", "bpf", "prctl", "personality", "last_words",
        ])
        func theProcessEndsThatTries(name: String) throws {
            try attempt(name) { disk, _ in
                let status = try disk.worker.awaitExit(seconds: 10)
                #expect(status == .signalled(SIGSYS), "\(disk.log)")
                #expect(!disk.log.has("attempt \(name): "))
                // The attempt at the last words themselves has none; setuid is called by all threads of the process, and the
                // first of them to die may be the one that takes no signals.
                if !["last_words", "setuid"].contains(name) {
                    #expect(disk.log.has("confinement: system call "), "\(disk.log)")
                }
            }
        }

        @Test(arguments: [
            ("open", EACCES), ("create", EACCES), ("openat2", EACCES), ("stat", EACCES), ("unlink", EACCES),
            ("readlink", EACCES), ("io_uring", EPERM), ("new_code", EACCES), ("changed_code", EACCES),
            ("terminal_input", ENOTTY), ("signal_owner", EPERM), ("limit", EPERM),
            ("send_elsewhere", EPERM),
        ])
        func anErrorIsAllThatItGets(name: String, code: Int32) throws {
            let outcome = try outcome(name)
            #expect(outcome == "-1 errno \(code)")
        }

        /// A worker has no XenStore but its own nodes: no node that another worker would serve as root.
        @Test func itCannotMakeABackendNode() throws {
            let key = "/local/domain/0/backend/vbd/1/51760/physical-device-path"
            try attempt("make_node") { disk, _ in
                try eventually("a refusal; log: \(disk.log)", seconds: 10) {
                    disk.log.has("to write \(key), which is not its own")
                }
                #expect(try disk.lab.toolstack.text(key) == nil)
            }
        }

        /// The same under xbbd: it is told in xbbd's log whose worker tried it, and no process serves the file as root.
        @Test func theAttackThroughXenStoreIsToldByXbbd() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let disk = LibxlDisk(guest: guest.id, params: "evil:\(try lab.image())")
            try lab.makeNodes(disk)
            try lab.store.write("\(disk.back)/xbb-options", "attempt=make_node")
            try lab.awaitState("2", of: disk)
            #expect(try lab.run("add", disk).status == 0, "\(lab.log)")
            let device = try lab.connect(disk, guest)
            try device.queues[0].withQueue { (queue) throws in
                _ = try queue.status(.read, sector: 0, byteCount: 4096)
            }
            let node = "/local/domain/0/backend/vbd/1/51760"
            try eventually("a refusal; log: \(lab.log)", seconds: 10) {
                lab.log.has(
                    "xbb-store \(guest.id)/51712: XenStore: the worker asks to write \(node)/physical-device-path, which is "
                        + "not its own: refused")
            }
            #expect(try lab.store.text(node) == nil)
            // The one that serves the guest is all that there is.
            let text = try lab.administer("list --json")
            #expect(text.has("51712") && !text.has("51760"), "\(text)")
            try device.close()
            try lab.remove(disk)
            lab.stop()
        }

        /// The number that an attempt came to: "attempt NAME: NUMBER errno N".
        private func count(_ log: String, _ name: String) throws -> Int {
            let text = log.components(separatedBy: "attempt \(name): ")
            return try #require(Int(text.dropFirst().first?.split(separator: " ").first ?? ""), "\(log)")
        }

        /// Has the plugin of a worker with lock and journal look for files that it can write.
        private func writableFiles(_ arguments: [String]) throws -> Int {
            let lab = try Lab()
            let lock = clinux_open("\(lab.directory)/lock", O_RDONLY | O_CREAT | O_CLOEXEC, 0o600)
            defer { close(lock) }
            try #require(flock(lock, LOCK_EX) == 0)
            let disk = try lab.prepare(51712, .plugin("evil", "attempt=write_files"))
            try disk.startWorker(
                ["--lock", "3", "--journal", "\(lab.directory)/journal"] + arguments, descriptors: [lock])
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096)
                try queue.publish()
            }
            try eventually("an outcome; log: \(disk.log)") { disk.log.has("attempt write_files: ") }
            let found = try count(disk.log, "write_files")
            lab.stop()
            return found
        }

        /// What xbbd believes, and what could fill the file system of all disks' journals.
        @Test func noFileOfOthersIsWritable() throws {
            #expect(try writableFiles([]) == 0)
            #expect(try writableFiles(["--no-confine"]) > 0, "the attempt finds the journal where it is open")
        }

        @Test func memoryAndDescriptorsHaveLimits() throws {
            try attempt("memory", ["--worker-memory-mib", "64"]) { disk, _ in
                try eventually("an outcome; log: \(disk.log)") { disk.log.has("attempt memory: ") }
                // What its one queue may have comes on top.
                #expect((64...256).contains(try count(disk.log, "memory")))
            }
            try attempt("descriptors") { disk, _ in
                try eventually("an outcome; log: \(disk.log)") { disk.log.has("attempt descriptors: ") }
                #expect((1000...4096).contains(try count(disk.log, "descriptors")))
            }
        }

        @Test(.enabled(if: geteuid() == 0)) func aDiskHasAUserOfItsOwnAndThreadsHaveALimit() throws {
            let empty = try makeTemporaryDirectory("empty")
            try attempt("threads", ["--uid", "1879048201", "--worker-tasks", "64", "--empty-dir", empty]) { disk, _ in
                try eventually("an outcome; log: \(disk.log)", seconds: 20) { disk.log.has("attempt threads: ") }
                #expect((16...64).contains(try count(disk.log, "threads")))
                for field in ["Uid", "Gid"] {
                    let found = try disk.worker.status(field)
                    #expect(found.allSatisfy { $0 == "1879048201 1879048201 1879048201 1879048201" }, "\(found)")
                }
                #expect(try disk.worker.status("Groups").allSatisfy { $0 == "" })
            }
            rmdir(empty)
        }

        /// The handle of a worker's event channels is its guest's.
        @Test(arguments: [false, true]) func anotherGuestsEventChannelCannotBeTaken(isConfined: Bool) throws {
            let lab = try Lab()
            let other = try LoopbackDomain(
                directory: lab.xen.directory, pages: 16, grantEntries: 64, destroyOnExit: true)
            let port = try other.allocatePort(for: 0)
            let disk = try lab.attach(
                51712, .plugin("evil", "attempt=bind_other,argument=\(other.id) \(port.number)"),
                arguments: isConfined ? [] : ["--no-confine"])
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 0, byteCount: 4096)
                try queue.publish()
            }
            try eventually("an outcome; log: \(disk.log)") { disk.log.has("attempt bind_other: ") }
            if isConfined {
                #expect(disk.log.has("attempt bind_other: -1 errno \(EACCES)"), "\(disk.log)")
            }
            // It is the restriction that refuses it.
            #expect(port.isBound == !isConfined, "\(disk.log)")
            lab.stop()
        }

        /// Memory that a guest makes its worker take is not protected as xbbd's is.
        @Test(.enabled(if: ConfinementTests.mayProtect)) func theProtectionOfXbbdIsGivenUp() throws {
            let lab = try Lab()
            try Data("-500".utf8).write(to: URL(fileURLWithPath: "/proc/self/oom_score_adj"))
            defer { try? Data("0".utf8).write(to: URL(fileURLWithPath: "/proc/self/oom_score_adj")) }
            let disk = try lab.attach()
            #expect(try disk.worker.processFile("oom_score_adj") == "0\n")
            lab.stop()
        }

        /// This process may protect itself.
        static var mayProtect: Bool {
            let path = "/proc/self/oom_score_adj"
            guard (try? Data("-1".utf8).write(to: URL(fileURLWithPath: path))) != nil else { return false }
            return (try? Data("0".utf8).write(to: URL(fileURLWithPath: path))) != nil
        }

        /// The same attempts without confinement: it is not something else that refuses them.
        @Test(arguments: ["open", "stat", "socket", "new_code", "limit"])
        func withoutConfinementItMay(name: String) throws {
            let outcome = try outcome(name, ["--no-confine"])
            #expect(!outcome.hasPrefix("-1 "), "\(outcome)")
        }

        @Test(.enabled(if: geteuid() == 0)) func namesLeadNowhereInTheEmptyDirectory() throws {
            let empty = try makeTemporaryDirectory("empty")
            let outcome = try outcome("stat_by_flag", ["--empty-dir", empty])
            #expect(outcome == "-1 errno \(ENOENT)")
            rmdir(empty)
        }

        @Test func whatIsLeftIsLeft() throws {
            let memory = try outcome("data_memory")
            let line = try outcome("write_stderr")
            let limit = try outcome("look_at_limit")
            #expect(
                memory == "0 errno 0" && line == "12 errno 0" && limit == "0 errno 0", "\(memory), \(line), \(limit)")
        }

        @Test(.enabled(if: geteuid() == 0)) func theWholeProcessIsConfined() throws {
            let empty = try makeTemporaryDirectory("empty")
            let lab = try Lab()
            // The image is in a directory that user nobody cannot enter.
            let disk = try lab.attach(arguments: ["--user", "nobody", "--empty-dir", empty])
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            let worker = disk.worker
            let none = "0000000000000000"
            let expected = [
                "NoNewPrivs": "1", "Seccomp": "2", "CapPrm": none, "CapEff": none, "CapInh": none, "CapAmb": none,
                "Groups": "",
            ]
            for (field, value) in expected {
                let found = try worker.status(field)
                #expect(found.count > 2 && found.allSatisfy { $0 == value }, "\(field): \(found)")
            }
            let nobody = try #require(getpwnam("nobody")).pointee
            let user = "\(nobody.pw_uid)"
            let users = try worker.status("Uid")
            #expect(users.allSatisfy { $0 == Array(repeating: user, count: 4).joined(separator: " ") }, "\(users)")
            #expect(try worker.root() == empty)
            #expect(disk.log.has("user nobody"))
            try device.close()
            try lab.finish()
            rmdir(empty)
        }

        @Test func aConfinedWorkerServesOneConnectionAfterAnother() throws {
            let lab = try Lab()
            let disk = try lab.attach(arguments: ["--max-queues", "4"])
            for round in 0..<5 {
                let device = try disk.connect { $0.queues = round % 2 == 0 ? 4 : 1 }
                #expect(try disk.load(device) { $0.count = 60 }.isGood)
                try device.close()
            }
            #expect(disk.log.components(separatedBy: "confined: ").count == 2, "confined once: \(disk.log)")
            try lab.finish()
        }

        @Test func anotherImageIsForAnotherProcess() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect()
            try device.close()
            try disk.exchange(try lab.image("other.img", bytes: 1 << 20))
            try lab.toolstack.write("\(disk.front)/state", "1")
            #expect(try disk.worker.awaitExit() == .exited(0), "\(disk.log)")
            #expect(disk.log.has("is opened by a new process"))
            try disk.startWorker()
            let again = try disk.connect()
            #expect(try disk.load(again) { $0.count = 20 }.isGood)
            try again.close()
            try lab.finish()
        }

        @Test func aUserThatDoesNotExistIsSaid() throws {
            let lab = try Lab()
            let disk = try? lab.attach(arguments: ["--user", "no-such-user"])
            _ = disk
            let worker = try #require(lab.disks.first).worker
            #expect(try worker.awaitExit() == .exited(2))
            #expect(worker.log.has("--user no-such-user: there is no such user"))
        }
    }
}
