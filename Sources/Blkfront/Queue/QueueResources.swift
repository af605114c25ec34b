// SPDX-License-Identifier: BSD-2-Clause
// What a queue needs from its domain: frames, grants and a port, all of them or nothing.
import Base
import Blkif
import XenLoopback
import Xen

/// The frames, grants and event channel of one queue.
struct QueueResources {
    let domain: LoopbackDomain
    let slotCount: Int
    private(set) var ringFrame: UInt32 = 0
    private(set) var ringPageCount = 0
    private(set) var dataFrame: UInt32 = 0
    private(set) var dataFrameCount = 0
    /// Frames of a slot: those of its data, then those of the lists of an indirect request.
    private(set) var framesPerSlot = BlkifLimits.segmentsPerRequest
    /// Requests may be indirect.
    private(set) var hasLists = false
    private(set) var ringReferences: [UInt32] = []
    /// A grant for each data frame, if data frames stay granted.
    private(set) var pool: [UInt32] = []
    let port: LoopbackPort

    /// Allocates everything; if something is missing, frees what was allocated.
    init(domain: LoopbackDomain, backend: DomainID, ringPageCount: Int, options: FrontOptions) throws(OperationError) {
        self.domain = domain
        let entries = RingLayout(options.abi).entryCount(pages: ringPageCount)
        slotCount = min(options.requestsPerQueue ?? entries, entries)
        port = try domain.allocatePort(for: backend)
        do throws(OperationError) {
            ringFrame = try domain.allocateFrames(ringPageCount)
            self.ringPageCount = ringPageCount
            dataFrame = try domain.allocateFrames(slotCount * framesPerSlot)
            dataFrameCount = slotCount * framesPerSlot
            for page in 0..<UInt32(ringPageCount) {
                ringReferences.append(
                    try domain.grantAccess(to: backend, frame: ringFrame + page, readOnly: false))
            }
            if options.poolsGrants {
                for page in 0..<UInt32(dataFrameCount) {
                    pool.append(try domain.grantAccess(to: backend, frame: dataFrame + page, readOnly: false))
                }
            }
        } catch {
            _ = giveBack()
            throw error
        }
    }

    /// Replaces the data frames by as many that each slot has `segments` for data and what their list takes. Throws, and
    /// changes nothing, if something is missing.
    mutating func enlarge(_ segments: Int, backend: DomainID) throws(OperationError) {
        let each =
            segments + (segments + BlkifLimits.segmentsPerIndirectPage - 1) / BlkifLimits.segmentsPerIndirectPage
        let count = slotCount * each
        let frame = try domain.allocateFrames(count)
        var references: [UInt32] = []
        do throws(OperationError) {
            if !pool.isEmpty {
                for page in 0..<UInt32(count) {
                    references.append(try domain.grantAccess(to: backend, frame: frame + page, readOnly: false))
                }
            }
        } catch {
            for reference in references { _ = domain.endAccess(reference) }
            domain.freeFrames(frame, count: count)
            throw error
        }
        // No request has used them: the backend knows none of the references.
        for reference in pool { _ = domain.endAccess(reference) }
        domain.freeFrames(dataFrame, count: dataFrameCount)
        (pool, dataFrame, dataFrameCount, framesPerSlot, hasLists) = (references, frame, count, each, true)
    }

    /// Ends the grants and frees the frames. Returns the references that the backend still uses; their frames stay
    /// allocated.
    func giveBack(keepingFrames: Bool = false) -> [UInt32] {
        var used: [UInt32] = []
        for reference in ringReferences + pool where !end(reference) { used.append(reference) }
        if used.isEmpty && !keepingFrames { freeFrames() }
        return used
    }

    /// Revokes a grant; false where the backend still uses it. A backend that was killed does not.
    @inline(__always)
    func end(_ reference: UInt32) -> Bool { domain.endAccess(reference) || endAfterAll(reference) }

    @inline(never)
    private func endAfterAll(_ reference: UInt32) -> Bool {
        domain.settle()
        return domain.endAccess(reference)
    }

    /// Frees the frames, none of which is granted any more.
    private func freeFrames() {
        if ringPageCount > 0 { domain.freeFrames(ringFrame, count: ringPageCount) }
        if dataFrameCount > 0 { domain.freeFrames(dataFrame, count: dataFrameCount) }
    }
}
