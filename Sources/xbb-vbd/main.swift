// SPDX-License-Identifier: BSD-2-Clause
// xbb-vbd: the process that serves one VBD. Started by xbbd, or by hand to look at one disk.
import BlockQueue
import ProcessConfinement
import ImageInspection
import PluginHost
import Base
import CLinux
import Glibc
import Settings
import StorageSharing
import StoreBroker
import XBBHost
import Xen
import XenLoopback
import Support

func fail(_ text: String) -> Never {
    let line = "xbb-vbd: \(text)\nTry 'xbb-vbd --help'.\n"
    _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
    exit(2)
}

/// The values of the command line. Ends the process if they are not valid, or if only a text such as --help is asked
/// for.
func parseArguments() -> SettingValues {
    let raw = unsafe getcwd(nil, 0)
    let directory = unsafe raw.map { unsafe String(cString: $0) } ?? ""
    unsafe free(raw)
    let options = CommandLineOptions(
        Arguments.all, change: Arguments.change.declaration, workingDirectory: directory == "/" ? "" : directory)
    do throws(OperationError) {
        let values = try options.parse(CommandLine.arguments.dropFirst())
        try SettingsSchema.checkLimits(values)
        if values.value(of: Arguments.help) {
            print(Arguments.usage(options), terminator: "")
            exit(0)
        }
        if values.value(of: Arguments.version) {
            print("xbb-vbd \(xbbVersion)")
            exit(0)
        }
        if values[Arguments.standby] != nil && values[Arguments.lock] == nil { fail("--standby needs --lock") }
        return values
    } catch {
        fail(error.description)
    }
}

/// The plugins beside the executable's folder, in a build tree or under a prefix: ../lib/xbb/plugins.
func defaultPluginDirectory() -> String {
    var buffer = [CChar](repeating: 0, count: 4096)
    let length = unsafe readlink("/proc/self/exe", &buffer, buffer.count - 1)
    guard length > 0 else { return "/usr/lib/xbb/plugins" }
    let path = String(decoding: buffer.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let folder = path.split(separator: "/").dropLast(2).joined(separator: "/")
    return "/\(folder)/lib/xbb/plugins"
}

/// The process's confinement. Ends the process with status 2 if the user that was asked for does not exist.
func confinement(_ command: SettingValues) -> ConfinementSettings? {
    guard command.value(of: SettingsSchema.confine) else { return nil }
    let user = command[SettingsSchema.user]
    var settings = ConfinementSettings()
    settings.emptyDirectory = command[Arguments.emptyDirectory]
    settings.limits = VBDOptions.limits(command)
    if user == nil, let number = command[Arguments.ownUser].flatMap({ UInt32(exactly: $0) }) {
        settings.user = ConfinementUser(ownNumber: number)
        return settings
    }
    do throws(OperationError) {
        settings.user = try ConfinementUser(named: user ?? ConfinementUser.usual)
    } catch {
        fail(error.description)
    }
    if let user, settings.user == nil {
        fail("--user \(user): there is no such user; make it, or name another one")
    }
    return settings
}

/// The process beside a worker that is going to give up its rights, which has its connection to XenStore.
func startKeeper<Platform: XenPlatform>(
    _ platform: Platform, _ options: VBDOptions, _ settings: ConfinementSettings
) throws(OperationError) -> BrokeredStore {
    let log = Log(name: "xbb-store \(options.shortName)", level: .warning).limited(by: LogLimit())
    let journal = options.journal.map { (path: $0, most: JournalLayout.mostBytes) }
    return try KeeperProcess.start(
        backendPath: options.backendPath, journal: journal, log: log, open: platform.openStore
    ) { () throws(OperationError) in
        try Confinement.enter(settings, network: false, log: log)
    }
}

func serve<Platform: XenPlatform>(_ platform: Platform, _ options: VBDOptions) -> Int32 {
    // Signals are read from a descriptor by the control thread; every other thread inherits the mask.
    var signals = sigset_t()
    unsafe sigemptyset(&signals)
    unsafe sigaddset(&signals, SIGTERM)
    unsafe sigaddset(&signals, SIGINT)
    unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)
    signal(SIGPIPE, SIG_IGN)
    let descriptor = unsafe signalfd(-1, &signals, Int32(SFD_CLOEXEC) | Int32(SFD_NONBLOCK))
    do {
        // Before anything starts a thread, and before standard error is this process's own.
        var options = options
        // One that stands by would find that the worker before it has the storage.
        if options.storageSource == .params, options.standby == nil {
            options.sharing = SharingCheck.examine(options, try platform.openStore())
        }
        // Swift's handler would start a program for a backtrace, and a confined process would die of that: of SIGSYS. Before
        // the one is set that keeps the last words.
        if options.confinement != nil { clinux_default_faults() }
        let keeper = try options.confinement.map { (settings) throws(OperationError) in
            try startKeeper(platform, options, settings)
        }
        let output = CapturedOutput()
        let worker = try VBDWorker(
            platform: platform, store: try keeper ?? platform.openStore(), reserveJournal: keeper?.reserveJournal,
            options: options)
        switch try worker.run(signals: descriptor, output: output) {
        case .detached, .vanished, .handedOver: return 0
        case .conflict, .storeFailed: return 1
        }
    } catch {
        Log(name: "xbb-vbd").error("\(error)")
        return 1
    }
}

let command = parseArguments()
Confinement.giveUpProtection(log: Log(name: "xbb-vbd"))
let pluginDirectories = command[SettingsSchema.pluginDirectories] ?? [defaultPluginDirectory()]
if command.value(of: Arguments.dumpPlugins) {
    print(PluginCatalog(directories: pluginDirectories).dump(program: "/proc/self/exe").serialized)
    exit(0)
}
if let plugin = command[Arguments.describePlugin] {
    do throws(OperationError) {
        try say(PluginDescription.describe(plugin: plugin).json.serialized + "\n", command[Arguments.output])
        exit(0)
    } catch {
        Log(name: "xbb-vbd").error(error.description)
        exit(1)
    }
}
/// Prints a text, or writes it to a file: all of it, or nothing where that fails.
func say(_ text: String, _ path: String?) throws(OperationError) {
    guard let path else { return print(text, terminator: "") }
    let new = "\(path).new"
    let bytes = Array(text.utf8)
    let file = try Descriptor(unsafe clinux_open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644), "open \(new)")
    // Within the closure the bytes are valid, and their number is passed on.
    let written = unsafe bytes.withUnsafeBytes { unsafe write(file.raw, $0.baseAddress, $0.count) }
    guard written == bytes.count, unsafe rename(new, path) == 0 else {
        let failure = OperationError(errno, "write \(path)")
        unsafe unlink(new)
        throw failure
    }
}

/// What is known about an image that is not being served. A chain is examined by other processes, a single image by
/// this one.
func examine(_ image: String, probes: Bool) throws(OperationError) -> JSON {
    let stateDirectory = command[SettingsSchema.stateDirectory]
    let format = command[Arguments.format]
    if !probes, command.value(of: Arguments.chain), !command.value(of: Arguments.compare) {
        return try ChainExamination(
            path: image, pluginDirectories: pluginDirectories, stateDirectory: stateDirectory,
            backing: BackingPolicy(directories: command.value(of: SettingsSchema.backingDirectories))
        ).inspect(format: format)
    }
    let examination = ImageExamination(
        path: image, pluginDirectories: pluginDirectories, stateDirectory: stateDirectory)
    if !probes, command.value(of: Arguments.compare) { return try examination.compare(format: format) }
    return try probes ? examination.probe() : examination.inspect(format: format)
}

if let image = command[Arguments.probe] ?? command[Arguments.inspect] {
    do throws(OperationError) {
        print(try examine(image, probes: command[Arguments.probe] != nil).serialized)
        exit(0)
    } catch {
        print(JSON.object([("image", .string(image)), ("error", .string(error.description))]).serialized)
        exit(1)
    }
}
guard let backendPath = command[Arguments.backendPath] else { fail("--backend-path is missing") }
var options = VBDOptions(backendPath: backendPath, values: command, usualPlugins: pluginDirectories)
options.storageSource = command[Arguments.source] == "params" ? .params : .hotplug
options.controlSocket = command[Arguments.control]
options.journal = command[Arguments.journal]
options.lock = command[Arguments.lock].map(Int32.init(clamping:))
options.standby = command[Arguments.standby].map(Int32.init(clamping:))
options.storage = command[Arguments.storage].map(Int32.init(clamping:))
options.predecessor = command[Arguments.predecessor].flatMap { Predecessor($0) } ?? .unknown
options.confinement = confinement(command)
// Not exit(): handlers that a plugin or a library has left there may hang, and nothing is left to do.
if let directory = command[Arguments.loopback] {
    _exit(serve(LoopbackPlatform(directory: directory), options))
} else {
    _exit(serve(NativeXen(), options))
}
