// SPDX-License-Identifier: BSD-2-Clause
// Real servers of NBD, and disks under a real xbbd that are their exports.
import Base
import Blkfront
import CLinux
import Foundation
import Support
import Testing
import Xen
import XenLoopback

/// A server that a test has started. It ends with the test.
final class NBDServer {
    /// Which program it is.
    enum Program {
        case nbdkit, qemuNBD
        /// Tests/NBDTools/hostile.py, which breaks a rule until ``NBDServer/cure()``.
        case hostile(String)
    }

    /// Where it listens.
    enum Place {
        case unix
        /// An address of this machine.
        case tcp(String)
    }

    private let program: Program
    private let base: String
    private let port: UInt16
    /// What it is started with, beside where it listens.
    var words: [String]
    private let place: Place
    /// 0: it does not run.
    private var process: pid_t = 0

    fileprivate init(_ program: Program, _ place: Place, base: String, _ words: [String]) throws {
        (self.program, self.place, self.base, self.words) = (program, place, base, words)
        if case .tcp(let host) = place { port = try freePort(host) } else { port = 0 }
        try start()
    }

    deinit { end(SIGKILL) }

    /// The path of its Unix socket.
    var socket: String { base + ".sock" }

    /// What a URI of its export has behind the scheme, before the name; and `parameters` behind it.
    func uri(_ scheme: String = "nbd", name: String = "", user: String = "", _ parameters: String...) -> String {
        switch place {
        case .unix:
            "\(scheme)+unix://\(user)/\(name)?" + (["socket=\(socket)"] + parameters).joined(separator: "&")
        case .tcp(let host):
            "\(scheme)://\(user)\(host.contains(":") ? "[\(host)]" : host):\(port)/\(name)"
                + (parameters.isEmpty ? "" : "?" + parameters.joined(separator: "&"))
        }
    }

    /// What it has written to its outputs.
    var log: String { text(base + ".log") }

    /// What nbdkit's log filter has written.
    var requests: [String] { text(base + ".requests").split(separator: "\n").map(String.init) }

    private func text(_ path: String) -> String { (try? String(contentsOfFile: path, encoding: .utf8)) ?? "" }

    /// The words for nbdkit's log filter.
    static let logging = ["logfile=BASE.requests", "logappend=true"]

    /// Starts it (again); it listens when this returns.
    func start() throws {
        unlink(socket)
        unlink(base + ".pid")
        let words: [String]
        switch program {
        case .nbdkit: words = ["/usr/bin/nbdkit", "-f", "-P", base + ".pid"] + own("-U", "-i") + self.words
        case .qemuNBD: words = ["/usr/bin/qemu-nbd", "-t", "--pid-file", base + ".pid"] + own("-k", "-b") + self.words
        case .hostile(let mode):
            words = ["\(packageDirectory)/Tests/NBDTools/hostile.py", socket, base + ".pid", mode, base + ".cure"]
        }
        // A thread of a test blocks signals, and what it starts would: not this.
        let line = (["exec"] + words.map { "'\($0.replacingOccurrences(of: "'", with: "'\\''"))'" }).joined(
            separator: " ")
        let (code, process) = startProgram("/bin/sh", ["sh", "-c", "\(line) >>'\(base).log' 2>&1"])
        guard code == 0 else { throw OperationError(code, "start \(words[0])") }
        self.process = process
        try eventually("\(program) to listen: \(log)") {
            guard isRunning else { throw LabError("\(program) has ended: \(log)") }
            return FileManager.default.fileExists(atPath: base + ".pid")
        }
    }

    /// The words of where it listens.
    private func own(_ unix: String, _ host: String) -> [String] {
        switch place {
        case .unix: [unix, socket]
        case .tcp(let address): [host, address, "-p", String(port)]
        }
    }

    private var isRunning: Bool {
        guard process > 0 else { return false }
        var status: Int32 = 0
        guard waitpid(process, &status, WNOHANG) != 0 else { return true }
        process = 0
        return false
    }

    /// Sends a signal.
    func signal(_ number: Int32) { if isRunning { kill(process, number) } }

    /// Ends it, and waits for that. Told to end in order, nbdkit waits for requests of all of its connections: a server without
    /// load ends by SIGKILL.
    func end(_ number: Int32 = SIGKILL) {
        signal(SIGCONT)
        signal(number)
        while isRunning { usleep(1000) }
    }

    /// Makes a server of ``Program/hostile(_:)`` keep the rules from its next connection on.
    func cure() { _ = FileManager.default.createFile(atPath: base + ".cure", contents: nil) }

    /// Makes one whose export shrinks do that with its next connection.
    func shrink() { _ = FileManager.default.createFile(atPath: base + ".cure.shrunk", contents: nil) }
}

/// A port of an address of this machine that nobody listens on, and that the kernel gives to no client by itself.
private func freePort(_ host: String) throws -> UInt16 {
    for _ in 0..<100 {
        let port = UInt16.random(in: 10_000..<30_000)
        let script =
            "import socket; s = socket.create_server(('\(host)', \(port)), family="
            + "socket.\(host.contains(":") ? "AF_INET6" : "AF_INET")); s.close()"
        if (try? LibxlLab.shell("/usr/bin/python3 -c \"\(script)\" 2>/dev/null")) != nil { return port }
    }
    throw LabError("no port of \(host) is free")
}

/// xbbd, a guest, and servers whose exports are the guest's disks.
final class NBDLab {
    let lab: LibxlLab
    let guest: LoopbackDomain
    /// Where images and sockets are.
    let directory: String
    private var servers = 0

    init(options: [String] = []) throws {
        lab = try LibxlLab(options: options)
        let id = try lab.control.createDomain(pages: 65536)
        guest = try LoopbackDomain(joining: id, directory: lab.xen.directory)
        directory = "\(lab.directory)/nbd"
        mkdir(directory, 0o755)
    }

    /// A new server. In `words` the text `BASE` stands for the path that its own files begin with, and `IMAGE` for an image of 16 MiB.
    func serve(_ program: NBDServer.Program = .nbdkit, _ place: NBDServer.Place = .unix, _ words: [String]) throws
        -> NBDServer
    {
        servers += 1
        let base = "\(directory)/\(servers)"
        let image = "\(base).img"
        if words.contains(where: { $0.has("IMAGE") }) {
            _ = FileManager.default.createFile(atPath: image, contents: nil)
            truncate(image, 16 << 20)
        }
        return try NBDServer(
            program, place, base: base,
            words.map { $0.replacingOccurrences(of: "BASE", with: base).replacingOccurrences(of: "IMAGE", with: image) }
        )
    }

    /// The image of the server that was started as this one, from 1 on.
    func image(_ server: Int = 1) -> String { "\(directory)/\(server).img" }

    /// Runs xbbctl, and gives what it said.
    func control(_ command: String) throws -> (status: Int32, text: String) {
        try lab.xbbctl("\(command) --socket '\(lab.directory)/run/xbbd.sock'")
    }

    /// Attaches an export; throws what xbbctl says where that fails. `more` are words of xbbctl's.
    func attach(_ uri: String, _ device: String = "xvda", _ more: String = "") throws {
        let result = try control("attach \(guest.id) \(device) 'nbd:\(uri)' \(more)")
        guard result.status == 0 else { throw LabError(result.text) }
    }

    /// What is said of an export that is refused.
    func refusal(_ uri: String, _ more: String = "") throws -> String {
        let result = try control("attach \(guest.id) xvdz 'nbd:\(uri)' \(more)")
        guard result.status != 0 else { throw LabError("\(uri) is served") }
        return result.text
    }

    /// The guest's frontend of a device, connected.
    func connect(_ device: String = "xvda", _ change: (inout FrontOptions) -> Void = { _ in }) throws -> FrontDevice {
        try lab.connect(disk(device), guest, change)
    }

    /// An export, attached and connected.
    func disk(
        _ server: NBDServer, _ device: String = "xvda", _ more: String = "",
        _ change: (inout FrontOptions) -> Void = { _ in }
    ) throws -> FrontDevice {
        try attach(server.uri(), device, more)
        return try connect(device, change)
    }

    func disk(_ device: String) -> LibxlDisk {
        let letter = device.utf8.last ?? 97
        return LibxlDisk(guest: guest.id, number: 51712 + 16 * UInt32(letter - 97), params: "")
    }

    /// A key of a disk's backend.
    func key(_ name: String, _ device: String = "xvda") throws -> String? { try lab.key(name, of: disk(device)) }

    /// The process that serves a disk.
    func worker(_ device: String = "xvda") throws -> Int32 { try lab.worker(disk(device)) }

    /// Ends the worker of a disk with SIGKILL, and returns when there is another one.
    func killWorker(_ device: String = "xvda") throws {
        let process = try worker(device)
        #expect(kill(process, SIGKILL) == 0)
        try awaitWorker(device, after: process)
    }

    /// Waits until another process than `process` serves a disk, or is about to.
    func awaitWorker(_ device: String = "xvda", after process: Int32) throws {
        try eventually("another worker; log: \(lab.log.suffix(3000))") {
            let now = try lab.rows().first { $0.vbd == "vbd/\(guest.id)/\(disk(device).number)" }?.pid
            return now != nil && now != process
        }
    }

    /// Waits for a text in the log of xbbd and all workers.
    func awaitLog(_ text: String, times: Int = 1) throws {
        try eventually("'\(text)' in the log: \(lab.log.suffix(4000))") {
            lab.log.components(separatedBy: text).count > times
        }
    }

    /// Closes the frontends, detaches, and checks that nothing is left.
    func finish(_ devices: FrontDevice...) throws {
        for device in devices {
            try device.close()
            #expect(device.leakedGrants.isEmpty)
        }
        for row in try lab.rows() {
            let number = row.vbd.split(separator: "/").last ?? ""
            let result = try control("detach \(guest.id) \(number)")
            #expect(result.status == 0, "\(result.text)")
        }
        try eventually("no disk is left") { try lab.rows().isEmpty }
        #expect(!lab.log.has("Fatal error"), "\(lab.log.suffix(3000))")
        lab.stop()
    }
}
