// SPDX-License-Identifier: BSD-2-Clause
// Requests of one operation that go to the plugin as one.
import Blkif

/// A request between the ring and its response.
package struct PendingRequest: BitwiseCopyable {
    /// When it was taken from the ring, in ns of the monotonic clock.
    var received: UInt64
    /// The next request of the same reqlist; -1 at the end.
    var next: Int32
    /// Where its data begins in the reqlist's buffer, in bytes.
    var bufferOffset: Int32
    /// Its own result; a failure of one request says nothing of its neighbours.
    package var status: BlockStatus
    package var request: BlockRequest

    // Functions that change several fields are one access to the pool, with one check of the index.

    /// It was taken from the ring now.
    @inline(__always)
    mutating func begin(at now: UInt64) {
        received = now
        status = .okay
        next = -1
        bufferOffset = 0
    }
}

/// Where a reqlist stands on its way.
enum ReqlistPhase: UInt8, BitwiseCopyable {
    /// Not in use
    case free
    /// Still taking requests from the ring
    case collecting
    /// Waits until nothing else is in flight: a barrier, or a write that does not fill whole blocks of the disk
    case waitingForDrain
    /// Waits for memory
    case waitingForMemory
    /// A flush before the data
    case flushBefore
    /// Reading the blocks that a write fills only partly
    case fillBlocks
    /// Waits for the copy from the guest
    case copyIn
    /// The plugin has it
    case transfer
    /// A flush behind the data, where the plugin has no FUA
    case flushAfter
    /// Waits for the copy to the guest
    case copyOut
}

/// What of a reqlist decides how it goes on.
struct ReqlistState: BitwiseCopyable {
    var operation: BlockOperation
    var phase = ReqlistPhase.collecting
    /// The requests are done one by one, because together they failed or one of them could not be copied.
    var isSplit = false
    var data = ReqlistData.none
    var requestCount: Int32 = 1
    /// The first failure, a negative errno, or 0.
    var failure: Int32 = 0
    /// It failed for want of space alone, and is to be tried again when there may be some.
    var waitsForSpace = false
    var zeroes = ZeroesForm.data
}

/// How the plugin is asked to write what is nothing but zeroes.
enum ZeroesForm: UInt8, BitwiseCopyable {
    /// It was not: the list is no such write, or has not begun
    case data
    /// As `XBB_OP_WRITE_ZEROES`
    case operation
    /// As data, because it has refused the operation
    case dataAfterRefusal
}

/// How the data of a write, a flush or a barrier lie on the disk.
enum ReqlistData: UInt8, BitwiseCopyable {
    /// There are none
    case none
    /// They begin and end at block boundaries of the disk
    case wholeBlocks
    /// They do not
    case partialBlocks
}

/// Adjacent requests of one operation, or a single request. It has the index of its first request.
package struct Reqlist: BitwiseCopyable {
    var state: ReqlistState
    var secure: Bool
    /// It has waited for space.
    var wasHeld = false
    /// The last request of the chain that begins with the list's own index.
    var last: Int32
    /// The request that is done now, of a split list; -1 for none.
    var current: Int32 = -1
    var segmentCount: Int32
    /// Plugin requests that have not completed.
    var outstanding: Int32 = 0
    /// First sector and sectors of 512 bytes, of the whole list.
    var firstSector: UInt64
    var sectorCount: UInt64
    /// What the plugin is asked for: bytes from `offset`, of which those before `progress` were handed over.
    var offset: UInt64 = 0
    var length: UInt64 = 0
    var progress: UInt64 = 0

    /// A list of one request, which is the first.
    @inline(__always)
    init(_ index: Int32, _ first: borrowing PendingRequest) {
        state = ReqlistState(operation: first.request.operation)
        secure = first.request.secure
        last = index
        segmentCount = Int32(truncatingIfNeeded: first.request.segmentCount)
        firstSector = first.request.firstSector
        sectorCount = first.request.sectorCount
    }

    /// Takes another request in, as its last one; the one that was last, and where the new one's data begin.
    @inline(__always)
    mutating func append(_ index: Int32, segments: UInt16, sectors: UInt64) -> (previous: Int32, offset: Int32) {
        let result = (last, Int32(truncatingIfNeeded: sectorCount &* 512))
        last = index
        state.requestCount &+= 1
        segmentCount &+= Int32(truncatingIfNeeded: segments)
        sectorCount &+= sectors
        return result
    }

    /// Says how its data lie on the disk.
    @inline(__always)
    mutating func classify(on disk: DiskTraits) {
        if sectorCount == 0 {
            state.data = .none
        } else if disk.blockMask == 511 || disk.fillsWholeBlocks(first: firstSector, sectors: sectorCount) {
            state.data = .wholeBlocks
        } else {
            state.data = .partialBlocks
        }
    }

    /// Widens what the plugin is asked for to whole blocks of the disk; the pages that this takes, and the bytes before
    /// the first sector.
    @inline(__always)
    mutating func widen(on disk: DiskTraits) -> (pages: Int, head: Int32) {
        // The head says how far into the first block the data begin.
        let first = firstSector &* 512
        let head = first & disk.blockMask
        length = (head &+ sectorCount &* 512 &+ disk.blockMask) & ~disk.blockMask
        offset = first &- head
        return (Int(truncatingIfNeeded: (length &+ 4095) >> 12), Int32(truncatingIfNeeded: head))
    }

    /// Begins a phase in the plugin.
    @inline(__always)
    mutating func enter(_ phase: ReqlistPhase) {
        state.phase = phase
        state.failure = 0
        state.waitsForSpace = false
        progress = 0
    }

    /// The plugin is handed `parts` requests more, up to `end` bytes of its length.
    @inline(__always)
    mutating func handOver(upTo end: UInt64, parts: Int32) {
        progress = end
        outstanding &+= parts
    }

    /// A plugin request has completed; true if it was the last one of the phase.
    @inline(__always)
    mutating func completePart() -> Bool {
        outstanding &-= 1
        return outstanding == 0 && progress >= length
    }
}
