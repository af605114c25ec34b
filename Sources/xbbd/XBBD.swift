// SPDX-License-Identifier: BSD-2-Clause
// xbbd: the command line of the supervisor.
import Base
import ArgumentParser
import Settings
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

            Exit status: 0 ended as told, 1 failed, 64 wrong usage, 69 XenStore cannot be reached, 78 the configuration \
            cannot be used.
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

    // Options for settings are plain texts: the settings' schema parses them, with its own rules and messages.

    @Option(setting: SettingsSchema.runDirectory) var runDir: String?

    @Option(setting: SettingsSchema.stateDirectory) var stateDir: String?

    @Option(setting: SettingsSchema.socketGroup) var socketGroup: String?

    @Option(setting: SettingsSchema.pluginDirectories) var pluginDir: [String] = []

    @Option(setting: SettingsSchema.backingDirectories) var backingDir: [String] = []

    @Option(setting: SettingsSchema.backends) var backend: [String] = []

    @Flag(inversion: .prefixedNo, help: .setting(SettingsSchema.anyScript)) var anyScript: Bool?

    @Option(setting: SettingsSchema.program) var worker: String?

    @Flag var mode = RunMode.foreground

    @Flag(inversion: .prefixedNo, help: .setting(SettingsSchema.stopWorkers)) var stopWorkers: Bool?

    @Flag(inversion: .prefixedNo, help: .setting(SettingsSchema.standby)) var standby: Bool?

    @Option(setting: SettingsSchema.restartLimit) var restartLimit: String?

    @Option(setting: SettingsSchema.restartWindow) var restartWindow: String?

    @Option(setting: SettingsSchema.logLevel) var logLevel: String?

    @Option(setting: SettingsSchema.maxQueues) var maxQueues: String?

    @Option(setting: SettingsSchema.maxRingPageOrder) var maxRingPageOrder: String?

    @Option(setting: SettingsSchema.maxIndirectSegments) var maxIndirectSegments: String?

    @Option(setting: SettingsSchema.persistentGrants) var persistentGrants: String?

    @Option(setting: SettingsSchema.memoryMiB) var memoryMib: String?

    @Option(setting: SettingsSchema.pollMicroseconds) var pollUs: String?

    @Option(setting: SettingsSchema.stallTime) var stallTime: String?

    @Option(
        help: ArgumentHelp(
            "For workers: a setting that disks begin with and that xbbctl set changes; may be given more than once.",
            valueName: "key=value"),
        completion: .list(SettingsSchema.changing.map { $0.name + "=" }))
    var tunable: [String] = []

    @Option(setting: SettingsSchema.user) var user: String?

    @Option(setting: SettingsSchema.workerUsers) var workerUids: String?

    @Option(setting: SettingsSchema.workerMemoryMiB) var workerMemoryMib: String?

    @Option(setting: SettingsSchema.workerTasks) var workerTasks: String?

    @Option(setting: SettingsSchema.controlGroup) var controlGroup: String?

    @Flag(inversion: .prefixedNo, help: .setting(SettingsSchema.confine)) var confine: Bool?

    /// The values given as options.
    private func given() throws(OperationError) -> SettingValues {
        var values = SettingValues()
        for text in tunable { try SettingsSchema.take(change: text, label: "--tunable", into: &values) }
        func take<Value>(_ setting: Setting<Value>, _ texts: [String]) throws(OperationError) {
            let declaration = setting.declaration
            for text in texts {
                let value = try declaration.parse(
                    option: text, label: "--\(declaration.daemonOption)",
                    workingDirectory: DiskSpecification.currentDirectory)
                values.add(value, to: declaration)
            }
        }
        try take(SettingsSchema.pluginDirectories, pluginDir)
        try take(SettingsSchema.backingDirectories, backingDir)
        try take(SettingsSchema.backends, backend)
        if Set(backend).count != backend.count { throw OperationError(.option, "--backend: a kind is named twice") }
        for (setting, text) in [
            (SettingsSchema.runDirectory, runDir), (SettingsSchema.stateDirectory, stateDir),
            (SettingsSchema.socketGroup, socketGroup), (SettingsSchema.program, worker),
            (SettingsSchema.logLevel, logLevel), (SettingsSchema.user, user),
            (SettingsSchema.workerUsers, workerUids), (SettingsSchema.controlGroup, controlGroup),
            (SettingsSchema.persistentGrants, persistentGrants),
        ] { try take(setting, text.map { [$0] } ?? []) }
        for (setting, text) in [
            (SettingsSchema.restartLimit, restartLimit), (SettingsSchema.restartWindow, restartWindow),
            (SettingsSchema.maxQueues, maxQueues), (SettingsSchema.maxRingPageOrder, maxRingPageOrder),
            (SettingsSchema.maxIndirectSegments, maxIndirectSegments),
            (SettingsSchema.memoryMiB, memoryMib), (SettingsSchema.pollMicroseconds, pollUs),
            (SettingsSchema.stallTime, stallTime), (SettingsSchema.workerMemoryMiB, workerMemoryMib),
            (SettingsSchema.workerTasks, workerTasks),
        ] { try take(setting, text.map { [$0] } ?? []) }
        for (setting, flag) in [
            (SettingsSchema.anyScript, anyScript), (SettingsSchema.stopWorkers, stopWorkers),
            (SettingsSchema.standby, standby), (SettingsSchema.confine, confine),
        ] where flag != nil { values[setting] = flag }
        return values
    }

    func validate() throws {
        do throws(OperationError) {
            _ = try given()
        } catch {
            throw ValidationError(error.description)
        }
    }

    private func configuration() throws(ControlError) -> DaemonConfiguration {
        if let config { return try .read(DaemonProcess.absolute(config), isOptional: false) }
        if loopback != nil && !checkConfig { return DaemonConfiguration() }
        return try .read(DaemonConfiguration.usualPath, isOptional: !checkConfig)
    }

    private func level(_ values: SettingValues) -> LogLevel {
        values[SettingsSchema.logLevel].flatMap { LogLevel(word: $0) } ?? .info
    }

    /// The supervisor's settings: `values`, and the defaults for the rest.
    private func settings(_ values: SettingValues) throws(ControlError) -> SupervisorSettings {
        var workers = WorkerSettings(
            executable: values[SettingsSchema.program] ?? InstallPaths.worker(),
            loopback: loopback.map(DaemonProcess.absolute),
            pluginDirectories: values[SettingsSchema.pluginDirectories] ?? [InstallPaths.plugins()])
        var told = values
        told[SettingsSchema.logLevel] = level(values).word
        told[SettingsSchema.stateDirectory] =
            values[SettingsSchema.stateDirectory] ?? workers.loopback ?? SettingsSchema.usualStateDirectory
        workers.options = WorkerSettings.options(for: told)
        var settings = SupervisorSettings(
            runDirectory: values[SettingsSchema.runDirectory] ?? SettingsSchema.usualRunDirectory,
            kinds: values.value(of: SettingsSchema.backends), workers: workers)
        if let group = values[SettingsSchema.socketGroup] {
            settings.socketGroup = try DaemonProcess.group(named: group)
        }
        // A user that is named is meant for all.
        if values[SettingsSchema.user] == nil {
            settings.users = TextRule.range(values.value(of: SettingsSchema.workerUsers)).flatMap { WorkerUsers($0) }
        }
        settings.controlGroup = values.value(of: SettingsSchema.controlGroup)
        settings.groupLimits = DiskGroups.Limits(values)
        settings.claim.takesAnyScript = values.value(of: SettingsSchema.anyScript)
        settings.stopsWorkers = values.value(of: SettingsSchema.stopWorkers)
        settings.keepsStandby = values.value(of: SettingsSchema.standby)
        settings.stallSeconds = UInt64(clamping: values.value(of: SettingsSchema.stallTime))
        settings.policy.failureLimit = values.value(of: SettingsSchema.restartLimit)
        settings.policy.windowSeconds = UInt64(clamping: values.value(of: SettingsSchema.restartWindow))
        return settings
    }

    /// The values of the options and, below them, of the file.
    private func values(_ file: DaemonConfiguration) throws(ControlError) -> SettingValues {
        do throws(OperationError) {
            let values = try given().over(file.values)
            try SettingsSchema.checkLimits(values)
            return values
        } catch {
            throw ControlError(error.description, status: .usage)
        }
    }

    func run() throws {
        let manager = ServiceManager()
        var log = Log(name: "xbbd")
        if mode == .background { log.showsPriority = true }
        do throws(ControlError) {
            let file = try configuration()
            let values = try values(file)
            if checkConfig { return print("\(config ?? DaemonConfiguration.usualPath): no problem found") }
            log.level = level(values)
            log.history = LogHistory()
            let settings = try settings(values)
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
