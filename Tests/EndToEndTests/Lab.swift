// SPDX-License-Identifier: BSD-2-Clause
// A loopback Xen with one guest, and the toolstack that attaches disks to it.
import Base
import Blkfront
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

/// All tests of this module run one after the other: each has processes of its own and measures them.
@Suite(.serialized) enum EndToEnd {}

/// Something did not happen in time, or a helper failed.
struct LabError: Error, CustomStringConvertible {
    let description: String
    init(_ text: String) { description = text }
}

/// XenStore, hypervisor and one guest in a directory of their own.
final class Lab {
    let directory: String
    let xen: LoopbackXen
    let control: LoopbackControl
    let guest: LoopbackDomain
    let toolstack: any XenStore
    let plugins: String
    private(set) var disks: [Disk] = []

    init(pages: Int = 16384) throws {
        directory = try makeTemporaryDirectory("e2e")
        xen = try LoopbackXen(directory: "\(directory)/xen")
        control = try LoopbackControl(directory: xen.directory)
        let id = try control.createDomain(pages: pages, grantEntries: 16384)
        guest = try LoopbackDomain(joining: id, directory: xen.directory)
        toolstack = try xen.platform().openStore()
        plugins = try Self.stagePlugins(in: "\(directory)/plugins")
    }

    /// Writes the description of each plugin in a folder beside it, as the packages have them: formats are known by these.
    static func describePlugins(in folder: String) throws {
        try LibxlLab.shell("\(packageDirectory)/scripts/describe-plugins.sh \(buildDirectory)/xbb-vbd \(folder)")
    }

    /// Copies the plugins of the build under the names and modes of an installation.
    static func stagePlugins(in folder: String) throws -> String {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
        for name in ["file", "rawdisk", "qcow", "rbd", "vhd", "nbd", "empty", "null", "error", "delay"] {
            let copy = "\(folder)/xbb-\(name).so"
            try FileManager.default.copyItem(atPath: "\(buildDirectory)/libxbb-\(name).so", toPath: copy)
            chmod(copy, 0o755)
        }
        let evil = "\(folder)/xbb-evil.so"
        try FileManager.default.copyItem(atPath: "\(buildDirectory)/libevil-test-plugin.so", toPath: evil)
        chmod(evil, 0o755)
        chmod(folder, 0o755)
        return folder
    }

    /// A disk with nodes and a worker; nobody has connected yet.
    func attach(
        _ number: UInt32 = 51712, _ storage: Storage = Storage(), arguments: [String] = [], environment: [String] = []
    ) throws -> Disk {
        let disk = try prepare(number, storage, arguments: arguments, environment: environment)
        try disk.startWorker()
        return disk
    }

    /// A disk with nodes, without a worker.
    func prepare(
        _ number: UInt32 = 51712, _ storage: Storage = Storage(), arguments: [String] = [], environment: [String] = []
    ) throws -> Disk {
        let disk = try Disk(self, number, storage, arguments, environment)
        disks.append(disk)
        return disk
    }

    /// An empty image of `bytes`.
    func image(_ name: String, bytes: UInt64) throws -> String {
        let path = "\(directory)/\(name)"
        guard FileManager.default.createFile(atPath: path, contents: nil), truncate(path, off_t(bytes)) == 0 else {
            throw OperationError(errno, "make \(path)")
        }
        return path
    }

    /// Detaches every disk and checks that each worker ends well and nothing of the guest is held or lost.
    func finish(mostLog: Int = 65536) throws {
        try disks.first?.checkForLeaks()
        for disk in disks {
            try disk.detach()
            #expect(disk.log.utf8.count <= mostLog, "the log of disk \(disk.number) has \(disk.log.utf8.count) bytes")
            #expect(!disk.log.contains("Fatal error"), "\(disk.log.suffix(2000))")
        }
        // The thread of a test may hold its queue a moment longer.
        try? eventually("all ports to be closed", seconds: 5) {
            try control.domains().allSatisfy { $0.boundPorts == 0 && $0.unboundPorts == 0 }
        }
        for domain in try control.domains() {
            #expect(domain.mappedGrants == 0 && domain.copyingReferences == 0, "\(domain)")
            #expect(domain.grantedReferences == 0 && domain.grantHandles == 0, "\(domain)")
            #expect(domain.boundPorts == 0 && domain.unboundPorts == 0, "\(domain)")
        }
        stop()
    }

    deinit { stop() }

    /// Ends everything without checks; also what a test that failed has left.
    func stop() {
        for disk in disks { disk.killWorkers() }
        disks = []
        xen.stop()
        try? FileManager.default.removeItem(atPath: directory)
    }
}

/// Where a disk's data are, in the words of the toolstack and the hotplug script.
struct Storage {
    /// The image; nil for a new one of ``bytes``.
    var path: String?
    var bytes: UInt64 = 16 << 20
    var mode = "w"
    /// `xbb-format`; nil for raw.
    var format: String?
    /// `xbb-options`
    var options: String?

    /// A disk of a test plugin.
    static func plugin(_ name: String, _ options: String? = nil) -> Storage {
        Storage(path: "/", format: name, options: options)
    }
}

/// One virtual disk: its nodes, its worker and the way to be its frontend.
final class Disk {
    let number: UInt32
    let back: String
    let front: String
    private(set) var path: String
    private(set) var worker: Worker
    let lab: Lab
    private let storage: Storage
    private let arguments: [String]
    private let environment: [String]
    private var logs: [String] = []
    /// Workers that were started beside the one that serves.
    private var others: [Worker] = []

    fileprivate init(
        _ lab: Lab, _ number: UInt32, _ storage: Storage, _ arguments: [String], _ environment: [String]
    ) throws {
        self.lab = lab
        self.number = number
        self.storage = storage
        self.arguments = arguments
        self.environment = environment
        back = "/local/domain/0/backend/vbd/\(lab.guest.id)/\(number)"
        front = "/local/domain/\(lab.guest.id)/device/vbd/\(number)"
        path = try storage.path ?? lab.image("\(number).img", bytes: storage.bytes)
        worker = Worker(lab: lab, number: number, generation: 0)
        try makeNodes()
    }

    /// What libxl writes before the hotplug script runs.
    func makeNodes() throws {
        let store = lab.toolstack
        let guest = lab.guest.id
        let nodes: [(String, [XenStorePermission], [(String, String)])] = [
            (
                front,
                [.init(domain: guest, read: false, write: false), .init(domain: 0, read: true, write: false)],
                [
                    ("backend", back), ("backend-id", "0"), ("state", "1"), ("virtual-device", String(number)),
                    ("device-type", "disk"),
                ]
            ),
            (
                back,
                [.init(domain: 0, read: false, write: false), .init(domain: guest, read: true, write: false)],
                [
                    ("frontend", front), ("frontend-id", String(guest)), ("online", "1"), ("state", "1"),
                    ("mode", storage.mode), ("dev", "xvd\(number)"), ("type", "vbd"), ("device-type", "disk"),
                    ("params", "raw:\(path)"),
                ]
            ),
        ]
        try store.transaction { transaction throws(OperationError) in
            for (node, permissions, keys) in nodes {
                try store.makeDirectory(node, in: transaction)
                try store.setPermissions(of: node, to: permissions, in: transaction)
                for (key, value) in keys { try store.write("\(node)/\(key)", value, in: transaction) }
            }
        }
    }

    /// Starts a worker (again) and tells it where the storage is.
    func startWorker(_ more: [String] = [], environment: [String]? = nil, descriptors: [Int32] = []) throws {
        if worker.hasStarted { follow(with: Worker(lab: lab, number: number, generation: nextGeneration)) }
        try worker.start(
            backend: back, plugins: lab.plugins, arguments + more, environment: environment ?? self.environment,
            descriptors: descriptors)
        if let format = storage.format { try write("xbb-format", format) }
        if let options = storage.options { try write("xbb-options", options) }
        try write("physical-device-path", path)
    }

    /// Starts a worker beside the one that serves, without waiting for anything.
    func startBeside(_ more: [String], environment: [String], descriptors: [Int32]) throws -> Worker {
        let other = Worker(lab: lab, number: number, generation: nextGeneration)
        others.append(other)
        try other.start(
            backend: back, plugins: lab.plugins, arguments + more, environment: environment, descriptors: descriptors,
            awaitsSocket: false)
        return other
    }

    /// Makes another worker the one that serves.
    func follow(with next: Worker) {
        logs.append(worker.log)
        worker = next
    }

    private var nextGeneration: Int { max(worker.generation, others.map(\.generation).max() ?? 0) + 1 }

    fileprivate func killWorkers() {
        for other in others { other.kill() }
        worker.kill()
    }

    /// Names another image, as a hotplug script would; workers that start later are told of it, too.
    func exchange(_ image: String) throws {
        path = image
        try write("physical-device-path", path)
    }

    /// Its storage is a file that works, and no test interferes with its worker.
    var isOrdinary: Bool { storage.path == nil && storage.format == nil && environment.isEmpty }

    /// Everything that its workers have logged.
    var log: String { (logs + [worker.log]).joined() }

    /// The frontend, not connected yet.
    func device(_ change: (inout FrontOptions) -> Void = { _ in }) throws -> FrontDevice {
        var options = FrontOptions()
        options.timeout = 30_000
        change(&options)
        return FrontDevice(domain: lab.guest, store: try lab.guest.openStore(), number: number, options: options)
    }

    /// The frontend, connected.
    func connect(_ change: (inout FrontOptions) -> Void = { _ in }) throws -> FrontDevice {
        let device = try device(change)
        try device.connect()
        return device
    }

    // MARK: The toolstack

    /// A key of the backend, nil where there is none.
    func key(_ name: String) throws -> String? { try lab.toolstack.text("\(back)/\(name)") }

    /// Writes a key of the backend.
    func write(_ name: String, _ value: String) throws { try lab.toolstack.write("\(back)/\(name)", value) }

    /// The error that the worker wrote for operators.
    func error() throws -> String? {
        try lab.toolstack.text("/local/domain/0/error/backend/vbd/\(lab.guest.id)/\(number)/error")
    }

    /// Waits for the error and returns it.
    func awaitError(_ text: String) throws {
        try eventually("an error with '\(text)', not '\(try error() ?? "none")': \(worker.log.suffix(1000))") {
            try error()?.has(text) ?? false
        }
    }

    /// Waits until the backend shows a state.
    func awaitState(_ state: Int) throws {
        try eventually("backend state \(state), not \(try key("state") ?? "none"): \(worker.log.suffix(1000))") {
            try key("state") == String(state)
        }
    }

    /// What libxl writes to detach.
    func requestDetach() throws {
        try lab.toolstack.transaction { transaction throws(OperationError) in
            try lab.toolstack.write("\(back)/online", "0", in: transaction)
            try lab.toolstack.write("\(back)/state", "5", in: transaction)
        }
    }

    /// Detaches and waits for the end of the worker; its exit status is 0.
    func detach() throws {
        guard worker.isRunning else { return }
        if try key("state") != nil { try requestDetach() }
        let status = try worker.awaitExit()
        #expect(status == .exited(0), "disk \(number): \(worker.log.suffix(2000))")
    }

    /// Runs a load on a connected device.
    func load(_ device: FrontDevice, _ change: (inout LoadPlan) -> Void = { _ in }) throws -> LoadReport {
        var plan = LoadPlan()
        plan.pattern = .randrw
        plan.maxBlockSize = 128 << 10
        plan.depth = 16
        plan.count = 400
        plan.verify = true
        change(&plan)
        return try LoadRun(device, plan).run()
    }
}

/// A new directory below /tmp. Its maker removes it, or the end of this process does.
func makeTemporaryDirectory(_ name: String) throws -> String {
    var template = Array("\(temporaryParent)/\(name)-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw OperationError(errno, "mkdtemp \(temporaryParent)") }
    return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// What this process makes below /tmp, all in one directory, which goes with it.
private let temporaryParent: String = {
    let path = "/tmp/xbb-tests-\(getpid())"
    mkdir(path, 0o755)
    atexit { try? FileManager.default.removeItem(atPath: "/tmp/xbb-tests-\(getpid())") }
    return path
}()

/// The directory of the package's sources.
let packageDirectory = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().path

/// The directory of the programs that were built with the tests.
let buildDirectory: String = {
    var path = [CChar](repeating: 0, count: 4096)
    let count = readlink("/proc/self/exe", &path, path.count - 1)
    let program = String(decoding: path.prefix(max(count, 0)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    for argument in [program] + CommandLine.arguments {
        var folder = URL(fileURLWithPath: argument)
        while folder.path.count > 1 {
            folder.deleteLastPathComponent()
            if FileManager.default.fileExists(atPath: folder.appendingPathComponent("xbb-vbd").path) {
                return folder.path
            }
        }
    }
    return ".build/debug"
}()

extension String {
    /// Contains `text`; every text contains the empty one, whichever library's `contains` is found.
    func has(_ text: String) -> Bool { text.isEmpty || contains(text) }
}

/// Asks `condition` again and again until it is true; throws what was awaited after `seconds`.
func eventually(
    _ what: @autoclosure () throws -> String, seconds: Double = 30, _ condition: () throws -> Bool
) throws {
    let end = clinux_monotonic_ns() + UInt64(seconds * 1e9)
    while try !condition() {
        if clinux_monotonic_ns() > end { throw LabError("waited \(seconds) s for \(try what())") }
        usleep(5000)
    }
}
