// SPDX-License-Identifier: BSD-2-Clause
// A queue's requests from the ring to the plugin and back: steps without effects.
//
//   ring ─ intake ─► PendingRequest ─► Reqlist ─ DataPlane ─► PluginSide ─ submit ─► plugin
//     ▲                                                                                │
//     └── respond ◄── DataPlane ◄────────── Reqlist.next() ◄──────── absorb ◄──────────┘
//
// The engine owns the pools and decides; it makes no system call, takes no lock and allocates nothing after init.
// The effects (grant copies, the plugin's submit, the event) are passed to ``turn(_:)`` by its caller. A list that waits is in
// exactly one queue of indices.
import Blkif
import Memory
import PluginHost
import PluginPort
import Xen

/// What can be changed while a queue runs.
package struct QueueTuning: Sendable, Equatable {
    /// Answer flushes without doing them (FreeBSD's disable_flush). The guest may lose data.
    package var disableFlush = false
    /// Do only every n-th flush (FreeBSD's flush_interval); 0 and 1 do each.
    package var flushInterval: UInt64 = 0
    /// Send every request alone (FreeBSD's no_coalesce_reqs).
    package var noCoalesce = false
    /// Requests that fail for want of space wait and are tried again (`on-enospc`).
    package var holdsWithoutSpace = false
    /// What is done with writes of nothing but zeroes (`detect-zeroes`).
    package var zeroDetection = ZeroDetection.off
    /// How long the queue looks for work before it sleeps, in ns (`poll-us`).
    package var pollNanoseconds: UInt64 = 0
    /// The share of one processor that may be spent on looking for work in vain, in percent (`poll-percent`).
    package var pollPercent: UInt64 = 100
    /// What holds the disk to its limits; nil: nothing does.
    package var limiter: DiskLimiter?

    /// All off.
    package init() {}
}

/// How a write of nothing but zeroes reaches the plugin.
package enum ZeroDetection: Sendable {
    /// As any other.
    case off
    /// As `XBB_OP_WRITE_ZEROES`.
    case on
    /// The same, and the plugin may deallocate: `XBB_REQ_MAY_UNMAP`.
    case unmap
}

/// A rule that the frontend broke, for the log.
struct GuestFault: Sendable {
    var error: RequestError
    var wireOperation: UInt8
    var firstSector: UInt64
    var sectorCount: UInt64
}

package struct QueueEngine: ~Copyable {
    // What is fixed at connect.
    let stats: StatisticsCells
    let traits: DiskTraits
    let canEraseSecurely: Bool
    /// There are other queues of the disk, and blocks of which one writes a part are locked.
    let locksBlocks: Bool

    // What can change while it runs.
    var disk: OfferedFeatures
    var tuning = QueueTuning()
    var rule: CoalescingRule
    /// The connection is ending: what is left on the ring stays there.
    var isDraining = false
    /// The connection is not complete yet.
    var isHeld = false
    /// The other queues of the disk.
    var peers: QueuePeers

    // Its parts.
    var ring: BackRing
    var journal: QueueJournal
    var data: DataPlane
    var plugin: PluginSide

    // Requests and lists.
    var requests: FixedArray<PendingRequest>
    /// The segments of each request.
    let segments: SegmentStore
    /// Requests whose segments are outside of their slots.
    var fetch: FetchStage
    /// Pages that the largest request takes with the blocks around it.
    let scratchPages: Int
    var freeRequests: IndexStack
    /// A reqlist has the index of its first request.
    var lists: FixedArray<Reqlist>
    /// Requests whose responses the frontend cannot see yet. They are free when it can: a successor must find what
    /// it may have to do again.
    var answered: IndexQueue
    /// Requests of an earlier process, which are done again before any other.
    var replays: IndexQueue
    var replaying: Replaying
    var memoryWaiters: IndexQueue
    /// Lists that failed for want of space.
    var hold: SpaceHold
    /// Requests that the limits of the disk hold back.
    var throttle = ThrottleState()
    /// The list that requests are being added to; -1 for none.
    var tail: Int32 = -1
    /// The list that must be alone: it waits for the others, and the ring waits for it; -1 for none.
    var exclusive: Int32 = -1
    /// Lists that were begun and are not finished.
    var listsInFlight = 0
    /// Responses written since the last publish.
    var unpublished: UInt64 = 0
    var flushCount: UInt64 = 0

    // Not reported yet.
    /// Why the ring is not read any more.
    var overflow: RingOverflow?
    /// The last fault of the guest that was not reported yet.
    var fault: GuestFault?
    /// The last error of the storage that was not reported yet, and how many there were.
    var failure: (last: StorageFailure, count: UInt64)?

    /// The time of this turn, in ns of the monotonic clock.
    var now: UInt64 = 0
    /// When the plugin began to take nothing although it has nothing, in ns; nil while it works.
    var stalledSince: UInt64?

    init(
        ring: consuming BackRing, domain: DomainID, device: DeviceInfo, disk: OfferedFeatures, memory: HostMemory,
        segments: consuming SegmentStore, fetch: consuming FetchStage, port: CompletionPort, stats: StatisticsCells,
        journal: QueueJournal,
        recovery: QueueRecovery, peers: QueuePeers = QueuePeers(order: nil, queue: 0)
    ) {
        let entries = ring.entryCount
        self.ring = ring
        self.journal = journal
        self.disk = disk
        self.stats = stats
        traits = DiskTraits(
            blockMask: UInt64(device.logicalBlock) &- 1, hasFlush: device.capabilities.contains(.flush),
            hasFUA: device.capabilities.contains(.fua))
        canEraseSecurely = device.capabilities.contains(.discardSecure)
        self.peers = peers
        locksBlocks = peers.order != nil && device.logicalBlock > 512
        let perRequest = segments.capacity
        let mostSegments = max(entries * BlkifLimits.segmentsPerRequest, perRequest + DataPlane.mostRuns)
        data = DataPlane(domain: domain, memory: memory, listCount: entries, copyCount: mostSegments)
        plugin = PluginSide(port: port, device: device, listCount: entries)
        requests = FixedArray(zeroed: entries)
        self.segments = segments
        self.fetch = fetch
        freeRequests = IndexStack(full: entries, except: recovery.replays)
        answered = IndexQueue(capacity: entries)
        replays = IndexQueue(capacity: entries)
        for index in recovery.replays { replays.append(index) }
        replaying = Replaying(recovery)
        lists = FixedArray(zeroed: entries)
        memoryWaiters = IndexQueue(capacity: entries)
        hold = SpaceHold(listCount: entries)
        precondition(memory.byteCount >= QueueEngine.memoryBytes(0, for: disk))
        // The largest request, wherever it begins, with the blocks around it.
        scratchPages = perRequest + 1
        // A reqlist and what is needed beside its data must fit into a quarter of the memory, so that several can be on
        // their way.
        let spare = 8192 + (device.logicalBlock > 512 ? scratchPages * BufferPool.pageSize : 0)
        let most = min(device.maxTransfer, QueueEngine.largestReqlist, UInt64(max(memory.byteCount / 4 - spare, 0)))
        rule = CoalescingRule(
            maxBytes: max(most, UInt64(perRequest * 4096)),
            // Where no run of pages is long enough, a list takes a few copies more than it has segments.
            maxSegments: Int32(truncatingIfNeeded: mostSegments - DataPlane.mostRuns))
    }

    /// Bytes of the largest reqlist, whatever the plugin takes: 1 MiB.
    static let largestReqlist: UInt64 = 1 << 20
    /// Bytes of memory for the data of a queue: what is wanted, or what its largest requests need. Of those four fit, each
    /// with the blocks around it and its scratch pages; 128 KiB for requests of eleven segments. The settings' schema says the
    /// same to whoever limits the process (`SettingsSchema.queueMemory`).
    static func memoryBytes(_ wanted: Int, for disk: OfferedFeatures) -> Int {
        let segments = max(Self.segments(of: disk), BlkifLimits.segmentsPerRequest)
        return max(wanted, max(128 << 10, segments > BlkifLimits.segmentsPerRequest ? segments * 4096 * 8 : 0))
    }

    /// The most segments of an indirect request; 0 where there are none.
    static func segments(of disk: OfferedFeatures) -> Int {
        Int(min(disk.maximumIndirectSegments, BlkifLimits.mostIndirectSegments))
    }

    /// True when nothing is on its way between the ring and its responses.
    var isIdle: Bool { listsInFlight == 0 && tail < 0 && exclusive < 0 }

    /// True when nothing is on its way, in the plugin neither.
    var isEmpty: Bool { isIdle && plugin.inFlight == 0 }

    /// True if requests may be taken now.
    var mayTake: Bool {
        overflow == nil && !isDraining && !isHeld && exclusive < 0 && memoryWaiters.isEmpty && !isThrottled
    }

    /// True if requests of the ring are what would be taken: those of an earlier process come first.
    var mayLookAtRing: Bool { mayTake && replays.isEmpty }
}
