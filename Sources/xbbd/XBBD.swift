// SPDX-License-Identifier: BSD-2-Clause
// xbbd: the command line of the supervisor.
import Base
import ArgumentParser
import Support
import XBBControl
import Xen

@main
struct XBBD: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "xbbd",
        abstract: "Starts and watches over one xbb-vbd for each virtual block device of this domain.",
        discussion: """
            Workers go on when xbbd ends, and the next xbbd takes them over. SIGTERM and SIGINT end it, SIGHUP tries \
            devices again whose workers failed too often. Options win over the configuration file. See xbbd(8) and \
            xbb.conf(5).
            """,
        version: "xbbd \(xbbVersion)")

    enum RunMode: EnumerableFlag {
        case foreground
        case background

        static func help(for value: RunMode) -> ArgumentHelp? {
            switch value {
            case .foreground: "Stay in the foreground and log to standard error."
            case .background: "Go into the background and log to the system log."
            }
        }
    }

    @Option(
        help: ArgumentHelp(
            "The configuration file. (default: \(DaemonConfiguration.usualPath) if it is there, and not on loopback)",
            valueName: "path"))
    var config: String?

    @Flag(help: "Check the configuration file, say what is wrong with it, and end.")
    var checkConfig = false

    @Option(help: ArgumentHelp("Run on the loopback Xen at this directory instead of on Xen.", valueName: "dir"))
    var loopback: String?

    @Option(help: ArgumentHelp("Where sockets and locks are. (default: /run/xbb)", valueName: "dir"))
    var runDir: String?

    @Option(
        help: ArgumentHelp(
            "Where it is remembered as what images were served. (default: \(DaemonConfiguration.usualStateDirectory), on loopback its directory)",
            valueName: "dir"))
    var stateDir: String?

    @Option(help: ArgumentHelp("Members of this group may use xbbctl too. (default: root alone)", valueName: "name"))
    var socketGroup: String?

    @Option(
        help: ArgumentHelp("Where to look for plugins; may be given more than once.", valueName: "dir"))
    var pluginDir: [String] = []

    @Option(
        help: ArgumentHelp(
            "Images may name backing files below it; may be given more than once. Without it none is opened.",
            valueName: "dir"))
    var backingDir: [String] = []

    @Option(
        help: ArgumentHelp(
            "A directory below backend/ whose devices are served; may be given more than once. (default: vbd)",
            valueName: "kind"))
    var backend: [String] = []

    @Flag(
        inversion: .prefixedNo,
        help: """
            Serve disks of backend/vbd whose hotplug script is not block-xbb, too, such as plain phy: targets. \
            (default: no)
            """)
    var anyScript: Bool?

    @Option(help: ArgumentHelp("The worker program. (default: xbb-vbd beside xbbd)", valueName: "path"))
    var worker: String?

    @Flag var mode = RunMode.foreground

    @Flag(
        inversion: .prefixedNo,
        help: "When xbbd ends, tell workers to hand their devices over and to end. (default: no)")
    var stopWorkers: Bool?

    @Flag(
        inversion: .prefixedNo,
        help: "Keep a process ready beside each worker whose guest is connected, in case that it dies. (default: yes)")
    var standby: Bool?

    @Option(
        help: ArgumentHelp(
            "So many failures of a worker within --restart-window seconds, and its device is given up. (default: 10)",
            valueName: "n"))
    var restartLimit: Int?

    @Option(help: ArgumentHelp("See --restart-limit. (default: 300)", valueName: "seconds"))
    var restartWindow: Int?

    @Option(help: ArgumentHelp("error, warning, info or debug; for workers too. (default: info)", valueName: "level"))
    var logLevel: String?

    @Option(help: ArgumentHelp("For workers: the most queues of a device, 1 to 64.", valueName: "n"))
    var maxQueues: Int?

    @Option(help: ArgumentHelp("For workers: the largest ring is of 2^n pages, 0 to 5.", valueName: "n"))
    var maxRingPageOrder: Int?

    @Option(help: ArgumentHelp("For workers: MiB for the data of each queue, 1 to 1024.", valueName: "n"))
    var memoryMib: Int?

    @Option(
        help: ArgumentHelp("For workers: microseconds to look for work before sleeping, 0 to 1000000.", valueName: "n"))
    var pollUs: Int?

    @Option(
        help: ArgumentHelp(
            "For workers: a tunable that devices begin with; may be given more than once.", valueName: "key=value"))
    var tunable: [String] = []

    @Option(
        help: ArgumentHelp(
            "For workers: whom they become when their storage is open. (default: xbb)", valueName: "name"))
    var user: String?

    @Flag(
        inversion: .prefixedNo,
        help: "For workers: they give up rights when their storage is open; 'no' is to look for faults. (default: yes)")
    var confine: Bool?

    func validate() throws {
        for kind in backend where !VBDAddress.isKind(kind) {
            throw ValidationError("--backend '\(kind)': expected a name such as vbd, qdisk or vbd3")
        }
        if Set(backend).count != backend.count { throw ValidationError("--backend: a kind is named twice") }
        if let logLevel, LogLevel(word: logLevel) == nil {
            throw ValidationError("--log-level '\(logLevel)': expected error, warning, info or debug")
        }
        let own: [(name: String, value: Int?, range: ClosedRange<Int>?)] = [
            ("restart-limit", restartLimit, DaemonConfiguration.restartLimits),
            ("restart-window", restartWindow, DaemonConfiguration.restartWindows),
        ]
        for (name, value, range) in own + workerNumbers.map({ ($0, $1, DaemonConfiguration.numberRanges[$0]) }) {
            if let value, let range, !range.contains(value) {
                throw ValidationError("--\(name) \(value): expected \(range.lowerBound) to \(range.upperBound)")
            }
        }
    }

    private var workerNumbers: [(name: String, value: Int?)] {
        [
            ("max-queues", maxQueues), ("max-ring-page-order", maxRingPageOrder), ("memory-mib", memoryMib),
            ("poll-us", pollUs),
        ]
    }

    private func configuration() throws(ControlError) -> DaemonConfiguration {
        if let config { return try .read(DaemonProcess.absolute(config), isOptional: false) }
        if loopback != nil && !checkConfig { return DaemonConfiguration() }
        return try .read(DaemonConfiguration.usualPath, isOptional: !checkConfig)
    }

    private func level(_ file: DaemonConfiguration) -> LogLevel {
        logLevel.flatMap { LogLevel(word: $0) } ?? file.logLevel ?? .info
    }

    /// Options, then the file, then what is usual.
    private func settings(_ file: DaemonConfiguration) throws(ControlError) -> SupervisorSettings {
        let plugins = pluginDir.map(DaemonProcess.absolute)
        var workers = WorkerSettings(
            executable: worker.map(DaemonProcess.absolute) ?? file.worker ?? InstallPaths.worker(),
            loopback: loopback.map(DaemonProcess.absolute),
            pluginDirectories: plugins.isEmpty ? file.pluginDirectories ?? [InstallPaths.plugins()] : plugins)
        let state = stateDir.map(DaemonProcess.absolute) ?? file.stateDirectory ?? workers.loopback
        workers.options = [
            "--log-level", level(file).word, "--state-dir", state ?? DaemonConfiguration.usualStateDirectory,
        ]
        for (name, value) in workerNumbers {
            if let value = value ?? file.numbers[name] { workers.options += ["--\(name)", String(value)] }
        }
        let backing = backingDir.map(DaemonProcess.absolute)
        for directory in backing.isEmpty ? file.backingDirectories ?? [] : backing {
            workers.options += ["--backing-dir", directory]
        }
        if let user = user ?? file.user { workers.options += ["--user", user] }
        if confine ?? file.confines == false { workers.options.append("--no-confine") }
        for (key, value) in file.tunables.sorted(by: { $0.key < $1.key }) {
            workers.options += ["--tunable", "\(key)=\(value)"]
        }
        for setting in tunable { workers.options += ["--tunable", setting] }
        var settings = SupervisorSettings(
            runDirectory: runDir.map(DaemonProcess.absolute) ?? file.runDirectory ?? "/run/xbb",
            kinds: backend.isEmpty ? file.backends ?? ["vbd"] : backend, workers: workers)
        if let group = socketGroup ?? file.socketGroup { settings.socketGroup = try DaemonProcess.group(named: group) }
        settings.claim.takesAnyScript = anyScript ?? file.takesAnyScript ?? false
        settings.stopsWorkers = stopWorkers ?? file.stopsWorkers ?? false
        settings.keepsStandby = standby ?? file.keepsStandby ?? true
        if let limit = restartLimit ?? file.restartLimit { settings.policy.failureLimit = limit }
        if let window = restartWindow ?? file.restartWindow { settings.policy.windowSeconds = UInt64(window) }
        return settings
    }

    func run() throws {
        let manager = ServiceManager()
        var log = Log(name: "xbbd")
        if mode == .background { log.showsPriority = true }
        do throws(ControlError) {
            let file = try configuration()
            if checkConfig { return print("\(config ?? DaemonConfiguration.usualPath): no problem found") }
            log.level = level(file)
            log.history = LogHistory()
            let settings = try settings(file)
            DaemonProcess.raiseDescriptorLimit()
            let store = try StoreAccess.open(loopback: settings.workers.loopback)
            let supervisor = try Supervisor(settings: settings, store: store, log: log) { () throws(ControlError) in
                if mode == .background { try DaemonProcess.detach() }
            }
            try supervise(supervisor, manager)
        } catch {
            for line in error.description.split(separator: "\n") { log.error(String(line)) }
            throw ExitCode(error.status.rawValue)
        }
    }

    private func supervise(_ supervisor: Supervisor, _ manager: ServiceManager) throws(ControlError) {
        do throws(OperationError) {
            try supervisor.run(for: manager)
        } catch {
            throw ControlError("XenStore: \(error); workers go on", status: .unreachable)
        }
    }
}
