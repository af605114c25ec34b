// SPDX-License-Identifier: BSD-2-Clause
// What a command says of a disk whose worker has ended: to be asked again if another one is about to begin, else not.
import Glibc
import TestSupport
import Testing

@testable import XBBControl

@Suite struct MissingWorkerTests {
    /// Each asks the worker, in one way or another.
    private static let commands = [
        ["show"], ["stats"], ["set", "poll-us=1"], ["pause"], ["pause", "--release"], ["resume"],
        ["swap", "--image", "raw:/other.img"], ["swap", "--image", "raw:/other.img", "--force"],
        ["snapshot", "/over.qcow2"],
        ["commit"], ["rebase", "--below", "raw:/base.img"], ["resize", "1G"],
    ]

    /// Runs all commands about the one disk of a lab; what is wrong with their exit statuses.
    private func wrong(_ lab: DaemonLab, _ status: Int32, before: () throws -> Void = {}) throws -> [String] {
        try Self.commands.compactMap { command in
            try before()
            let (text, exit) = try lab.control(command.prefix(1) + ["1", "xvda"] + command.dropFirst())
            return exit == WorkerExit(code: status, signal: 0) ? nil : "\(command): \(exit) \(text)"
        }
    }

    /// A lab with one disk; what starts after its first worker behaves like `word`.
    private func lab(_ word: String) throws -> DaemonLab {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon(["--no-standby", "--restart-limit", "1000"])
        try eventually("it is served") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        lab.behave("vbd-1-51712", word)
        return lab
    }

    private func killWorker(_ lab: DaemonLab) throws {
        if let worker = try lab.row("vbd/1/51712")?["pid"]?.unsigned { kill(pid_t(worker), SIGKILL) }
    }

    @Test("a worker that has just been killed, one that waits for its start, and one that does not listen yet: 75")
    func comes() throws {
        let lab = try lab("absent")
        #expect(try wrong(lab, 75) { try killWorker(lab) } == [])
        try eventually("a successor runs") { try lab.row("vbd/1/51712")?["worker"]?.string == "running" }
        #expect(try wrong(lab, 75) == [])
    }

    @Test("a disk for which no worker comes any more: 1") func failed() throws {
        let lab = try lab("exit 2")
        try killWorker(lab)
        try eventually("it is given up") { try lab.row("vbd/1/51712")?["worker"]?.string == "failed" }
        #expect(try wrong(lab, 1) == [])
    }
}
