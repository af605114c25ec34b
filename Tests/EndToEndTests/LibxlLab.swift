// SPDX-License-Identifier: BSD-2-Clause
// The real xbbd under a toolstack that does what libxl does: nodes, states, hotplug scripts, removal.
import Base
import Blkfront
import CLinux
import Foundation
import Support
import Testing
import Xen
import XenLoopback

/// A disk as libxl's device_disk_add writes it (libxl_disk.c of 4.17).
struct LibxlDisk {
    /// "vbd", "qdisk" or "vbd3".
    var kind = "vbd"
    /// The frontend's domain.
    var guest: DomainID
    var number: UInt32 = 51712
    /// The target, with a format in front where the kind has one.
    var params: String
    /// The hotplug script; kinds without one have no such key.
    var script = "/etc/xen/scripts/block-xbb"
    var mode = "w"
    var deviceType = "disk"
    /// The domain of the backend.
    var backend: DomainID = 0

    /// What scripts are given: relative to the home of the backend's domain.
    var busPath: String { "backend/\(kind)/\(guest)/\(number)" }
    var back: String { "/local/domain/\(backend)/\(busPath)" }
    var front: String { "/local/domain/\(guest)/device/vbd/\(number)" }
}

/// How a script ended.
struct ScriptResult {
    var status: Int32
    var seconds: Double
}

/// A loopback Xen with xbbd, real workers and the toolstack's side of everything.
final class LibxlLab {
    static let script = "\(packageDirectory)/scripts/xen/block-xbb"

    let directory: String
    let xen: LoopbackXen
    let control: LoopbackControl
    let store: any XenStore
    /// Where the plugins are.
    let plugins: String
    private var daemon = Process()
    private var isStopped = false
    private var hasRunSpace = false

    /// The domain that xbbd runs in.
    let domain: DomainID

    /// xbbd serves `kinds` with `options`, in domain 0 or in a driver domain. `runSpace`: its run directory is a file system of
    /// so many bytes.
    init(
        kinds: [String] = ["vbd"], options: [String] = [], inDriverDomain: Bool = false, runSpace: Int? = nil
    ) throws {
        directory = try makeTemporaryDirectory("libxl")
        xen = try LoopbackXen(directory: "\(directory)/xen")
        control = try LoopbackControl(directory: xen.directory)
        store = try xen.platform().openStore()
        domain = inDriverDomain ? try control.createDomain() : 0
        if inDriverDomain { try Self.prepareDriverDomain(domain, store) }
        plugins = try Lab.stagePlugins(in: "\(directory)/plugins")
        mkdir("\(directory)/run", 0o755)
        if let runSpace { try Self.shell("mount -t tmpfs -o size=\(runSpace),mode=755 tmpfs '\(directory)/run'") }
        hasRunSpace = runSpace != nil
        arguments =
            [
                "--loopback", xen.directory, "--run-dir", "\(directory)/run", "--plugin-dir", plugins, "--worker",
                "\(buildDirectory)/xbb-vbd", "--stop-workers",
            ] + kinds.flatMap { ["--backend", $0] } + options
        _ = FileManager.default.createFile(atPath: "\(directory)/log", contents: nil)
        try start()
    }

    private let arguments: [String]

    /// The number of xbbd's process.
    var daemonProcess: Int32 { daemon.processIdentifier }

    /// Starts xbbd, with `environment` as well.
    func start(environment: [String: String] = [:]) throws {
        unlink("\(directory)/run/xbbd.sock")
        daemon = Process()
        daemon.executableURL = URL(fileURLWithPath: "\(buildDirectory)/xbbd")
        daemon.arguments = arguments
        daemon.environment = ["SWIFT_BACKTRACE": "enable=no", "XBB_LOOPBACK_DOMAIN": String(domain)].merging(
            environment
        ) { $1 }
        let output = FileHandle(forWritingAtPath: "\(directory)/log")
        // A pipe has no end; see ``stallLog()``.
        _ = try? output?.seekToEnd()
        daemon.standardError = output
        try daemon.run()
        try eventually("xbbd to answer; log: \(log)") {
            FileManager.default.fileExists(atPath: "\(directory)/run/xbbd.sock")
        }
    }

    deinit { stop() }

    /// Starts xbbd anew with a log that nobody reads and that is full; until the result is closed.
    func stallLog() throws -> Descriptor {
        let path = "\(directory)/log"
        killDaemon()
        unlink(path)
        guard mkfifo(path, 0o600) == 0 else { throw OperationError(errno, "mkfifo \(path)") }
        let reader = try Descriptor(clinux_open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0), "open \(path)")
        try start()
        let writer = try Descriptor(clinux_open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0), "open \(path)")
        while write(writer.raw, "fill\n", 5) == 5 {}
        return reader
    }

    /// Starts xbbd as a service manager does that has a descriptor for it (sd_listen_fds(3)).
    func startAgain(with file: Int32, environment: [String: String]) throws {
        let script = "\(directory)/start.sh"
        let words = (["\(buildDirectory)/xbbd"] + arguments).map { "'\($0)'" }.joined(separator: " ")
        try "LISTEN_PID=$$ LISTEN_FDS=1 exec \(words) 2>>'\(directory)/log'\n".write(
            toFile: script, atomically: true, encoding: .utf8)
        for (name, value) in environment { setenv(name, value, 1) }
        defer { for name in environment.keys { unsetenv(name) } }
        unlink("\(directory)/run/xbbd.sock")
        let (code, process) = startProgram("/bin/sh", ["sh", script], kept: file)
        guard code == 0 else { throw OperationError(code, "start xbbd") }
        strayDaemon = process
        try eventually("xbbd to answer; log: \(log)") {
            FileManager.default.fileExists(atPath: "\(directory)/run/xbbd.sock")
        }
    }

    /// An xbbd that ``startAgain(with:environment:)`` has started; 0 for none.
    private var strayDaemon: Int32 = 0

    /// Kills xbbd; workers go on.
    func killDaemon() {
        kill(daemon.processIdentifier, SIGKILL)
        daemon.waitUntilExit()
    }

    /// Runs xbbctl and gives what it printed; throws where it fails.
    @discardableResult
    func administer(_ command: String) throws -> String {
        try Self.shell(
            "'\(buildDirectory)/xbbctl' \(command) --loopback '\(xen.directory)' "
                + "--socket '\(directory)/run/xbbd.sock' 2>&1")
    }

    /// A disk in `xbbctl list --json`, with the members that tests look at (xbb-json(7)).
    struct Row: Decodable {
        var vbd: String
        var pid: Int32?
        var worker: String
        var state: String?
        var starts: Int
        var trouble: String?
        var last_failure: String?
    }

    /// The disks.
    func rows() throws -> [Row] {
        struct List: Decodable { var vbds: [Row] }
        return try JSONDecoder().decode(List.self, from: Data(try administer("list --json").utf8)).vbds
    }

    /// The worker of the only disk; nil while there is none.
    func worker() throws -> Int32? { try rows().first?.pid }

    /// The process that serves a disk.
    func worker(_ disk: LibxlDisk) throws -> Int32 {
        let rows = try rows()
        guard let process = rows.first(where: { $0.vbd == "\(disk.kind)/\(disk.guest)/\(disk.number)" })?.pid else {
            throw LabError("no worker of \(disk.back): \(rows)")
        }
        return process
    }

    /// Ends everything; workers end with xbbd.
    func stop() {
        if isStopped { return }
        isStopped = true
        if strayDaemon > 0 {
            kill(strayDaemon, SIGTERM)
            var status: Int32 = 0
            waitpid(strayDaemon, &status, 0)
        }
        if daemon.isRunning { daemon.terminate() }
        daemon.waitUntilExit()
        xen.stop()
        if hasRunSpace { _ = try? Self.shell("umount -l '\(directory)/run'") }
        try? FileManager.default.removeItem(atPath: directory)
    }

    /// What libxl makes for a domain that may have backends (libxl_create.c, libxl__domain_make, driver_domain).
    private static func prepareDriverDomain(_ domain: DomainID, _ store: any XenStore) throws {
        for name in ["backend", "device-model", "libxl", "error"] {
            let path = "/local/domain/\(domain)/\(name)"
            try store.makeDirectory(path, in: .none)
            try store.setPermissions(of: path, to: [.init(domain: domain, read: false, write: false)], in: .none)
        }
    }

    /// What xbbd and its workers have logged.
    var log: String { (try? String(contentsOfFile: "\(directory)/log", encoding: .utf8)) ?? "" }

    /// A new guest.
    func guest() throws -> LoopbackDomain {
        let id = try control.createDomain(pages: 8192)
        return try LoopbackDomain(joining: id, directory: xen.directory)
    }

    /// A new image.
    func image(_ name: String = "disk.img", bytes: Int = 16 << 20) throws -> String {
        let path = "\(directory)/\(name)"
        guard FileManager.default.createFile(atPath: path, contents: nil), truncate(path, bytes) == 0 else {
            throw OperationError(errno, "make \(path)")
        }
        return path
    }

    // MARK: XenStore

    func key(_ name: String, of disk: LibxlDisk) throws -> String? { try store.text("\(disk.back)/\(name)") }

    /// What libxl writes for a disk, in one transaction.
    /// - Parameter params: the bytes of `params`, where they are no text.
    func makeNodes(_ disk: LibxlDisk, params: [UInt8]? = nil) throws {
        let backend: [(String, String)] = [
            ("frontend", disk.front), ("params", disk.params), ("script", disk.script),
            ("frontend-id", String(disk.guest)), ("online", "1"), ("removable", "0"), ("bootable", "1"),
            ("state", "1"), ("dev", "xvd\(disk.number)"), ("type", disk.kind == "vbd" ? "phy" : disk.kind),
            ("mode", disk.mode), ("device-type", disk.deviceType), ("discard-enable", "1"), ("specification", "xen"),
        ]
        let frontend: [(String, String)] = [
            ("backend", disk.back), ("backend-id", String(disk.backend)), ("state", "1"),
            ("virtual-device", String(disk.number)), ("device-type", disk.deviceType), ("trusted", "1"),
        ]
        try store.transaction { transaction throws(OperationError) in
            for (node, owner, reader, keys) in [
                (disk.front, disk.guest, disk.backend, frontend), (disk.back, disk.backend, disk.guest, backend),
            ] {
                try store.makeDirectory(node, in: transaction)
                try store.setPermissions(
                    of: node,
                    to: [
                        .init(domain: owner, read: false, write: false),
                        .init(domain: reader, read: true, write: false),
                    ], in: transaction)
                for (key, value) in keys where key != "script" || disk.kind != "qdisk" {
                    let bytes = key == "params" ? params ?? Array(value.utf8) : Array(value.utf8)
                    try store.write("\(node)/\(key)", bytes, in: transaction)
                }
            }
        }
    }

    /// Waits for a state as long as libxl does.
    func awaitState(_ state: String, of disk: LibxlDisk) throws {
        try eventually("\(disk.back) in state \(state), not \(try key("state", of: disk) ?? "none")", seconds: 10) {
            try key("state", of: disk) == state
        }
    }

    /// Nodes, state 2, script: libxl__device_disk_add for a vbd.
    @discardableResult
    func add(_ disk: LibxlDisk, seconds: Int = 30) throws -> ScriptResult {
        try makeNodes(disk)
        try awaitState("2", of: disk)
        return try run("add", disk, seconds: seconds)
    }

    /// Runs block-xbb as libxl__get_hotplug_script_info says.
    func run(_ action: String, _ disk: LibxlDisk, seconds: Int = 30) throws -> ScriptResult {
        let (process, started) = try start(action, disk, seconds: seconds)
        process.waitUntilExit()
        return ScriptResult(
            status: process.terminationStatus, seconds: Double(clinux_monotonic_ns() - started) / 1e9)
    }

    /// What Xen's own script "block" writes, in its order (write_dev of block-common.sh).
    func doAsXensBlock(_ disk: LibxlDisk, device: String) throws {
        let number = try Self.shell("stat -L -c %t:%T \(device)")
        for (key, value) in [
            ("physical-device", number), ("physical-device-path", device), ("hotplug-status", "connected"),
        ] { try xenstore("write \(disk.busPath)/\(key) \(value)", domain: disk.backend) }
    }

    /// Starts block-xbb; when it was started, in ns.
    func start(_ action: String, _ disk: LibxlDisk, seconds: Int = 30) throws -> (Process, UInt64) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: Self.script)
        process.arguments = [action]
        process.environment = [
            "PATH": "/usr/bin:/bin", "XENBUS_PATH": disk.busPath, "XENBUS_TYPE": disk.kind,
            "XENBUS_BASE_PATH": "backend", "script": Self.script, "XENSTORED_PATH": socket(disk.backend),
            "XBB_HOTPLUG_LOCKS": "\(directory)/locks", "XBB_HOTPLUG_SECONDS": String(seconds),
            "XBB_HOTPLUG_PLUGINS": plugins, "XBB_HOTPLUG_XBBCTL": "\(buildDirectory)/xbbctl",
        ]
        let started = clinux_monotonic_ns()
        try process.run()
        return (process, started)
    }

    private func socket(_ domain: DomainID) -> String {
        "\(xen.directory)/xenstored\(domain == 0 ? "" : "-\(domain)").sock"
    }

    /// The frontend of a disk, connected.
    func connect(
        _ disk: LibxlDisk, _ guest: LoopbackDomain, _ change: (inout FrontOptions) -> Void = { _ in }
    ) throws -> FrontDevice {
        var options = FrontOptions()
        change(&options)
        let device = FrontDevice(
            domain: guest, store: try guest.openStore(), number: disk.number, options: options)
        try device.connect()
        return device
    }

    /// What libxl writes to have a disk back: libxl__initiate_device_generic_remove. A state 6 stays.
    func requestRemoval(_ disk: LibxlDisk) throws {
        try store.transaction { transaction throws(OperationError) in
            try store.write("\(disk.back)/online", "0", in: transaction)
            if try store.text("\(disk.back)/state", in: transaction) != "6" {
                try store.write("\(disk.back)/state", "5", in: transaction)
            }
        }
    }

    /// The whole removal, script and nodes included.
    func remove(_ disk: LibxlDisk) throws {
        try requestRemoval(disk)
        try awaitState("6", of: disk)
        if disk.kind != "qdisk" { #expect(try run("remove", disk).status == 0) }
        // In a driver domain `xl devd` removes the backend's path, and libxl waits until it is gone.
        let backend = try xen.platform(domain: disk.backend).openStore()
        try backend.remove(disk.back, in: .none)
        try store.remove(disk.front, in: .none)
    }

    /// Runs xbbctl with the words of a shell, and gives what it said on both outputs.
    func xbbctl(_ words: String) throws -> (status: Int32, text: String) {
        let process = Process()
        let pipe = Pipe()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", "exec \(buildDirectory)/xbbctl \(words) --loopback '\(xen.directory)' 2>&1"]
        process.environment = ["PATH": "/usr/bin:/bin", "SWIFT_BACKTRACE": "enable=no"]
        process.standardOutput = pipe
        try process.run()
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return (process.terminationStatus, String(decoding: output, as: UTF8.self))
    }

    // MARK: Device model

    /// A device model that was started.
    struct DeviceModelRun {
        let process: Process
        let monitorPath: String
        private let logPath: String

        init(_ process: Process, monitorPath: String, logPath: String) {
            self.process = process
            self.monitorPath = monitorPath
            self.logPath = logPath
        }

        var log: String { (try? String(contentsOfFile: logPath, encoding: .utf8)) ?? "" }

        /// How it ended by itself.
        func status() -> Int32 {
            process.waitUntilExit()
            return process.terminationReason == .exit ? process.terminationStatus : -process.terminationStatus
        }
    }

    /// Starts xbb-dm with what libxl 4.17 gives to QEMU for a PV guest (libxl__build_device_model_args_new) and the
    /// user's `extra` (device_model_args).
    func startDeviceModel(_ guest: DomainID, extra: [String] = [], replacing arguments: [String]? = nil) throws
        -> DeviceModelRun
    {
        let process = Process()
        let monitor = "\(directory)/qmp-libxl-\(guest)"
        let log = "\(directory)/qemu-dm-\(guest).log"
        process.executableURL = URL(fileURLWithPath: "\(buildDirectory)/xbb-dm")
        process.arguments =
            arguments ?? [
                "-xen-domid", String(guest), "-no-shutdown", "-chardev",
                "socket,id=libxl-cmd,path=\(monitor),server=on,wait=off", "-mon", "chardev=libxl-cmd,mode=control",
                "-chardev", "socket,id=libxenstat-cmd,path=\(directory)/qmp-libxenstat,server=on,wait=off", "-mon",
                "chardev=libxenstat-cmd,mode=control", "-nodefaults", "-no-user-config", "-xen-attach", "-name",
                "-vnc", "-vnc", "none", "-display", "none", "-nographic", "-machine", "xenpv", "-m", "256",
            ]
        process.arguments?.append(contentsOf: extra + ["--loopback", xen.directory])
        process.environment = ["SWIFT_BACKTRACE": "enable=no", "XBB_LOOPBACK_DOMAIN": String(domain)]
        _ = FileManager.default.createFile(atPath: log, contents: nil)
        process.standardError = FileHandle(forWritingAtPath: log)
        try process.run()
        return DeviceModelRun(process, monitorPath: monitor, logPath: log)
    }

    /// Waits until a device model says that it runs; no longer than libxl does.
    func awaitDeviceModel(_ guest: DomainID, _ model: DeviceModelRun) throws {
        let home = "/local/domain/\(domain)"
        try eventually("the device model to run; log: \(model.log)", seconds: 60) {
            try store.text("\(home)/device-model/\(guest)/state") == "running"
        }
    }

    /// The positions of a process's open files of `image`: what a plugin leaves there for the worker that follows.
    static func positions(of image: String, in process: Int32) throws -> Set<String> {
        let script = """
            wanted=$(stat -Lc %d:%i \(image))
            for file in /proc/\(process)/fd/*; do
                [ "$(stat -Lc %d:%i $file 2>/dev/null)" = "$wanted" ] || continue
                sed -n 's/^pos:[[:space:]]*//p' /proc/\(process)/fdinfo/${file##*/}
            done; true
            """
        return Set(try shell(script).split(separator: "\n").map(String.init))
    }

    /// Runs a command line of the shell and gives what it printed.
    @discardableResult
    static func shell(_ command: String, environment: [String: String] = [:]) throws -> String {
        let process = Process()
        let pipe = Pipe()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", command]
        process.environment = ["PATH": "/usr/sbin:/usr/bin:/sbin:/bin"].merging(environment) { $1 }
        process.standardOutput = pipe
        try process.run()
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw LabError(
                "\(command): status \(process.terminationStatus)\n\(String(decoding: output.suffix(2000), as: UTF8.self))"
            )
        }
        return String(decoding: output, as: UTF8.self).trimmingCharacters(in: .newlines)
    }

    /// The tools of XenStore, in a domain.
    func xenstore(_ command: String, domain: DomainID = 0) throws {
        try Self.shell("xenstore-\(command)", environment: ["XENSTORED_PATH": socket(domain)])
    }
}

/// A verified load of reads and writes over a connected device.
func verifiedLoad(_ device: FrontDevice, count: UInt64 = 200) throws -> LoadReport {
    var plan = LoadPlan()
    plan.pattern = .randrw
    plan.maxBlockSize = 64 << 10
    plan.depth = 8
    plan.count = count
    plan.verify = true
    return try LoadRun(device, plan).run()
}
