// SPDX-License-Identifier: BSD-2-Clause
// Which grant references and frames of a domain belong to which of its frontend processes.
//
// A guest's drivers share one allocator in its kernel. Here each disk's frontend may be a process of its own, so the
// broker allocates. When a process ends, its grants are revoked, and those still in use are kept until they are free,
// like Linux's gntalloc device does.
import Base
import Glibc

/// The references and frames of one frontend process.
final class FrontendShare {
    var references: [UInt32] = []
    var frames = FrameList(count: 0)
}

/// What is free, and what ended processes left in use.
struct FrontendShares {
    /// Free references, the lowest last.
    var references: [UInt32] = []
    var frames = FrameList(count: 0)
    /// Number of processes that are frontends now.
    var frontends = 0
    var orphans: [FrontendShare] = []
}

extension HostedDomain {
    /// Gives a share as many more references as it has already, so that growing is rare.
    func takeReferences(_ count: Int, for share: FrontendShare) throws(OperationError) -> [UInt32] {
        reapOrphans()
        let taken = Array(shares.references.suffix(min(max(count, 1), HypervisorProtocol.mapLimit)).reversed())
        if taken.isEmpty { throw OperationError(ENOSPC, "take grant references") }
        shares.references.removeLast(taken.count)
        share.references += taken
        return taken
    }

    /// Frames for a share.
    func takeFrames(_ count: Int, for share: FrontendShare) throws(OperationError) -> UInt32 {
        reapOrphans()
        guard let first = shares.frames.take(count) else { throw OperationError(ENOMEM, "take frames") }
        share.frames.insert(Int(first)..<Int(first) + count)
        return first
    }

    /// Takes frames back from a share: a part of one allocation, or parts of several.
    func giveFrames(_ first: Int, _ count: Int, from share: FrontendShare) throws(OperationError) {
        let range = first..<first + count
        if range.isEmpty || !share.frames.remove(range) { throw OperationError(EINVAL, "give frames") }
        shares.frames.insert(range)
    }

    /// The process of a share ended.
    func end(_ share: FrontendShare) {
        shares.frontends -= 1
        shares.orphans.append(share)
        reapOrphans()
    }

    /// Revokes the grants of ended processes that nobody uses any more; the last one also frees the frames.
    func reapOrphans() {
        if shares.orphans.isEmpty { return }
        for share in shares.orphans {
            share.references.removeAll { reference in
                if isPinned(reference) { return false }
                // After this nobody can start to use the grant; a running copy is waited for.
                _ = grants.clearBits16(.max, at: offset(reference))
                if isMarked(reference) { return false }
                shares.references.append(reference)
                return true
            }
            if share.references.isEmpty {
                for range in share.frames.ranges { shares.frames.insert(range) }
            }
        }
        shares.orphans.removeAll { $0.references.isEmpty }
        shares.references.sort(by: >)
    }
}

/// A set of frames: ranges in order, merged where they touch.
struct FrameList {
    private(set) var ranges: [Range<Int>]

    init(count: Int) {
        ranges = count > 0 ? [0..<count] : []
    }

    /// Takes `count` frames from the first range that is long enough, and returns the first frame.
    mutating func take(_ count: Int) -> UInt32? {
        guard count > 0, let index = ranges.firstIndex(where: { $0.count >= count }) else { return nil }
        let first = ranges[index].lowerBound
        _ = remove(first..<first + count)
        return UInt32(first)
    }

    /// Removes frames; false if some are not in the set, which is then unchanged.
    mutating func remove(_ range: Range<Int>) -> Bool {
        guard let index = ranges.firstIndex(where: { $0.contains(range.lowerBound) }),
            range.upperBound <= ranges[index].upperBound
        else { return false }
        let whole = ranges[index]
        let rest = [whole.lowerBound..<range.lowerBound, range.upperBound..<whole.upperBound].filter { !$0.isEmpty }
        ranges.replaceSubrange(index...index, with: rest)
        return true
    }

    /// Adds frames that are not in the set.
    mutating func insert(_ new: Range<Int>) {
        var range = new
        var index = ranges.firstIndex { $0.lowerBound >= range.lowerBound } ?? ranges.endIndex
        if index < ranges.endIndex && ranges[index].lowerBound == range.upperBound {
            range = range.lowerBound..<ranges[index].upperBound
            ranges.remove(at: index)
        }
        if index > 0 && ranges[index - 1].upperBound == range.lowerBound {
            index -= 1
            ranges[index] = ranges[index].lowerBound..<range.upperBound
        } else {
            ranges.insert(range, at: index)
        }
    }
}
