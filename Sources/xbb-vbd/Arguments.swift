// SPDX-License-Identifier: BSD-2-Clause
// The command line of xbb-vbd: arguments of a single start, and the settings of workers.
import Base
import BlockQueue
import Settings

/// All options of xbb-vbd.
enum Arguments {
    static let backendPath = Setting(
        text: "backend-path", "the backend's XenStore node: /local/domain/0/backend/vbd/1/51712", "PATH", text)
    static let loopback = Setting(
        text: "loopback", "run on the loopback Xen at DIR instead of on Xen", "DIR", file)
    static let control = Setting(text: "control", "answer xbbctl on this Unix socket", "PATH", file)
    static let source = Setting(
        text: "storage-source", "who says where the storage is", "SOURCE", TextRule(choices: ["hotplug", "params"]),
        usual: "hotplug")
    static let change = Setting(
        list: "tunable",
        "what xbbctl set changes, from the start: \(SettingsSchema.changing.map(\.name).joined(separator: ", "))",
        "KEY=VALUE", text)
    static let emptyDirectory = Setting(
        text: "empty-dir", "the root directory when the storage is open: an empty one", "DIR", file)
    static let journal = Setting(
        text: "journal", "write down there which requests are in flight, for a successor", "PATH", file)
    static let lock = Setting(
        number: "lock",
        "the inherited descriptor whose flock(2) says who serves the disk; let go with the disk", 3...1023,
        placeholder: "FD")
    static let standby = Setting(
        number: "standby",
        "prepare, say so on this inherited socket, and serve when told there and --lock is free", 3...1023,
        placeholder: "FD")
    static let storage = Setting(
        number: "storage",
        "the inherited socket on which the disk's open files come from the process before and are left for the next",
        3...1023, placeholder: "FD")
    static let ownUser = Setting(
        number: "uid", "the number of the user that is this disk's own, where no --user is named", 1000...4_294_967_294,
        placeholder: "NUMBER")
    static let predecessor = Setting(
        text: "predecessor",
        "how the process ended that served the disk before: unknown, handed-over, killed:HOW or crashed:HOW", "END",
        TextRule(expected: "unknown, handed-over, killed:HOW or crashed:HOW") { Predecessor($0) != nil },
        usual: "unknown")
    static let probe = Setting(
        text: "probe", "say as JSON which formats an image looks like, and exit", "IMAGE", text)
    static let inspect = Setting(
        text: "inspect", "say as JSON what is in an image, and exit", "IMAGE", text)
    static let format = Setting(text: "format", "the format of the inspected image", "FORMAT", text)
    static let chain = Setting(flag: "chain", "inspect the images below it too, where --backing-dir allows")
    static let compare = Setting(
        flag: "compare", "inspect by reading all of the image through both readers of its plugin")
    static let dumpPlugins = Setting(flag: "dump-plugins", "describe the plugins as JSON and exit")
    static let describePlugin = Setting(
        text: "describe-plugin",
        "load the plugin xbb-NAME.so and print its description, for the file xbb-NAME.plugin", "FILE", file)
    static let output = Setting(
        text: "output", "write what --describe-plugin says to FILE, which is there as a whole or not at all", "FILE",
        file)
    static let help = Setting(flag: "help", "this text")
    static let version = Setting(flag: "version", "the version")

    /// A text of any kind.
    private static let text = TextRule(expected: "a text") { _ in true }
    /// A path as it was given, relative to this process's working directory.
    private static let file = TextRule(expected: "a path") { !$0.isEmpty }

    static let all =
        [backendPath.declaration, loopback.declaration, control.declaration, source.declaration]
        + SettingsSchema.worker.filter { $0.workerForm == .option } + [
            change.declaration, emptyDirectory.declaration, journal.declaration, lock.declaration,
            standby.declaration, storage.declaration, ownUser.declaration, predecessor.declaration,
            probe.declaration, inspect.declaration, format.declaration, chain.declaration, compare.declaration,
            dumpPlugins.declaration, describePlugin.declaration, output.declaration, help.declaration,
            version.declaration,
        ]

    /// The text of --help.
    static func usage(_ options: CommandLineOptions) -> String {
        """
        usage: xbb-vbd --backend-path PATH [OPTION]...
               xbb-vbd --dump-plugins [--plugin-dir DIR]...
               xbb-vbd --describe-plugin FILE [--output FILE]
               xbb-vbd --probe IMAGE [OPTION]...
               xbb-vbd --inspect IMAGE [--format FORMAT] [--compare] [OPTION]...

        Serves one virtual block device until it is detached.

        \(options.usage(otherwise: [SettingsSchema.stateDirectory.declaration.name: "nowhere"]))
        Exit status: 0 the device is over, 1 a failure, 2 wrong usage, 75 the connection to the storage is gone.
        SIGTERM hands the device over to a successor; SIGINT closes it.

        """
    }
}
