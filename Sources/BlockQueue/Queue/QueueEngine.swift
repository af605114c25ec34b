// SPDX-License-Identifier: BSD-2-Clause
// A queue's requests from the ring to the plugin and back: steps without effects.
//
//   ring ─ gather() ─► PendingRequest ─► Reqlist ─ copies ─► ready ─ submit ─► plugin
//     ▲                                                                          │
//     └── respond ◄── copies ◄───────────── advance() ◄──────── absorb() ◄───────┘
//
// The engine owns the pools and decides; it makes no system call, takes no lock and allocates nothing after init.
// The queue's loop does the effects between its steps: the grant copies of ``copies``, the plugin's submit, the
// event. Lists that wait for something stand in exactly one queue of indices.
import PluginHost
import PluginPort
import Blkif
import CRing
import Memory
import PluginAPI
import Xen

/// What can be changed while a queue runs.
package struct QueueTuning: Sendable, Equatable {
    /// Answer flushes without doing them (the seed's disable_flush). The guest may lose data.
    package var disableFlush = false
    /// Do only every n-th flush (the seed's flush_interval); 0 and 1 do each.
    package var flushInterval: UInt64 = 0
    /// Send every request alone (the seed's no_coalesce_reqs).
    package var noCoalesce = false

    /// All off.
    package init() {}
}

/// A rule that the frontend broke, for the log.
struct GuestFault: Sendable {
    var error: RequestError
    var wireOperation: UInt8
    var firstSector: UInt64
    var sectorCount: UInt64
}

struct QueueEngine: ~Copyable {
    // What is fixed at connect.
    let domain: DomainID
    let device: DeviceInfo
    let memory: HostMemory
    let port: CompletionPort
    let stats: StatisticsCells
    /// Plugin requests that may be in flight.
    let depthLimit: Int
    /// One less than the bytes of a block of the disk, a power of two.
    let blockMask: UInt64
    var disk: OfferedFeatures
    var tuning = QueueTuning()
    var rule: CoalescingRule

    // Pools.
    var ring: BackRing
    var journal: QueueJournal
    var requests: FixedArray<PendingRequest>
    var freeRequests: IndexStack
    /// A reqlist has the index of its first request.
    var lists: FixedArray<Reqlist>
    var buffers: BufferPool
    var freeSubs: IndexStack

    /// Requests whose responses the frontend cannot see yet. They are free when it can: a successor must find what
    /// it may have to do again.
    var answered: IndexQueue
    /// Requests of an earlier process that are to be done again before any other.
    var replays: IndexQueue
    var replaying: Replaying

    // Where lists wait.
    var memoryWaiters: IndexQueue
    var subWaiters: IndexQueue
    /// Plugin requests that wait for submit().
    var ready: IndexQueue
    /// Copies between guest and memory for the next call of the grant table.
    var copies: GrantCopyBatch
    /// Lists that wait for their copies; the first ``copiedLists`` of them are in the batch, in its order.
    var copying: IndexQueue
    var copiedLists = 0
    /// The list that requests are being added to; -1 for none.
    var tail: Int32 = -1
    /// The list that must be alone: it waits for the others, and the ring waits for it; -1 for none.
    var exclusive: Int32 = -1

    /// Lists that were begun and are not finished.
    var listsInFlight = 0
    /// Plugin requests that the plugin has.
    var pluginInFlight = 0
    /// Responses written since the last publish.
    var unpublished: UInt64 = 0
    var flushCount: UInt64 = 0
    /// Why the ring is not read any more.
    var overflow: RingOverflow?
    /// The connection is ending: what is left on the ring stays there.
    var isDraining = false
    /// The connection is not complete yet.
    var isHeld = false
    /// The last fault of the guest that was not reported yet.
    var fault: GuestFault?
    /// The time of this turn, in ns of the monotonic clock.
    var now: UInt64 = 0

    init(
        ring: consuming BackRing, domain: DomainID, device: DeviceInfo, disk: OfferedFeatures, memory: HostMemory,
        port: CompletionPort, stats: StatisticsCells, journal: QueueJournal, recovery: QueueRecovery
    ) {
        let entries = ring.entryCount
        self.ring = ring
        self.journal = journal
        self.domain = domain
        self.device = device
        self.disk = disk
        self.memory = memory
        self.port = port
        self.stats = stats
        blockMask = UInt64(device.logicalBlock) &- 1
        depthLimit = min(device.queueDepth ?? port.requestCount, port.requestCount)
        requests = FixedArray(zeroed: entries)
        freeRequests = IndexStack(full: entries, except: recovery.replays)
        answered = IndexQueue(capacity: entries)
        replays = IndexQueue(capacity: entries)
        for index in recovery.replays { replays.append(index) }
        replaying = Replaying(recovery)
        lists = FixedArray(zeroed: entries)
        buffers = BufferPool(pageCount: memory.byteCount / BufferPool.pageSize)
        freeSubs = IndexStack(full: port.requestCount)
        memoryWaiters = IndexQueue(capacity: entries)
        subWaiters = IndexQueue(capacity: entries)
        copying = IndexQueue(capacity: entries)
        ready = IndexQueue(capacity: port.requestCount)
        let mostSegments = entries * BlkifLimits.segmentsPerRequest
        copies = GrantCopyBatch(capacity: mostSegments)
        precondition(memory.byteCount >= QueueEngine.smallestMemory)
        // A reqlist and what is needed beside its data must fit into a quarter of the memory, so that several can be on
        // their way.
        let spare = 8192 + (device.logicalBlock > 512 ? QueueEngine.scratchPages * BufferPool.pageSize : 0)
        let most = min(device.maxTransfer, QueueEngine.largestReqlist, UInt64(max(memory.byteCount / 4 - spare, 0)))
        rule = CoalescingRule(
            maxBytes: max(most, UInt64(BlkifLimits.segmentsPerRequest * 4096)),
            maxSegments: Int32(truncatingIfNeeded: mostSegments))
    }

    /// Bytes of the largest reqlist, whatever the plugin takes: 1 MiB.
    static let largestReqlist: UInt64 = 1 << 20
    /// Bytes of memory that the smallest limit of a reqlist needs, with the blocks around it and its scratch pages.
    static let smallestMemory = 128 << 10
    /// Pages that the largest request takes with the blocks around it, wherever it begins.
    static let scratchPages = 12

    /// True when nothing is on its way between the ring and its responses.
    var isIdle: Bool { listsInFlight == 0 && tail < 0 && exclusive < 0 }

    /// True if ``gather()`` may take requests now.
    var mayGather: Bool { overflow == nil && !isDraining && !isHeld && exclusive < 0 && memoryWaiters.isEmpty }

    /// True if requests of the ring are what it would take: those of an earlier process come first.
    var mayLookAtRing: Bool { mayGather && replays.isEmpty }
}
