// SPDX-License-Identifier: BSD-2-Clause
// What a VBD's process was told at its start.
import BlockQueue
import ProcessConfinement
import PluginHost
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
    /// The most queues that a frontend may have.
    public var maxQueues = 1
    /// Base-2 logarithm of the most pages of a ring.
    public var maxRingPageOrder = 5
    /// Bytes for the data of requests, of each queue; pages that are not used take no memory.
    public var memoryBytes = 16 << 20
    /// How long a queue looks for work before it sleeps, in ns.
    public var pollNanoseconds: UInt64 = 0
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
    /// A descriptor of the file whose flock(2) says who serves the disk, inherited locked; nil: nobody asks.
    public var lock: Int32?
    /// A descriptor of a socket: the process stands by until it is told there that its turn has come, and then waits for
    /// ``lock``, which it does not hold yet. nil: it serves at once.
    public var standby: Int32?
    /// How the process ended that served the disk before.
    public var predecessor = Predecessor.unknown
    /// What the disk begins with of all that can be changed while it is served; polling is ``pollNanoseconds``.
    public var tunables = Tunables()
    /// What the process gives up when its storage is open; nil: nothing.
    public var confinement: ConfinementSettings?
    /// What is logged.
    public var logLevel: LogLevel = .info

    /// The usual options for a node.
    public init(backendPath: String, pluginDirectories: [String]) {
        self.backendPath = backendPath
        self.pluginDirectories = pluginDirectories
    }
}

/// What can be changed while a disk is served.
public struct Tunables: Sendable, Equatable {
    /// The seed's disable_flush.
    public var disableFlush = false
    /// The seed's flush_interval.
    public var flushInterval: UInt64 = 0
    /// The seed's no_coalesce_reqs.
    public var noCoalesce = false
    /// ``VBDOptions/pollNanoseconds`` in µs.
    public var pollMicroseconds: UInt64 = 0

    /// All off.
    public init() {}

    /// Changes one by its name; nil if it worked, else what is wrong.
    public mutating func set(_ name: String, _ text: String) -> String? {
        guard let number = UInt64(text), number <= 1_000_000_000 else {
            return "\(name)=\(text): expected a number from 0 to 1000000000"
        }
        switch name {
        case "disable_flush": disableFlush = number != 0
        case "flush_interval": flushInterval = number
        case "no_coalesce_reqs": noCoalesce = number != 0
        case "poll_us": pollMicroseconds = number
        default:
            return "no tunable '\(name)'; there are disable_flush, flush_interval, no_coalesce_reqs and poll_us"
        }
        return nil
    }

    var tuning: QueueTuning {
        var tuning = QueueTuning()
        tuning.disableFlush = disableFlush
        tuning.flushInterval = flushInterval
        tuning.noCoalesce = noCoalesce
        return tuning
    }

    var json: JSON {
        .object([
            ("disable_flush", .integer(disableFlush ? 1 : 0)), ("flush_interval", .integer(flushInterval)),
            ("no_coalesce_reqs", .integer(noCoalesce ? 1 : 0)), ("poll_us", .integer(pollMicroseconds)),
        ])
    }
}
