// SPDX-License-Identifier: BSD-2-Clause
// Between reqlists and the plugin's requests.
import Blkif
import Memory
import PluginAPI
import PluginPort

extension QueueEngine {
    /// Begins to hand over the list's length from its offset.
    @inline(__always)
    mutating func startTransfer(_ list: Int32) {
        lists[Int(list)].enter(.transfer)
        let operation = lists[Int(list)].state.operation
        let length = lists[Int(list)].length
        // The way of most: all of it in one request with one vector.
        guard operation != .discard, !lists[Int(list)].state.isSplit, length <= plugin.maxTransfer,
            tuning.zeroDetection == .off || operation != .write,
            let place = data.start(of: list), let request = plugin.takeIfFree()
        else {
            buildParts(list)
            return
        }
        let pointer = plugin.port.request(request)
        pointer.prepare(
            list: list, op: operation == .read ? UInt8(XBB_OP_READ) : UInt8(XBB_OP_WRITE),
            flags: operation == .writeBarrier && traits.hasFUA ? UInt16(XBB_REQ_FUA) : 0,
            offset: lists[Int(list)].offset, length: length)
        data.point(pointer, at: place, Int(truncatingIfNeeded: length))
        plugin.makeReady(request)
        lists[Int(list)].handOver(upTo: length, parts: 1)
    }

    /// Begins a phase of the plugin that is not the transfer: a flush, or the reading of blocks.
    @inline(never)
    mutating func submit(_ list: Int32, _ phase: ReqlistPhase) {
        lists[Int(list)].enter(phase)
        build(list)
    }

    /// Makes plugin requests out of what is left of a list, as many as there are free ones.
    private mutating func build(_ list: Int32) {
        if lists[Int(list)].state.failure != 0 {
            // A part failed while this list waited: the rest would not change the result.
            lists[Int(list)].progress = lists[Int(list)].length
            if lists[Int(list)].outstanding == 0 { go(list, after: .completed) }
            return
        }
        switch lists[Int(list)].state.phase {
        case .transfer: buildParts(list)
        case .fillBlocks: buildFill(list)
        default: buildFlush(list)
        }
    }

    /// Asks for a flush, which has one part and no length: all of the list counts as handed over.
    private mutating func buildFlush(_ list: Int32) {
        guard makeWithoutData(list, UInt8(XBB_OP_FLUSH), offset: 0, length: 0) else { return }
        lists[Int(list)].handOver(upTo: lists[Int(list)].length, parts: 1)
    }

    /// Makes a plugin request that has a range at most; false where none is free, and the list waits for one.
    private mutating func makeWithoutData(
        _ list: Int32, _ op: UInt8, flags: UInt16 = 0, offset: UInt64, length: UInt64
    ) -> Bool {
        guard let request = plugin.take(for: list) else { return false }
        let pointer = plugin.port.request(request)
        pointer.prepare(list: list, op: op, flags: flags, offset: offset, length: length)
        pointer.setVectorCount(0)
        plugin.makeReady(request)
        return true
    }

    /// Hands over the data, or the range of a discard, in as many requests as the plugin's limits and the buffer ask for.
    @inline(never)
    private mutating func buildParts(_ list: Int32) {
        let position = Int(list)
        let operation = lists[position].state.operation
        if operation == .discard {
            buildDiscard(list)
            return
        }
        if operation == .write, isOfZeroes(list) {
            buildZeroes(list)
            return
        }
        let op = operation == .read ? UInt8(XBB_OP_READ) : UInt8(XBB_OP_WRITE)
        let flags = operation == .writeBarrier && traits.hasFUA ? UInt16(XBB_REQ_FUA) : 0
        while lists[position].progress < lists[position].length {
            guard let request = plugin.take(for: list) else { return }
            let done = lists[position].progress
            let place = dataStart(list) + Int(truncatingIfNeeded: done)
            let length = data.reach(
                min(lists[position].length - done, plugin.maxTransfer), from: place, in: list,
                mostVectors: plugin.mostVectors)
            let pointer = plugin.port.request(request)
            pointer.prepare(list: list, op: op, flags: flags, offset: lists[position].offset + done, length: length)
            data.pointAll(pointer, at: place, Int(truncatingIfNeeded: length), in: list)
            plugin.makeReady(request)
            lists[position].handOver(upTo: done + length, parts: 1)
        }
    }

    /// True for a list that has not begun and has nothing but zeroes, where that is looked for.
    ///
    /// A list that is done again request by request, or whose zeroes the plugin would not write as such, is written as it is.
    private mutating func isOfZeroes(_ list: Int32) -> Bool {
        let position = Int(list)
        guard tuning.zeroDetection != .off, lists[position].progress == 0, !lists[position].state.isSplit,
            lists[position].state.zeroes != .dataAfterRefusal, lists[position].length <= plugin.maxWriteZeroes
        else { return false }
        return data.isZero(at: dataStart(list), Int(truncatingIfNeeded: lists[position].length), in: list)
    }

    private mutating func buildZeroes(_ list: Int32) {
        let position = Int(list)
        let flags = tuning.zeroDetection == .unmap ? UInt16(XBB_REQ_MAY_UNMAP) : 0
        guard
            makeWithoutData(
                list, UInt8(XBB_OP_WRITE_ZEROES), flags: flags, offset: lists[position].offset,
                length: lists[position].length)
        else { return }
        stats.add(.zero_writes)
        lists[position].state.zeroes = .operation
        lists[position].handOver(upTo: lists[position].length, parts: 1)
    }

    @inline(never)
    private mutating func buildDiscard(_ list: Int32) {
        let position = Int(list)
        let flags = lists[position].secure && canEraseSecurely ? UInt16(XBB_REQ_SECURE) : 0
        while lists[position].progress < lists[position].length {
            let done = lists[position].progress
            let length = min(lists[position].length - done, plugin.maxDiscard)
            let offset = lists[position].offset + done
            guard makeWithoutData(list, UInt8(XBB_OP_DISCARD), flags: flags, offset: offset, length: length) else {
                break
            }
            lists[position].handOver(upTo: done + length, parts: 1)
        }
    }

    /// Reads the blocks that the data fills only in part: at most the first and the last one.
    private mutating func buildFill(_ list: Int32) {
        let position = Int(list)
        let block = traits.blockMask + 1
        let last = lists[position].length - block
        let start = dataStart(list)
        let (head, endsInside) = partialEnds(list)
        while true {
            let done = lists[position].progress
            let next: UInt64
            if done == 0 && head {
                next = 0
            } else if done <= last && endsInside {
                next = last
            } else {
                lists[position].progress = lists[position].length
                return
            }
            guard let request = plugin.take(for: list) else { return }
            lists[position].outstanding &+= 1
            let pointer = plugin.port.request(request)
            pointer.prepare(
                list: list, op: UInt8(XBB_OP_READ), flags: 0, offset: lists[position].offset + next, length: block)
            // A block is at most a page, and runs of pages are whole blocks: one vector.
            data.pointAll(pointer, at: start + Int(truncatingIfNeeded: next), Int(truncatingIfNeeded: block), in: list)
            plugin.makeReady(request)
            lists[position].progress = next + block
        }
    }

    /// True for each end at which the data, of the list or of the single request, fills a block only in part.
    private func partialEnds(_ list: Int32) -> (head: Bool, tail: Bool) {
        let position = Int(list)
        var (first, count) = (lists[position].firstSector, lists[position].sectorCount)
        if lists[position].state.isSplit {
            let request = requests[Int(lists[position].current)].request
            (first, count) = (request.firstSector, request.sectorCount)
        }
        return ((first &* 512) & traits.blockMask != 0, ((first &+ count) &* 512) & traits.blockMask != 0)
    }

    // MARK: Completions

    /// Takes what the plugin completed; true if there was anything.
    @inline(__always)
    mutating func absorbCompletions() -> Bool {
        let count = plugin.beginAbsorbing()
        if count == 0 { return false }
        for position in 0..<count {
            let (list, status) = plugin.absorb(position)
            complete(list, status)
        }
        plugin.endAbsorbing(count)
        stats.add(.plugin_requests, UInt64(count))
        buildForWaiters()
        startWaitingLists()
        return true
    }

    /// Goes on with lists of which a part waits for a free plugin request.
    @inline(__always)
    private mutating func buildForWaiters() {
        while let list = plugin.nextWaiter() { build(list) }
    }

    /// One part of a list's phase ended with `status`.
    @inline(__always)
    private mutating func complete(_ list: Int32, _ status: Int32) {
        if status != 0 { recordFailure(list, status) }
        if lists[Int(list)].completePart() { go(list, after: .completed) }
    }

    @inline(never)
    private mutating func recordFailure(_ list: Int32, _ status: Int32) {
        stats.add(.plugin_errors)
        let canWait = canWaitForSpace(list, status)
        if lists[Int(list)].state.failure == 0 {
            lists[Int(list)].state.failure = status
            lists[Int(list)].state.waitsForSpace = canWait
        } else if !canWait {
            lists[Int(list)].state.waitsForSpace = false
        }
        // One that waits is told when it begins to.
        if !canWait || !lists[Int(list)].wasHeld { note(list, status) }
    }

    /// Keeps an error of the storage for whoever reports it.
    ///
    /// Where comes from the list: what the plugin had in hand, it may have changed.
    private mutating func note(_ list: Int32, _ status: Int32) {
        let position = Int(list)
        let operation: StorageOperation =
            switch (lists[position].state.phase, lists[position].state.operation) {
            case (.flushBefore, _), (.flushAfter, _): .flush
            case (.fillBlocks, _), (_, .read): .read
            case (_, .discard): .discard
            default: .write
            }
        var (first, count) = (lists[position].firstSector, lists[position].sectorCount)
        if lists[position].state.isSplit, lists[position].current >= 0 {
            let request = requests[Int(lists[position].current)].request
            (first, count) = (request.firstSector, request.sectorCount)
        }
        let code = 0 &- status
        stats.count(operation, error: code)
        failure = (
            StorageFailure(operation: operation, code: code, firstSector: first, sectorCount: count),
            (failure?.count ?? 0) &+ 1
        )
    }

    /// Fails a request that the plugin would not take.
    mutating func refuseReady(_ status: Int32) {
        guard let list = plugin.dropReady() else { return }
        complete(list, status)
        // No completion will come that could do this: the plugin has nothing.
        buildForWaiters()
        startWaitingLists()
    }
}
