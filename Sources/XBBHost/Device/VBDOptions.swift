// SPDX-License-Identifier: BSD-2-Clause
// What a VBD's process was told at its start.
import Base
import BlockQueue
import ProcessConfinement
import PluginHost
public import Settings
public import StorageSharing
import XenBus
import Support

/// How one VBD is served.
public struct VBDOptions: Sendable {
    /// The backend's node, "/local/domain/0/backend/vbd/1/51712".
    public var backendPath: String
    /// Where plugins are looked for, in order.
    public var pluginDirectories: [String]
    /// Who says where the storage is.
    public var storageSource: StorageSource = .hotplug
    /// What was told, and over that what the disk's node says of it.
    private var values: SettingValues
    /// Threads for each queue of a plugin that may sleep.
    public var blockingThreads = 4
    /// Where it is remembered which format each image was served as; nil: nowhere.
    public var stateDirectory: String?
    /// Where the files may be that images name.
    public var backing = BackingPolicy()
    /// The socket for `xbbctl`; nil for none.
    public var controlSocket: String?
    /// The file that says which requests are in flight, for a successor of this process; nil: none.
    public var journal: String?
    /// Where the statistics are, beside ``journal``; nil: in memory of the process.
    var statistics: String? { journal.map { Self.fileName(beside: $0) + ".stats" } }
    /// Where the last lines of the log are, beside ``journal``; nil: nowhere.
    var logFile: String? { journal.map { Self.fileName(beside: $0) + ".log" } }

    private static func fileName(beside journal: String) -> String {
        journal.hasSuffix(".journal") ? String(journal.dropLast(8)) : journal
    }

    /// A descriptor of the file whose flock(2) says who serves the disk, inherited locked; nil: nobody asks.
    public var lock: Int32?
    /// A descriptor of a socket to xbbd, which keeps the open files of the disk for a successor; nil: nobody does.
    public var storage: Int32?
    /// A descriptor of a socket: the process stands by until it is told there that its turn has come, and then waits for
    /// ``lock``, which it does not hold yet. nil: it serves at once.
    public var standby: Int32?
    /// Who else uses the storage, where no hotplug script has asked; nil: somebody has.
    public var sharing: Result<SharingCheck.Finding, OperationError>?
    /// How the process ended that served the disk before.
    public var predecessor = Predecessor.unknown
    /// What the disk begins with of all that can be changed while it is served.
    public var tunables: Tunables
    /// What the process gives up when its storage is open; nil: nothing.
    public var confinement: ConfinementSettings?
    /// After how many ns something that does not end is told, and no longer waited for where the disk must end.
    public var stallNanoseconds: UInt64
    /// What is logged.
    public var logLevel: LogLevel = .info

    /// Domain and device, "1/51712".
    public var shortName: String { backendPath.split(separator: "/").suffix(2).joined(separator: "/") }

    /// The most queues that a frontend may have.
    var maxQueues: Int { values.queueLimit() }
    /// Base-2 logarithm of the most pages of a ring.
    var maxRingPageOrder: Int { values.value(of: SettingsSchema.maxRingPageOrder) }
    /// The most segments of an indirect request; 0: none are offered.
    var maxIndirectSegments: Int { values.value(of: SettingsSchema.maxIndirectSegments) }
    /// The use of a page at which it is mapped to stay so, where a frontend reuses its grants; 0: it never is.
    var mapAtUse: UInt8 {
        switch values.value(of: SettingsSchema.persistentGrants) {
        case SettingsSchema.keepsGrants: 1
        case SettingsSchema.keepsReturningGrants: 3
        default: 0
        }
    }
    /// Bytes for the data of requests, of each queue; pages that are not used take no memory.
    var memoryBytes: Int { SettingsSchema.queueMemory(values) }

    /// The same for a disk whose node says `own` of what frontends are offered.
    func with(_ own: SettingValues) -> VBDOptions {
        var options = self
        options.values = own.over(values)
        return options
    }

    /// What a worker with these settings may use, without its queues.
    public static func limits(_ values: SettingValues) -> ConfinementLimits {
        ConfinementLimits(
            memoryBytes: values.value(of: SettingsSchema.workerMemoryMiB) << 20,
            tasks: values.value(of: SettingsSchema.workerTasks))
    }

    /// What the process gives up, with room for so many queues and requests of so many segments, if that is more than is set: for the
    /// data of each, its lists, and its threads' stacks, which the C library reserves whole.
    func confinement(forQueues count: Int, segments: Int) -> ConfinementSettings? {
        let queue = SettingsSchema.queueBytes(values, segments: segments) + (1 + blockingThreads) * 9 << 20
        var confinement = confinement
        confinement?.limits?.memoryBytes += count * queue
        return confinement
    }

    /// The options for a node that `values` give; plugins are looked for in `usualPlugins` where they do not say.
    public init(backendPath: String, values: SettingValues, usualPlugins: [String]) {
        self.backendPath = backendPath
        pluginDirectories = values[SettingsSchema.pluginDirectories] ?? usualPlugins
        self.values = values
        stallNanoseconds = UInt64(clamping: values.value(of: SettingsSchema.stallTime)) &* 1_000_000_000
        tunables = Tunables(values)
        stateDirectory = values[SettingsSchema.stateDirectory]
        backing.directories = values.value(of: SettingsSchema.backingDirectories)
        logLevel = values[SettingsSchema.logLevel].flatMap { LogLevel(word: $0) } ?? logLevel
    }
}

/// What can be changed while a disk is served: ``SettingsSchema/changing``, as the queues want it.
public struct Tunables: Sendable, Equatable {
    /// ``SettingsSchema/disableFlush``.
    public var disableFlush: Bool
    /// ``SettingsSchema/flushInterval``.
    public var flushInterval: UInt64
    /// ``SettingsSchema/noCoalesce``.
    public var noCoalesce: Bool
    /// ``SettingsSchema/pollMicroseconds``.
    public var pollMicroseconds: UInt64
    /// ``SettingsSchema/pollPercent``.
    public var pollPercent: UInt64
    /// ``SettingsSchema/onNoSpace``.
    public var onNoSpace: String
    /// ``SettingsSchema/detectZeroes``.
    public var detectZeroes: String
    /// ``SettingsSchema/limits`` and ``SettingsSchema/limitRequestSize``.
    var limits = DiskLimits()

    /// What is usual.
    public init() { self.init(SettingValues()) }

    /// What `values` give, and what is usual for the rest.
    public init(_ values: SettingValues) {
        disableFlush = values.value(of: SettingsSchema.disableFlush)
        flushInterval = UInt64(clamping: values.value(of: SettingsSchema.flushInterval))
        noCoalesce = values.value(of: SettingsSchema.noCoalesce)
        pollMicroseconds = UInt64(clamping: values.value(of: SettingsSchema.pollMicroseconds))
        pollPercent = UInt64(clamping: values.value(of: SettingsSchema.pollPercent))
        onNoSpace = values.value(of: SettingsSchema.onNoSpace)
        detectZeroes = values.value(of: SettingsSchema.detectZeroes)
        for (index, limit) in SettingsSchema.limits.enumerated() {
            limits[index].rate = UInt64(clamping: values.value(of: limit.rate))
            limits[index].burst = UInt64(clamping: values.value(of: limit.burst))
            limits[index].seconds = UInt64(clamping: values.value(of: limit.length))
        }
        limits.requestSize = UInt64(clamping: values.value(of: SettingsSchema.limitRequestSize))
    }

    /// The same as values of the schema.
    var values: SettingValues {
        var values = SettingValues()
        values[SettingsSchema.disableFlush] = disableFlush
        values[SettingsSchema.flushInterval] = Int(clamping: flushInterval)
        values[SettingsSchema.noCoalesce] = noCoalesce
        values[SettingsSchema.pollMicroseconds] = Int(clamping: pollMicroseconds)
        values[SettingsSchema.pollPercent] = Int(clamping: pollPercent)
        values[SettingsSchema.onNoSpace] = onNoSpace
        values[SettingsSchema.detectZeroes] = detectZeroes
        for (index, limit) in SettingsSchema.limits.enumerated() {
            values[limit.rate] = Int(clamping: limits[index].rate)
            values[limit.burst] = Int(clamping: limits[index].burst)
            values[limit.length] = Int(clamping: limits[index].seconds)
        }
        values[SettingsSchema.limitRequestSize] = Int(clamping: limits.requestSize)
        return values
    }

    /// Changes one by its name; nil if it worked, else what is wrong.
    public mutating func set(_ name: String, _ text: String) -> String? {
        do throws(OperationError) {
            let setting = try SettingsSchema.changing(name)
            var values = values
            values[setting] = try setting.parse(text)
            try SettingsSchema.checkLimits(values)
            self = Tunables(values)
            return nil
        } catch {
            return error.description
        }
    }

    var tuning: QueueTuning {
        var tuning = QueueTuning()
        tuning.disableFlush = disableFlush
        tuning.flushInterval = flushInterval
        tuning.noCoalesce = noCoalesce
        tuning.pollNanoseconds = pollMicroseconds * 1000
        tuning.pollPercent = pollPercent
        tuning.holdsWithoutSpace = onNoSpace == SettingsSchema.stopsWithoutSpace
        tuning.zeroDetection =
            switch detectZeroes {
            case SettingsSchema.detectsZeroes: .on
            case SettingsSchema.unmapsZeroes: .unmap
            default: .off
            }
        return tuning
    }

    /// The limits that are set, of all that can be, with the names by which they are told: bytes and requests in a second.
    var limitRates: [(name: String, perSecond: Int)] {
        let values = values
        return SettingsSchema.changing.compactMap { setting in
            guard setting.name.hasSuffix("-sec"), let limit = values[setting]?.number, limit > 0 else { return nil }
            return (setting.oldName, limit)
        }
    }

    var json: JSON {
        let values = values
        return .object(
            SettingsSchema.changing.map { setting in
                guard let value = values[setting] else { return (setting.oldName, .null) }
                return (setting.oldName, value.number.map { .integer($0) } ?? .string(value.description))
            })
    }
}
