// SPDX-License-Identifier: BSD-2-Clause
// Every way of a reqlist from one phase to the next, in one pure function.
//
//   flush, barrier      write, not whole blocks      write        read          discard
//   flushBefore    ┐    fillBlocks            ┐                   transfer
//                  └──────────────────────────┴────► copyIn ──► transfer ──►    transfer
//                                                               flushAfter*     copyOut        * barrier without FUA
//
// A list of several requests that fails is split: its requests are done one by one (QueueEngine+Split). One that fails for
// want of space may be held instead and stays in its phase (QueueEngine+Hold). Before either, zeroes that the plugin would
// not write by the operation for them are written as data.
import Blkif
import Glibc

/// What happened to a reqlist.
enum ReqlistEvent: BitwiseCopyable {
    /// It has its memory; a flush may be left out, as a tunable says
    case begun(skipsFlush: Bool)
    /// The plugin completed all parts of its phase; the list says whether one failed
    case completed
    /// The grant copies of its phase are done; so many of its requests failed, in this copy or before
    case copied(failed: Int32)
}

/// What is done with a reqlist next.
enum ReqlistStep: Equatable, BitwiseCopyable {
    /// Ask for a flush: ``ReqlistPhase/flushBefore`` or ``ReqlistPhase/flushAfter``
    case flush(ReqlistPhase)
    /// Read the blocks that the data fill only in part
    case fillBlocks
    /// Copy from the guest
    case copyIn
    /// Hand data to the plugin, or take data from it
    case transfer
    /// Hand the range of a discard to the plugin
    case discard
    /// Write the zeroes that the plugin would not write as such
    case writeZeroesAsData
    /// Copy to the guest
    case copyOut
    /// Begin with the first request alone
    case split
    /// The list is done one by one, and the blocks around its data hold what they must: copy from the guest
    case splitCopyIn
    /// One part of a request that is done alone has ended
    case splitNext
    /// Wait until there may be space, then do the same again
    case hold
    /// Answer its requests, each with its own status
    case finish
    /// Answer all of its requests with this status
    case fail(BlockStatus)
}

/// What of a disk decides how its reqlists go.
struct DiskTraits: BitwiseCopyable {
    /// One less than the bytes of a block, a power of two.
    let blockMask: UInt64
    /// Completed writes may be in a volatile cache.
    let hasFlush: Bool
    /// A write can be made durable by itself.
    let hasFUA: Bool

    /// True if `sectors` of 512 bytes from `first` begin and end at block boundaries.
    @inline(__always)
    func fillsWholeBlocks(first: UInt64, sectors: UInt64) -> Bool {
        ((first | sectors) &* 512) & blockMask == 0
    }
}

extension ReqlistState {
    /// The step that follows `event` in the list's phase.
    @inline(__always)
    func next(after event: ReqlistEvent, on disk: DiskTraits) -> ReqlistStep {
        switch event {
        case .begun(let skipsFlush):
            if operation == .read { return .transfer }
            if operation == .write { return dataStep }
            if operation == .discard { return .discard }
            return skipsFlush || !disk.hasFlush ? dataStep : .flush(.flushBefore)
        case .completed:
            if isSplit || failure != 0 { return afterFailure() }
            if phase == .transfer { return afterTransfer(on: disk) }
            if phase == .fillBlocks { return .copyIn }
            return phase == .flushBefore ? dataStep : .finish
        case .copied(let failed):
            if phase == .copyOut { return .finish }
            if failed == 0 && !isSplit { return .transfer }
            return failed == requestCount ? .finish : .split
        }
    }

    /// How the data of a write, a flush or a barrier begin.
    @inline(__always)
    private var dataStep: ReqlistStep {
        if data == .wholeBlocks { return .copyIn }
        return data == .none ? .finish : .fillBlocks
    }

    @inline(__always)
    private func afterTransfer(on disk: DiskTraits) -> ReqlistStep {
        if operation == .read { return .copyOut }
        return operation == .writeBarrier && !disk.hasFUA && disk.hasFlush ? .flush(.flushAfter) : .finish
    }

    /// After a phase in the plugin of a list that failed, in it or before.
    @inline(never)
    private func afterFailure() -> ReqlistStep {
        // The guest has not asked for that operation, so it does not see it fail.
        if zeroes == .operation { return .writeZeroesAsData }
        if waitsForSpace { return .hold }
        if isSplit { return .splitNext }
        if requestCount > 1 && phase == .transfer { return .split }
        // Perhaps only the first or the last request has to do with the block that cannot be read.
        if requestCount > 1 && phase == .fillBlocks { return .splitCopyIn }
        return .fail(failure == -EOPNOTSUPP ? .notSupported : .error)
    }
}
