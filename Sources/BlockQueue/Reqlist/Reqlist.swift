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
    /// Where its data stands between the guest and the plugin.
    var buffer = ListBuffer()
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
}
