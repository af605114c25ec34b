// SPDX-License-Identifier: BSD-2-Clause
// The command line of a worker.
import CLinux
import Glibc
public import Settings
import Xen
import XenBus

/// The settings that all workers share, and the path of their program.
public struct WorkerSettings: Sendable, Equatable {
    /// The program `xbb-vbd`.
    public var executable: String
    /// The directory of the loopback Xen; nil on Xen.
    public var loopback: String?
    /// The directories that are searched for plugins, in order.
    public var pluginDirectories: [String]
    /// Further options, as they are passed on: ["--max-queues", "4"].
    public var options: [String] = []

    /// Settings of workers.
    public init(executable: String, loopback: String?, pluginDirectories: [String]) {
        self.executable = executable
        self.loopback = loopback
        self.pluginDirectories = pluginDirectories
    }

    /// The options that pass `values` to a worker, except for the plugin directories. Written as workers of earlier
    /// versions expect them: until an upgrade is complete, a worker's program may be older or newer than xbbd.
    public static func options(for values: SettingValues) -> [String] {
        var options: [String] = []
        for setting in SettingsSchema.worker where setting.name != SettingsSchema.pluginDirectories.declaration.name {
            guard let value = values[setting] else { continue }
            switch (setting.workerForm, value) {
            case (.none, _): continue
            case (.tunable, _):
                if let number = value.number {
                    options += ["--tunable", "\(setting.oldName)=\(number)"]
                } else if value != setting.usual {
                    options += ["--tunable", "\(setting.oldName)=\(value)"]
                }
            case (.option, .flag(let flag)):
                // Only if it is not the default: older workers know only one of the two words.
                if value != setting.usual { options.append(flag ? "--\(setting.name)" : "--no-\(setting.name)") }
            case (.option, .list(let list)):
                for element in list { options += ["--\(setting.name)", element] }
            case (.option, .number), (.option, .text): options += ["--\(setting.name)", value.description]
            }
        }
        return options
    }

    /// The arguments for a VBD, beginning with the program's name. `predecessor` says how the last worker ended. The
    /// worker gets the lock as descriptor 3, a standby its channel as descriptor 4, and both the channel for storage as
    /// descriptor 5, and a user of its own: but not a worker of an earlier version, which does not know those options.
    func arguments(
        for address: VBDAddress, own: DomainID, in directory: RunDirectory, predecessor: WorkerExit?,
        standsBy: Bool = false, keepsStorage: Bool, user: UInt32? = nil
    ) -> [String] {
        var arguments = [executable, "--backend-path", address.backendPath(own: own)]
        if let loopback { arguments += ["--loopback", loopback] }
        arguments += pluginArguments
        arguments += ["--control", directory.workerSocket(address), "--empty-dir", directory.emptyDirectory]
        arguments += ["--journal", directory.workerJournal(address)]
        arguments += ["--lock", "3"] + (standsBy ? ["--standby", "4"] : [])
        if keepsStorage { arguments += ["--storage", "5"] }
        if let user { arguments += ["--uid", "\(user)"] }
        if let predecessor { arguments += ["--predecessor", predecessor.asPredecessor] }
        arguments += ["--storage-source", StorageSource(kind: address.kind) == .params ? "params" : "hotplug"]
        return arguments + options
    }

    /// The arguments that make the program describe all plugins.
    var dumpArguments: [String] { [executable, "--dump-plugins"] + pluginArguments }

    private var pluginArguments: [String] { pluginDirectories.flatMap { ["--plugin-dir", $0] } }
}

/// Finds the programs of this package, starting from the one that is running.
public enum InstallPaths {
    /// The folder of this program, without '/' at its end; "/usr/sbin" if the system does not tell.
    public static var programFolder: String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = unsafe readlink("/proc/self/exe", &buffer, buffer.count)
        guard count > 0 else { return "/usr/sbin" }
        let path = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return folder(of: path)
    }

    /// The worker program: beside this program, or below ../libexec/xbb or ../lib/xbb; the first of these if none
    /// exists.
    public static func worker(programFolder: String = programFolder) -> String {
        let prefix = folder(of: programFolder)
        let places = [programFolder, prefix + "/libexec/xbb", prefix + "/lib/xbb"].map { $0 + "/xbb-vbd" }
        return places.first { isExecutable($0) } ?? places[0]
    }

    /// The plugins of this installation: ../lib/xbb/plugins.
    public static func plugins(programFolder: String = programFolder) -> String {
        folder(of: programFolder) + "/lib/xbb/plugins"
    }

    static func folder(of path: String) -> String {
        "/" + path.split(separator: "/").dropLast().joined(separator: "/")
    }

    private static func isExecutable(_ path: String) -> Bool {
        unsafe access(path, X_OK) == 0
    }
}
