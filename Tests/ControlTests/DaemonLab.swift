// SPDX-License-Identifier: BSD-2-Clause
// A place for tests of xbbd: a XenStore of its own, the real programs, and fake workers.
import BlockQueue
import PluginHost
import Base
import CLinux
import Glibc
import Synchronization
import Testing
import Xen
import XenBus
import XenLoopback

@testable import XBBControl
import Support

/// A program that a test started.
final class Program {
    let process: WorkerProcess
    private let output: Descriptor?
    private(set) var exit: WorkerExit?

    /// The program has `kept` as descriptor 3.
    init(_ arguments: [String], capture: Bool = false, kept: Descriptor? = nil) throws {
        guard capture else {
            output = nil
            process = try WorkerProcess.spawn(arguments, kept: kept)
            return
        }
        var ends: [Int32] = [-1, -1]
        #expect(pipe2(&ends, O_CLOEXEC) == 0)
        output = Descriptor(owning: ends[0])
        process = try WorkerProcess.spawn(arguments, output: Descriptor(owning: ends[1]))
    }

    /// Waits for the end; a program that takes longer than 60 s is killed.
    @discardableResult
    func wait() -> WorkerExit {
        if let exit { return exit }
        var entry = pollfd(fd: process.pidfd.raw, events: Int16(POLLIN), revents: 0)
        if poll(&entry, 1, 60_000) != 1 {
            Issue.record("process \(process.process) does not end")
            process.send(SIGKILL)
            poll(&entry, 1, -1)
        }
        let exit = process.takeExit() ?? .unknown
        self.exit = exit
        return exit
    }

    /// Everything that it printed, after its end.
    func text() -> String {
        var bytes: [UInt8] = []
        while let output, case .bytes(let more) = output.readAvailable() { bytes += more }
        wait()
        return String(decoding: bytes, as: UTF8.self)
    }

    deinit {
        if exit == nil {
            process.send(SIGKILL)
            wait()
        }
    }
}

/// Directories, XenStore with domains 1 and 2, and what runs in them. All of it ends with the lab.
final class DaemonLab {
    /// Where SwiftPM puts what it builds: beside this test.
    static let products = InstallPaths.programFolder

    let root: String
    let server: XenStoreServer
    let store: any XenStore
    private var daemons: [Program] = []

    var run: String { root + "/run" }
    var socket: String { run + "/xbbd.sock" }
    var workers: String { root + "/workers" }

    init() throws {
        var template = Array("/tmp/xbb-control.XXXXXX".utf8CString)
        root = String(cString: try #require(mkdtemp(&template)))
        mkdir(root + "/run", 0o755)
        mkdir(root + "/xen", 0o755)
        mkdir(root + "/workers", 0o755)
        server = try XenStoreServer(directory: root + "/xen")
        for domain in [1, 2] as [DomainID] { try server.addDomain(domain) }
        store = try Self.openStore(root + "/xen", server)
    }

    /// XENSTORED_PATH is the whole process's, and other tests set it too: a connection to another store is no use.
    private static func openStore(_ directory: String, _ server: XenStoreServer) throws -> any XenStore {
        let marker = DomainID.random(in: 1000..<30000)
        try server.addDomain(marker)
        defer { server.removeDomain(marker) }
        while true {
            let store = try LoopbackPlatform(directory: directory).openStore()
            if try store.text("/local/domain/\(marker)/domid") == String(marker) { return store }
        }
    }

    /// Says how the worker of a VBD behaves: "vbd-1-51712".
    func behave(_ name: String, _ word: String) {
        // Renamed into place, as a worker that starts meanwhile would take an empty file for "serve".
        let next = "\(workers)/next-\(name)"
        let file = clinux_open(next, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        _ = word.withCString { write(file, $0, strlen($0)) }
        close(file)
        rename(next, "\(workers)/\(name)")
    }

    /// Writes a file of the lab's directory.
    func put(_ name: String, _ text: String) {
        let file = clinux_open("\(root)/\(name)", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        _ = text.withCString { Glibc.write(file, $0, strlen($0)) }
        close(file)
    }

    /// Starts xbbd with fake workers and waits until it answers.
    @discardableResult
    func startDaemon(_ options: [String] = []) throws -> Program {
        let environment = ["/usr/bin/env", "FAKE_WORKER_DIR=\(workers)", Self.products + "/xbbd"]
        let program = try Program(
            environment + ["--loopback", root + "/xen", "--run-dir", run, "--worker", Self.products + "/fake-worker"]
                + options)
        daemons.append(program)
        try eventually("xbbd answers") { (try? self.ask(.ping)) != nil }
        return program
    }

    /// Ends every xbbd at once, without a chance to say goodbye.
    func killDaemons() {
        for daemon in daemons where daemon.exit == nil {
            daemon.process.send(SIGKILL)
            daemon.wait()
        }
    }

    func ask(_ request: ControlRequest) throws -> JSON {
        try ControlClient(path: socket).call(request).value
    }

    /// The row of a VBD in the list.
    func row(_ vbd: String) throws -> JSON? {
        try ask(.list)["vbds"]?.elements.first { $0["vbd"]?.string == vbd }
    }

    /// Runs xbbctl and gives what it printed, and how it ended.
    func control(_ arguments: [String], socket isNamed: Bool = true) throws -> (text: String, exit: WorkerExit) {
        let program = try Program(
            [Self.products + "/xbbctl"] + arguments + ["--loopback", root + "/xen"]
                + (isNamed ? ["--socket", socket] : []), capture: true)
        return (program.text(), program.wait())
    }

    /// Makes the nodes of a VBD, as the toolstack does.
    func makeNode(
        _ domain: DomainID, _ device: UInt32, kind: String = "vbd", script: String? = DiskClaim.scriptPath
    ) throws -> VBDAddress {
        let address = try #require(VBDAddress(kind: kind, domain: domain, device: device))
        let request = AttachRequest(
            address: address, deviceName: "xvda",
            disk: try DiskSpecification(parsing: "raw:/disk.img", workingDirectory: ""), isReadOnly: false,
            options: try PluginOptions([]))
        try store.transaction { (transaction) throws(OperationError) in
            try DeviceNodes(request, own: 0).write(to: store, in: transaction)
            let key = "\(address.backendPath(own: 0))/\(BackendKey.script)"
            if let script {
                if StorageSource(kind: kind) == .hotplug { try store.write(key, script, in: transaction) }
            } else {
                try store.remove(key, in: transaction)
            }
        }
        return address
    }

    /// Lines that workers wrote at their start: process and VBD.
    var starts: [String] {
        let raw = clinux_open(workers + "/log", O_RDONLY, 0)
        guard raw >= 0 else { return [] }
        let file = Descriptor(owning: raw)
        var bytes: [UInt8] = []
        while case .bytes(let more) = file.readAvailable() { bytes += more }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n").map(String.init)
    }

    /// The worker of a VBD that was started last.
    func worker(_ name: String) -> Int32? {
        starts.last { $0.hasSuffix(" \(name)") }.flatMap { Int32($0.split(separator: " ")[0]) }
    }

    deinit {
        for daemon in daemons where daemon.exit == nil {
            daemon.process.send(SIGKILL)
            daemon.wait()
        }
        for start in starts {
            guard let process = Int32(start.split(separator: " ")[0]),
                let identity = ProcessIdentity(running: process),
                let worker = WorkerProcess.adopt(identity), isFakeWorker(process)
            else { continue }
            worker.send(SIGKILL)
        }
        server.stop()
        let cleaner = try? Program(["/bin/rm", "-rf", root])
        cleaner?.wait()
    }

    private func isFakeWorker(_ process: Int32) -> Bool {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/\(process)/exe", &buffer, buffer.count)
        return count > 0
            && String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
                .split(separator: " ").first?.hasSuffix("/fake-worker") == true
    }
}

/// Looks again and again until `condition` holds; a test fails where it does not within 30 s.
func eventually(
    _ what: String, sourceLocation: SourceLocation = #_sourceLocation, _ condition: () throws -> Bool
) throws {
    let deadline = clinux_monotonic_ns() + 30_000_000_000
    while clinux_monotonic_ns() < deadline {
        if try condition() { return }
        usleep(10_000)
    }
    Issue.record("did not come true within 30 s: \(what)", sourceLocation: sourceLocation)
    throw ControlError(what)
}

/// What threads of a test did, in order.
final class OrderLog: Sendable {
    private let notes = Mutex<[(String, String?)]>([])

    func note(_ name: String, _ text: String?) { notes.withLock { $0.append((name, text)) } }
    var names: [String] { notes.withLock { $0.map(\.0) } }
    var texts: [String] { notes.withLock { $0.compactMap(\.1) } }
}

/// Runs `body` on a thread, and `whileRunning` here; returns when both have ended.
func withThread(_ body: @escaping () -> Void, whileRunning: () throws -> Void) rethrows {
    final class Box {
        let body: () -> Void
        init(_ body: @escaping () -> Void) { self.body = body }
    }
    var thread = pthread_t()
    pthread_create(
        &thread, nil,
        { argument in
            if let argument { Unmanaged<Box>.fromOpaque(argument).takeRetainedValue().body() }
            return nil
        }, Unmanaged.passRetained(Box(body)).toOpaque())
    defer { pthread_join(thread, nil) }
    try whileRunning()
}

/// A datagram socket at `path`.
func bindDatagram(_ path: String) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
    let raw = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0)
    let result = withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            bind(raw, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
    return result == 0 ? raw : -1
}
