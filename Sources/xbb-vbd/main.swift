// SPDX-License-Identifier: BSD-2-Clause
// xbb-vbd: the process that serves one VBD. Started by xbbd, or by hand to look at one disk.
import BlockQueue
import ProcessConfinement
import ImageInspection
import PluginHost
import Base
import CLinux
import Glibc
import XBBHost
import Xen
import XenLoopback
import Support

let usage = """
    usage: xbb-vbd --backend-path PATH [OPTION]...
           xbb-vbd --dump-plugins [--plugin-dir DIR]...
           xbb-vbd --describe-plugin FILE
           xbb-vbd --probe IMAGE [OPTION]...
           xbb-vbd --inspect IMAGE [--format FORMAT] [OPTION]...

    Serves one virtual block device until it is detached.

      --backend-path PATH        the backend's XenStore node: /local/domain/0/backend/vbd/1/51712
      --loopback DIR             run on the loopback Xen at DIR instead of on Xen
      --plugin-dir DIR           where to look for plugins; may be given more than once
      --backing-dir DIR          images may name backing files below it; may be given more than once (none)
      --control PATH             answer xbbctl on this Unix socket
      --storage-source SOURCE    who says where the storage is: hotplug (default) or params
      --log-level LEVEL          error, warning, info (default) or debug
      --max-queues N             the most queues that a frontend may have, 1 to 64 (1)
      --max-ring-page-order N    the largest ring: 2^N pages, 0 to 5 (5)
      --memory-mib N             memory for data of each queue, 1 to 1024 MiB (16)
      --poll-us N                how long a queue looks for work before it sleeps, in us (0)
      --tunable KEY=VALUE        what xbbctl set changes, from the start; may be given more than once
      --user NAME                become this user when the storage is open ("xbb" where there is one)
      --empty-dir DIR            the root directory from then on: an empty one
      --no-confine               keep all rights; to look for faults, not to serve guests
      --journal PATH             write down there which requests are in flight, for a successor
      --lock FD                  the inherited descriptor whose flock(2) says who serves the disk; let go with the disk
      --standby FD               prepare, say so on this inherited socket, and serve when told there and --lock is free
      --predecessor END          how the process ended that served the disk before: unknown (default), handed-over,
                                 killed:HOW or crashed:HOW
      --state-dir DIR            remember there which format each image was served as
      --probe IMAGE              say as JSON which formats an image looks like, and exit
      --inspect IMAGE            say as JSON what is in an image, and exit
      --format FORMAT            the format of the inspected image
      --chain                    inspect the images below it too, where --backing-dir allows
      --dump-plugins             describe the plugins as JSON and exit
      --describe-plugin FILE     load the plugin xbb-NAME.so and print its description, for the file xbb-NAME.plugin
      --help                     this text
      --version                  the version

    Exit status: 0 the device is over, 1 a failure, 2 wrong usage.
    SIGTERM hands the device over to a successor; SIGINT closes it.

    """

/// What the command line said.
struct CommandLineOptions {
    var backendPath: String?
    var loopback: String?
    var pluginDirectories: [String] = []
    var backingDirectories: [String] = []
    var control: String?
    var source = "hotplug"
    var level = LogLevel.info
    var maxQueues = 1
    var maxOrder = 5
    var memoryMiB = 16
    var pollMicroseconds = 0
    var tunables = Tunables()
    var user: String?
    var emptyDirectory: String?
    var confines = true
    var journal: String?
    var lock: Int32?
    var standby: Int32?
    var predecessor = Predecessor.unknown
    var dumpPlugins = false
    var describedPlugin: String?
    var stateDirectory: String?
    var probedImage: String?
    var inspectedImage: String?
    var format: String?
    var inspectsChain = false
}

func fail(_ text: String) -> Never {
    let line = "xbb-vbd: \(text)\nTry 'xbb-vbd --help'.\n"
    _ = unsafe line.withCString { unsafe write(2, $0, strlen($0)) }
    exit(2)
}

func number(_ text: String, _ name: String, _ range: ClosedRange<Int>) -> Int {
    guard let value = Int(text), range.contains(value) else {
        fail("\(name) \(text): expected a number from \(range.lowerBound) to \(range.upperBound)")
    }
    return value
}

func parseArguments() -> CommandLineOptions {
    var options = CommandLineOptions()
    var left = CommandLine.arguments.dropFirst()[...]
    while var name = left.popFirst() {
        var attached: String?
        if name.hasPrefix("--"), let equals = name.firstIndex(of: "=") {
            attached = String(name[name.index(after: equals)...])
            name = String(name[..<equals])
        }
        func value() -> String {
            if let attached { return attached }
            guard let next = left.popFirst() else { fail("\(name) needs a value") }
            return next
        }
        switch name {
        case "--backend-path": options.backendPath = value()
        case "--loopback": options.loopback = value()
        case "--plugin-dir": options.pluginDirectories.append(value())
        case "--backing-dir":
            let path = value()
            if !path.hasPrefix("/") { fail("--backing-dir \(path): expected a path that begins with '/'") }
            options.backingDirectories.append(path)
        case "--control": options.control = value()
        case "--storage-source":
            options.source = value()
            if options.source != "hotplug" && options.source != "params" {
                fail("--storage-source \(options.source): expected hotplug or params")
            }
        case "--log-level":
            let text = value()
            let levels: [String: LogLevel] = ["error": .error, "warning": .warning, "info": .info, "debug": .debug]
            guard let level = levels[text] else { fail("--log-level \(text): expected error, warning, info or debug") }
            options.level = level
        case "--max-queues": options.maxQueues = number(value(), name, 1...64)
        case "--max-ring-page-order": options.maxOrder = number(value(), name, 0...5)
        case "--memory-mib": options.memoryMiB = number(value(), name, 1...1024)
        case "--poll-us": options.pollMicroseconds = number(value(), name, 0...1_000_000)
        case "--tunable":
            let text = value()
            let pair = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            guard pair.count == 2 else { fail("--tunable \(text): expected KEY=VALUE") }
            if let problem = options.tunables.set(pair[0], pair[1]) { fail("--tunable \(problem)") }
        case "--user": options.user = value()
        case "--empty-dir": options.emptyDirectory = value()
        case "--no-confine": options.confines = false
        case "--journal": options.journal = value()
        case "--lock": options.lock = Int32(number(value(), name, 3...1023))
        case "--standby": options.standby = Int32(number(value(), name, 3...1023))
        case "--predecessor":
            let text = value()
            guard let end = Predecessor(text) else {
                fail("--predecessor \(text): expected unknown, handed-over, killed:HOW or crashed:HOW")
            }
            options.predecessor = end
        case "--state-dir": options.stateDirectory = value()
        case "--probe": options.probedImage = value()
        case "--inspect": options.inspectedImage = value()
        case "--format": options.format = value()
        case "--chain": options.inspectsChain = true
        case "--dump-plugins": options.dumpPlugins = true
        case "--describe-plugin": options.describedPlugin = value()
        case "--help":
            print(usage, terminator: "")
            exit(0)
        case "--version":
            print("xbb-vbd \(xbbVersion)")
            exit(0)
        default: fail("unknown option \(name)")
        }
    }
    if options.standby != nil && options.lock == nil { fail("--standby needs --lock") }
    if options.pluginDirectories.isEmpty { options.pluginDirectories = [defaultPluginDirectory()] }
    return options
}

/// Beside the executable's folder in a build tree or under a prefix: ../lib/xbb/plugins.
func defaultPluginDirectory() -> String {
    var buffer = [CChar](repeating: 0, count: 4096)
    let length = unsafe readlink("/proc/self/exe", &buffer, buffer.count - 1)
    guard length > 0 else { return "/usr/lib/xbb/plugins" }
    let path = String(decoding: buffer.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let folder = path.split(separator: "/").dropLast(2).joined(separator: "/")
    return "/\(folder)/lib/xbb/plugins"
}

/// How the process is confined; an end with status 2 where a user that was asked for does not exist.
func confinement(_ command: CommandLineOptions) -> ConfinementSettings? {
    guard command.confines else { return nil }
    var settings = ConfinementSettings()
    settings.emptyDirectory = command.emptyDirectory
    do throws(OperationError) {
        settings.user = try ConfinementUser(named: command.user ?? ConfinementUser.usual)
    } catch {
        fail(error.description)
    }
    if let user = command.user, settings.user == nil {
        fail("--user \(user): there is no such user; make it, or name another one")
    }
    return settings
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
        let worker = try VBDWorker(platform: platform, options: options)
        switch try worker.run(signals: descriptor) {
        case .detached, .vanished, .handedOver: return 0
        case .conflict, .storeFailed: return 1
        }
    } catch {
        Log(name: "xbb-vbd").error("\(error)")
        return 1
    }
}

let command = parseArguments()
if command.dumpPlugins {
    print(PluginCatalog(directories: command.pluginDirectories).dump().serialized)
    exit(0)
}
if let plugin = command.describedPlugin {
    do throws(OperationError) {
        print(try PluginDescription.describe(plugin: plugin).json.serialized)
        exit(0)
    } catch {
        Log(name: "xbb-vbd").error(error.description)
        exit(1)
    }
}
/// What is known of an image that nobody serves. A chain is looked at by processes of its own, others by this one.
func examine(_ image: String, _ command: CommandLineOptions) throws(OperationError) -> JSON {
    if command.probedImage == nil, command.inspectsChain {
        return try ChainExamination(
            path: image, pluginDirectories: command.pluginDirectories, stateDirectory: command.stateDirectory,
            backing: BackingPolicy(directories: command.backingDirectories)
        ).inspect(format: command.format)
    }
    let examination = ImageExamination(
        path: image, pluginDirectories: command.pluginDirectories, stateDirectory: command.stateDirectory)
    return try command.probedImage != nil ? examination.probe() : examination.inspect(format: command.format)
}

if let image = command.probedImage ?? command.inspectedImage {
    do throws(OperationError) {
        print(try examine(image, command).serialized)
        exit(0)
    } catch {
        print(JSON.object([("image", .string(image)), ("error", .string(error.description))]).serialized)
        exit(1)
    }
}
guard let backendPath = command.backendPath else { fail("--backend-path is missing") }
var options = VBDOptions(backendPath: backendPath, pluginDirectories: command.pluginDirectories)
options.storageSource = command.source == "params" ? .params : .hotplug
options.maxQueues = command.maxQueues
options.maxRingPageOrder = command.maxOrder
options.memoryBytes = command.memoryMiB << 20
options.pollNanoseconds = UInt64(command.pollMicroseconds) * 1000
options.tunables = command.tunables
options.controlSocket = command.control
options.stateDirectory = command.stateDirectory
options.journal = command.journal
options.lock = command.lock
options.standby = command.standby
options.predecessor = command.predecessor
options.logLevel = command.level
options.backing.directories = command.backingDirectories
options.confinement = confinement(command)
if let directory = command.loopback {
    exit(serve(LoopbackPlatform(directory: directory), options))
} else {
    exit(serve(NativeXen(), options))
}
