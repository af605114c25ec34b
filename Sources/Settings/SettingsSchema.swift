// SPDX-License-Identifier: BSD-2-Clause
// All settings. A new one is declared here, put into `all`, and described in xbb.conf(5), xbb-vbd(8), xbbctl(8) and
// etc/xbb.conf as its scope says; a test compares those with this file.
public import Base

/// What can be set.
public enum SettingsSchema {
    // MARK: xbbd

    /// Where sockets and locks are.
    public static let runDirectory = Setting(
        text: "run-dir", "where sockets and locks are", "DIR", .path, usual: usualRunDirectory, scope: .daemon,
        section: .xbbd)
    /// See ``runDirectory``.
    public static let usualRunDirectory = "/run/xbb"
    /// Where it is remembered as what images were served.
    public static let stateDirectory = Setting(
        text: "state-dir", "where it is remembered which format each image was served as", "DIR", .path,
        usual: usualStateDirectory, otherwise: usualStateDirectory + ", on loopback its directory", scope: .worker,
        section: .xbbd, workerForm: .option)
    /// Where ``stateDirectory`` is on Xen; on loopback it is the loopback's directory.
    public static let usualStateDirectory = "/var/lib/xbb"
    /// Who besides root may ask xbbd.
    public static let socketGroup = Setting(
        text: "socket-group", "members of this group may use xbbctl too", "NAME", .account, otherwise: "root alone",
        example: "xbb-admin", scope: .daemon, section: .xbbd)
    /// Directory names below "backend".
    public static let backends = Setting(
        list: "backend", "a directory below backend/ whose disks are served", "KIND", .backendKind, usual: ["vbd"],
        scope: .daemon, section: .xbbd)
    /// Disks of backend/vbd are served whatever their hotplug script is.
    public static let anyScript = Setting(
        flag: "any-script",
        "serve disks of backend/vbd whose hotplug script is not block-xbb too, such as plain phy: targets",
        scope: .daemon, section: .xbbd)
    /// Workers are told to hand over when xbbd ends.
    public static let stopWorkers = Setting(
        flag: "stop-workers", "when xbbd ends, tell workers to hand their disks over and to end", scope: .daemon,
        section: .xbbd)
    /// Processes stand by in case that workers die.
    public static let standby = Setting(
        flag: "standby", "keep a process ready beside each worker whose guest is connected, in case that it dies",
        usual: true, scope: .daemon, section: .xbbd)
    /// After so many failures of a worker within ``restartWindow`` it is not started any more.
    public static let restartLimit = Setting(
        number: "restart-limit", "how many failures of a worker within restart-window make xbbd give its disk up",
        1...1_000_000, usual: 10, scope: .daemon, section: .xbbd)
    /// See ``restartLimit``.
    public static let restartWindow = Setting(
        number: "restart-window", "the time in which failures count together, see restart-limit", 1...86400, .seconds,
        placeholder: "SECONDS", usual: 300, scope: .daemon, section: .xbbd)
    /// What is logged, by workers too.
    public static let logLevel = Setting(
        text: "log-level", "what is logged", "LEVEL", TextRule(choices: ["error", "warning", "info", "debug"]),
        usual: "info", scope: .worker, section: .xbbd, workerForm: .option)

    // MARK: Workers

    /// The worker program.
    public static let program = Setting(
        text: "program", "the worker program", "PATH", .path, otherwise: "xbb-vbd beside xbbd",
        example: "/usr/libexec/xbb/xbb-vbd", scope: .daemon, section: .worker, daemonOption: "worker")
    /// Where workers look for plugins.
    public static let pluginDirectories = Setting(
        list: "plugin-dir", "where to look for plugins, in this order", "DIR", .path,
        otherwise: "../lib/xbb/plugins beside the folder of the program", example: "/usr/lib/xbb/plugins",
        scope: .worker, section: .worker, workerForm: .option)
    /// The most queues of a disk.
    public static let maxQueues = Setting(
        number: "max-queues", "the most queues that a frontend may have", 1...64,
        otherwise: "one per processor, at most \(mostUsualQueues)", example: "\(mostUsualQueues)",
        scope: .disk, section: .worker, workerForm: .option)
    /// See ``SettingValues/queueLimit(processors:)``.
    public static let mostUsualQueues = 4
    /// Base-2 logarithm of the most pages of a ring.
    public static let maxRingPageOrder = Setting(
        number: "max-ring-page-order", "the largest ring is of 2^N pages", 0...5, usual: 5, scope: .disk,
        section: .worker, workerForm: .option)
    /// The most segments of an indirect request.
    public static let maxIndirectSegments = Setting(
        number: "max-indirect-segments", "the most pages of one request, where a frontend asks for more than 11",
        0...4096,
        usual: 256, scope: .disk, section: .worker, workerForm: .option)
    /// Whether granted pages stay mapped.
    public static let persistentGrants = Setting(
        text: "persistent-grants",
        "whether pages of a frontend that reuses them stay mapped: never, from the first use on, or once they have come back",
        "WHEN", TextRule(choices: ["off", keepsGrants, keepsReturningGrants]), usual: keepsReturningGrants,
        scope: .disk, section: .worker, workerForm: .option)
    /// A value of ``persistentGrants``: from the first use on.
    public static let keepsGrants = "on"
    /// A value of ``persistentGrants``: from the third use on.
    public static let keepsReturningGrants = "auto"
    /// Memory for the data of each queue.
    public static let memoryMiB = Setting(
        number: "memory-mib", "memory for data of each queue", 1...1024, .mebibytes, usual: 16, scope: .disk,
        section: .worker, workerForm: .option)
    /// How long a queue looks for work before it sleeps.
    public static let pollMicroseconds = Setting(
        number: "poll-us", "how long a queue looks for work before it sleeps", 0...1_000_000, .microseconds, usual: 0,
        scope: .disk, section: .worker, workerForm: .option, changesWhileServed: true)
    /// Where the backing files may be that images name.
    public static let backingDirectories = Setting(
        list: "backing-dir", "images may name backing files below it", "DIR", .path, otherwise: "none",
        example: "/srv/xen/templates", scope: .worker, section: .worker, workerForm: .option)
    /// Whom workers become.
    public static let user = Setting(
        text: "user", "the user that a worker becomes when its storage is open", "NAME", .account,
        otherwise: usualUser + " where there is such a user", example: usualUser, scope: .worker, section: .worker,
        workerForm: .option)
    /// The ``user`` that is taken, where there is one, when nobody names another one.
    public static let usualUser = "xbb"
    /// The numbers of the disks' users.
    public static let workerUsers = Setting(
        text: "worker-uids", "numbers of users of which each disk's worker becomes one of its own", "FIRST-LAST",
        .userNumbers, usual: "1879048192-1879113727", scope: .daemon, section: .worker)
    /// Memory that a worker may take, beyond what its queues have.
    public static let workerMemoryMiB = Setting(
        number: "worker-memory-mib", "memory of a worker, beyond memory-mib of its queues", 64...1_048_576, .mebibytes,
        usual: 512, scope: .worker, section: .worker, workerForm: .option)
    /// Processes and threads that a disk may have.
    public static let workerTasks = Setting(
        number: "worker-tasks", "threads and processes of a disk", 64...32768, usual: 1024, scope: .worker,
        section: .worker, workerForm: .option)
    /// Where the disks' control groups are.
    public static let controlGroup = Setting(
        text: "control-group", "where each disk has a control group of its own", "GROUP", .controlGroup, usual: "auto",
        scope: .daemon, section: .worker)
    /// Workers give up their rights.
    public static let confine = Setting(
        flag: "confine", "give up rights when the storage is open",
        off: "keep all rights; to look for faults, not to serve guests", usual: true, scope: .worker, section: .worker,
        workerForm: .option)

    /// After this time, what does not end is told.
    public static let stallTime = Setting(
        number: "stall-time",
        "after how long a request or a plugin's call that does not end is told, and no longer waited for where the disk "
            + "is taken away", 1...3600, .seconds, placeholder: "SECONDS", usual: 10, scope: .worker, section: .worker,
        workerForm: .option)

    // MARK: Tunables

    /// Flushes are answered without being done.
    public static let disableFlush = Setting(
        flag: "disable-flush", "answer flushes without writing anything through: a power cut loses data", scope: .disk,
        section: .tunables, workerForm: .tunable, changesWhileServed: true)
    /// Of so many flushes one is done.
    public static let flushInterval = Setting(
        number: "flush-interval", "write through on every N-th flush only, with 0 on each", 0...1_000_000_000, usual: 0,
        scope: .disk, section: .tunables, workerForm: .tunable, changesWhileServed: true)
    /// Neighbours are not joined.
    public static let noCoalesce = Setting(
        flag: "no-coalesce-reqs", "hand requests to the plugin without joining neighbours", scope: .disk,
        section: .tunables, workerForm: .tunable, changesWhileServed: true)
    /// How much of a processor looking for work may cost, see ``pollMicroseconds``.
    public static let pollPercent = Setting(
        number: "poll-percent",
        "how much of one processor each queue may spend on looking for work in vain (poll-us), in percent; 100 has no limit",
        1...100, usual: 20, scope: .disk, section: .tunables, workerForm: .tunable, changesWhileServed: true)

    /// What becomes of requests for which the storage has no space.
    public static let onNoSpace = Setting(
        text: "on-enospc",
        "what becomes of requests for which the storage has no space: the guest gets the error, or they wait and are tried again",
        "POLICY", TextRule(choices: [reportsNoSpace, stopsWithoutSpace]), usual: reportsNoSpace, scope: .disk,
        section: .tunables, workerForm: .tunable, changesWhileServed: true)
    /// A value of ``onNoSpace``.
    public static let reportsNoSpace = "report"
    /// See ``reportsNoSpace``.
    public static let stopsWithoutSpace = "stop"

    /// What is done with writes of nothing but zeroes; the values are those of QEMU.
    public static let detectZeroes = Setting(
        text: "detect-zeroes",
        "writes of nothing but zeroes reach the storage as such, without the data, and with unmap it may deallocate",
        "MODE", TextRule(choices: [ignoresZeroes, detectsZeroes, unmapsZeroes]), usual: ignoresZeroes, scope: .disk,
        section: .tunables, workerForm: .tunable, changesWhileServed: true)
    /// A value of ``detectZeroes``.
    public static let ignoresZeroes = "off"
    /// See ``ignoresZeroes``.
    public static let detectsZeroes = "on"
    /// See ``ignoresZeroes``.
    public static let unmapsZeroes = "unmap"

    // MARK: What follows from several

    /// Bytes for the data of each queue: `memory-mib`, or as much as eight of the largest requests have. Those have `segments`, if that
    /// is more than is set.
    public static func queueMemory(_ values: SettingValues, segments: Int = 0) -> Int {
        max(values.value(of: memoryMiB) << 20, max(values.value(of: maxIndirectSegments), segments) * 4096 * 8)
    }

    /// The same with the lists of pages of its requests: 8 bytes for each page of each of the 1024 requests of the largest ring.
    public static func queueBytes(_ values: SettingValues, segments: Int = 0) -> Int {
        queueMemory(values, segments: segments) + max(values.value(of: maxIndirectSegments), segments) * 8 * 1024
    }

    // MARK: Lists

    /// All settings, in the order of xbb.conf.
    public static let all = single + limitDeclarations

    /// Those that are declared here, each by itself.
    private static let single: [SettingDeclaration] = [
        runDirectory.declaration, stateDirectory.declaration, socketGroup.declaration, backends.declaration,
        anyScript.declaration, stopWorkers.declaration, standby.declaration, restartLimit.declaration,
        restartWindow.declaration, logLevel.declaration,
        program.declaration, pluginDirectories.declaration, maxQueues.declaration, maxRingPageOrder.declaration,
        maxIndirectSegments.declaration, persistentGrants.declaration, memoryMiB.declaration,
        pollMicroseconds.declaration,
        backingDirectories.declaration, user.declaration,
        workerUsers.declaration, workerMemoryMiB.declaration, workerTasks.declaration, controlGroup.declaration,
        confine.declaration, stallTime.declaration,
        disableFlush.declaration, flushInterval.declaration, noCoalesce.declaration,
        pollPercent.declaration, onNoSpace.declaration, detectZeroes.declaration,
    ]

    /// What the target of a disk may say of it, by name: all that differs from disk to disk.
    public static let ofDisk = all.filter { $0.scope == .disk }.sorted { $0.name < $1.name }

    /// What `xbbctl set` changes, by name.
    public static let changing = all.filter(\.changesWhileServed).sorted { $0.name < $1.name }

    /// What workers are told, in the order of their command line.
    public static let worker =
        [logLevel.declaration, stateDirectory.declaration]
        + all.filter { $0.section != .xbbd && $0.workerForm != .none }

    // MARK: Changes

    /// The setting that `xbbctl set` calls `name`, in either spelling.
    public static func changing(_ name: String) throws(OperationError) -> SettingDeclaration {
        if let found = changing.named(name) { return found }
        if let fixed = all.named(name) {
            let places = fixed.scope == .disk ? "the disk's target, or xbb.conf, says" : "xbb.conf says"
            throw OperationError(
                .option, "'\(fixed.name)' does not change while a disk is served: \(places) what workers begin with")
        }
        throw OperationError(
            .option, "no setting '\(name)' changes while a disk is served; \(changing.hint(for: name))")
    }

    /// Those of a disk's options that are settings; the rest is the plugin's. Throws what is wrong with a value, the first by name.
    public static func settings(among options: [String: String]) throws(OperationError) -> SettingValues {
        var values = SettingValues()
        for (name, text) in options.sorted(by: { $0.key < $1.key }) {
            guard let setting = ofDisk.named(name) else { continue }
            values[setting] = try setting.parse(text)
        }
        return values
    }

    /// Reads "NAME=VALUE" of a setting that changes while a disk is served; `label` is the option that it follows.
    public static func take(
        change text: String, label: String, into values: inout SettingValues
    ) throws(OperationError) {
        let pair = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        guard pair.count == 2 else { throw OperationError(.option, "\(label) '\(text)': expected KEY=VALUE") }
        do throws(OperationError) {
            let setting = try changing(pair[0])
            values[setting] = try setting.parse(pair[1])
        } catch {
            throw error.within(label)
        }
    }
}
