// SPDX-License-Identifier: BSD-2-Clause
// xbbd: the command line of the supervisor.
import ArgumentParser
import XBBControl
import Xen
import Support

@main
struct XBBD: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "xbbd",
        abstract: "Starts and watches over one xbb-vbd for each virtual block device of this domain.",
        discussion: """
            Workers go on when xbbd ends, and the next xbbd takes them over. SIGTERM and SIGINT end it, SIGHUP tries \
            devices again whose workers failed too often. See xbbd(8).
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

    @Option(help: ArgumentHelp("Run on the loopback Xen at this directory instead of on Xen.", valueName: "dir"))
    var loopback: String?

    @Option(help: ArgumentHelp("Where sockets and locks are.", valueName: "dir"))
    var runDir = "/run/xbb"

    @Option(
        help: ArgumentHelp("Where to look for plugins; may be given more than once.", valueName: "dir"))
    var pluginDir: [String] = []

    @Option(
        help: ArgumentHelp(
            "A directory below backend/ whose devices are served; may be given more than once. (default: vbd)",
            valueName: "kind"))
    var backend: [String] = []

    @Flag(help: "Serve disks of backend/vbd whose hotplug script is not block-xbb, too, such as plain phy: targets.")
    var anyScript = false

    @Option(help: ArgumentHelp("The worker program. (default: xbb-vbd beside xbbd)", valueName: "path"))
    var worker: String?

    @Flag var mode = RunMode.foreground

    @Flag(help: "When xbbd ends, tell workers to hand their devices over and to end.")
    var stopWorkers = false

    @Option(help: ArgumentHelp("error, warning, info or debug; for workers too.", valueName: "level"))
    var logLevel = "info"

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
            "For workers: whom they become when their storage is open. (default: xbb)", valueName: "name"))
    var user: String?

    @Flag(help: "For workers: they keep all rights; to look for faults, not to serve guests.")
    var noConfine = false

    func validate() throws {
        for kind in backend where !VBDAddress.isKind(kind) {
            throw ValidationError("--backend '\(kind)': expected a name such as vbd, qdisk or vbd3")
        }
        if Set(backend).count != backend.count { throw ValidationError("--backend: a kind is named twice") }
        if LogLevel(word: logLevel) == nil {
            throw ValidationError("--log-level '\(logLevel)': expected error, warning, info or debug")
        }
        for (name, value, range) in workerNumbers {
            if let value, !range.contains(value) {
                throw ValidationError("\(name) \(value): expected \(range.lowerBound) to \(range.upperBound)")
            }
        }
    }

    private var workerNumbers: [(name: String, value: Int?, range: ClosedRange<Int>)] {
        [
            ("--max-queues", maxQueues, 1...64), ("--max-ring-page-order", maxRingPageOrder, 0...5),
            ("--memory-mib", memoryMib, 1...1024), ("--poll-us", pollUs, 0...1_000_000),
        ]
    }

    private var settings: SupervisorSettings {
        let plugins = pluginDir.isEmpty ? [InstallPaths.plugins()] : pluginDir.map(DaemonProcess.absolute)
        var workers = WorkerSettings(
            executable: worker.map(DaemonProcess.absolute) ?? InstallPaths.worker(),
            loopback: loopback.map(DaemonProcess.absolute), pluginDirectories: plugins)
        workers.options = ["--log-level", logLevel]
        if let user { workers.options += ["--user", user] }
        if noConfine { workers.options.append("--no-confine") }
        for (name, value, _) in workerNumbers {
            if let value { workers.options += [name, String(value)] }
        }
        var settings = SupervisorSettings(
            runDirectory: DaemonProcess.absolute(runDir), kinds: backend.isEmpty ? ["vbd"] : backend, workers: workers)
        settings.stopsWorkers = stopWorkers
        settings.claim.takesAnyScript = anyScript
        return settings
    }

    func run() throws {
        let settings = settings
        let manager = ServiceManager()
        var log = Log(name: "xbbd", level: LogLevel(word: logLevel) ?? .info)
        if mode == .background { log.showsPriority = true }
        do throws(ControlError) {
            DaemonProcess.raiseDescriptorLimit()
            let store = try StoreAccess.open(loopback: settings.workers.loopback)
            let supervisor = try Supervisor(settings: settings, store: store, log: log) { () throws(ControlError) in
                if mode == .background { try DaemonProcess.detach() }
            }
            try supervise(supervisor, manager)
        } catch {
            log.error(error.description)
            throw ExitCode(error.status.rawValue)
        }
    }

    private func supervise(_ supervisor: Supervisor, _ manager: ServiceManager) throws(ControlError) {
        do throws(XenError) {
            try supervisor.run { manager.say("READY=1") }
            manager.say("STOPPING=1")
        } catch {
            throw ControlError("XenStore: \(error); workers go on", status: .unreachable)
        }
    }
}
