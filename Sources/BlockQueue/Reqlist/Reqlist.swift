// SPDX-License-Identifier: BSD-2-Clause
// Requests of one operation that go to the plugin as one.
import Blkif

/// A request between the ring and its response. What each request needs comes first; few need all segments.
struct PendingRequest: BitwiseCopyable {
    /// When it was taken from the ring, in ns of the monotonic clock.
    var received: UInt64
    /// The next request of the same reqlist; -1 at the end.
    var next: Int32
    /// Where its data begins in the reqlist's buffer, in bytes.
    var bufferOffset: Int32
    /// Its own result; a failure of one request says nothing of its neighbours.
    var status: BlockStatus
    var request: BlockRequest
}

/// Where a reqlist stands on its way.
enum ReqlistPhase: UInt8, BitwiseCopyable {
    /// In the free list.
    case free
    /// Still taking requests from the ring.
    case collecting
    /// Waits until nothing else is in flight: a barrier, or a write that does not fill whole blocks of the disk.
    case waitingForDrain
    /// Waits for memory.
    case waitingForMemory
    /// A flush before the data.
    case flushBefore
    /// Reading the blocks that a write fills only partly.
    case fillBlocks
    /// Waits for the copy from the guest.
    case copyIn
    /// The plugin has it.
    case transfer
    /// A flush behind the data, where the plugin has no FUA.
    case flushAfter
    /// Waits for the copy to the guest.
    case copyOut
}

/// Adjacent requests of one operation, or a single request. It has the index of its first request.
struct Reqlist: BitwiseCopyable {
    var operation: BlockOperation
    var phase = ReqlistPhase.collecting
    var secure: Bool
    /// The requests are done one by one, because together they failed or one of them could not be copied.
    var isSplit = false
    /// The last request of the chain that begins with the list's own index.
    var last: Int32
    /// The request that is done now, of a split list; -1 for none.
    var current: Int32 = -1
    var requestCount: Int32 = 1
    var segmentCount: Int32
    /// Plugin requests that have not completed.
    var outstanding: Int32 = 0
    /// First sector and sectors of 512 bytes, of the whole list.
    var firstSector: UInt64
    var sectorCount: UInt64
    /// First page and pages of its buffer; 0 pages while it has none.
    var bufferPage: Int32 = 0
    var bufferPages: Int32 = 0
    /// First page of the part of the buffer where single requests are done that fill blocks only in part; 0 for none.
    ///
    /// Page 0 of the memory is never it: the list's data stands before it.
    var scratchPage: Int32 = 0
    /// Bytes in the buffer before the first sector of the list, where the disk's blocks are larger than a sector.
    var headBytes: Int32 = 0
    /// What the plugin is asked for: bytes from `offset`, of which those before `progress` were handed over.
    var offset: UInt64 = 0
    var length: UInt64 = 0
    var progress: UInt64 = 0
    /// The first failure, a negative errno, or 0.
    var failure: Int32 = 0

    /// A list of one request, which is the first.
    @inline(__always)
    init(_ index: Int32, _ first: borrowing PendingRequest) {
        operation = first.request.operation
        secure = first.request.secure
        last = index
        segmentCount = Int32(first.request.segmentCount)
        firstSector = first.request.firstSector
        sectorCount = first.request.sectorCount
    }
}

/// The rule by which adjacent requests become one reqlist.
///
/// The seed's rule (same operation, next sector, a limit of segments) with the plugin's limits.
struct CoalescingRule: Equatable, BitwiseCopyable {
    /// Bytes of a reqlist.
    var maxBytes: UInt64
    /// Segments of a reqlist.
    var maxSegments: Int32
    /// `no_coalesce_reqs`: every request alone.
    var disabled = false

    /// True if a request continues `list`.
    @inline(__always)
    func allows(
        _ list: borrowing Reqlist, operation: BlockOperation, first: UInt64, sectors: UInt64, segments: UInt8
    ) -> Bool {
        if disabled { return false }
        if first != list.firstSector &+ list.sectorCount { return false }
        if operation != list.operation { return false }
        if operation != .read && operation != .write { return false }
        if list.segmentCount &+ Int32(segments) > maxSegments { return false }
        return (list.sectorCount &+ sectors) &* 512 <= maxBytes
    }
}
