// SPDX-License-Identifier: BSD-2-Clause
// The command line of a worker.
import CLinux
import Glibc
public import Settings
import Xen
import XenBus

/// What every worker is told, and where its program is.
public struct WorkerSettings: Sendable, Equatable {
    /// The program `xbb-vbd`.
    public var executable: String
    /// The directory of the loopback Xen; nil on Xen.
    public var loopback: String?
    /// Where plugins are looked for, in order.
    public var pluginDirectories: [String]
    /// Further options as they are handed on: ["--max-queues", "4"].
    public var options: [String] = []

    /// Settings of workers.
    public init(executable: String, loopback: String?, pluginDirectories: [String]) {
        self.executable = executable
        self.loopback = loopback
        self.pluginDirectories = pluginDirectories
    }

    /// The options that tell a worker `values`, but where plugins are. Each is as workers of earlier versions take it: the
    /// program of a worker may be older or newer than xbbd until the upgrade is complete.
    public static func options(for values: SettingValues) -> [String] {
        var options: [String] = []
        for setting in SettingsSchema.worker where setting.name != SettingsSchema.pluginDirectories.declaration.name {
            guard let value = values[setting] else { continue }
            switch (setting.workerForm, value) {
            case (.none, _): continue
            case (.tunable, _):
                if let number = value.number { options += ["--tunable", "\(setting.oldName)=\(number)"] }
            case (.option, .flag(let flag)):
                // Only what is not usual: older workers know one of the two words.
                if value != setting.usual { options.append(flag ? "--\(setting.name)" : "--no-\(setting.name)") }
            case (.option, .list(let list)):
                for element in list { options += ["--\(setting.name)", element] }
            case (.option, .number), (.option, .text): options += ["--\(setting.name)", value.description]
            }
        }
        return options
    }

    /// The arguments for a VBD, the program's name first. `predecessor` says how the last worker ended. The lock is its
    /// descriptor 3 and, for one that stands by, the channel 4.
    func arguments(
        for address: VBDAddress, own: DomainID, in directory: RunDirectory, predecessor: WorkerExit?,
        standsBy: Bool = false
    ) -> [String] {
        var arguments = [executable, "--backend-path", address.backendPath(own: own)]
        if let loopback { arguments += ["--loopback", loopback] }
        arguments += pluginArguments
        arguments += ["--control", directory.workerSocket(address), "--empty-dir", directory.emptyDirectory]
        arguments += ["--journal", directory.workerJournal(address)]
        arguments += ["--lock", "3"] + (standsBy ? ["--standby", "4"] : [])
        if let predecessor { arguments += ["--predecessor", predecessor.asPredecessor] }
        arguments += ["--storage-source", StorageSource(kind: address.kind) == .params ? "params" : "hotplug"]
        return arguments + options
    }

    /// The arguments for a description of all plugins.
    var dumpArguments: [String] { [executable, "--dump-plugins"] + pluginArguments }

    private var pluginArguments: [String] { pluginDirectories.flatMap { ["--plugin-dir", $0] } }
}

/// Where the programs of this package are, from the place of the one that runs.
public enum InstallPaths {
    /// The folder of this program, without '/' at its end; "/usr/sbin" where the system does not tell.
    public static var programFolder: String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = unsafe readlink("/proc/self/exe", &buffer, buffer.count)
        guard count > 0 else { return "/usr/sbin" }
        let path = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return folder(of: path)
    }

    /// The worker beside this program, else below ../libexec/xbb and ../lib/xbb; the first of them where there is none.
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
