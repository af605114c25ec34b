// SPDX-License-Identifier: BSD-2-Clause
// Between reqlists and the plugin's requests.
import PluginPort
import Blkif
import Glibc
import Memory
import PluginAPI

extension QueueEngine {
    /// Begins to hand over `length` bytes from `offset` of the list.
    @inline(__always)
    mutating func startTransfer(_ list: Int32) {
        lists[Int(list)].phase = .transfer
        lists[Int(list)].progress = 0
        lists[Int(list)].failure = 0
        pumpTransfer(list)
    }

    /// Begins a phase of the plugin that is not the transfer: a flush, or the reading of blocks.
    @inline(never)
    mutating func submit(_ list: Int32, _ phase: ReqlistPhase) {
        lists[Int(list)].phase = phase
        lists[Int(list)].progress = 0
        lists[Int(list)].failure = 0
        pump(list)
    }

    /// Makes plugin requests out of what is left of a list, as many as there are free ones.
    private mutating func pump(_ list: Int32) {
        if lists[Int(list)].failure != 0 {
            // A part failed while this list waited: the rest would not change the result.
            lists[Int(list)].progress = lists[Int(list)].length
            if lists[Int(list)].outstanding == 0 { phaseCompleted(list) }
            return
        }
        switch lists[Int(list)].phase {
        case .transfer: pumpTransfer(list)
        case .fillBlocks: pumpFill(list)
        default: pumpFlush(list)
        }
    }

    /// Asks for a flush, which has one part and no length: all of the list counts as handed over.
    private mutating func pumpFlush(_ list: Int32) {
        guard let sub = freeSubs.pop() else {
            subWaiters.append(list)
            return
        }
        lists[Int(list)].progress = lists[Int(list)].length
        lists[Int(list)].outstanding &+= 1
        fill(sub, list, op: UInt8(XBB_OP_FLUSH), flags: 0, offset: 0, length: 0, buffer: -1)
    }

    /// Hands over the data, or the range of a discard.
    @inline(__always)
    private mutating func pumpTransfer(_ list: Int32) {
        let (op, flags, limit) = pluginOperation(list)
        let start = op == UInt8(XBB_OP_DISCARD) ? -1 : dataStart(list)
        let end = lists[Int(list)].length
        var done = lists[Int(list)].progress
        var parts: Int32 = 0
        while done < end {
            guard let sub = freeSubs.pop() else {
                subWaiters.append(list)
                break
            }
            let length = min(end &- done, limit)
            fill(
                sub, list, op: op, flags: flags, offset: lists[Int(list)].offset &+ done, length: length,
                buffer: start < 0 ? -1 : start &+ Int(truncatingIfNeeded: done))
            done &+= length
            parts &+= 1
        }
        lists[Int(list)].progress = done
        lists[Int(list)].outstanding &+= parts
    }

    /// Reads the blocks that the data fills only in part: at most the first and the last one.
    private mutating func pumpFill(_ list: Int32) {
        let position = Int(list)
        let block = blockMask &+ 1
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
            guard let sub = freeSubs.pop() else {
                subWaiters.append(list)
                return
            }
            lists[position].outstanding &+= 1
            fill(
                sub, list, op: UInt8(XBB_OP_READ), flags: 0, offset: lists[position].offset &+ next, length: block,
                buffer: start + Int(truncatingIfNeeded: next))
            lists[position].progress = next &+ block
        }
    }

    /// True for each end at which the data, of the list or of the single request, fills a block only in part.
    private func partialEnds(_ list: Int32) -> (head: Bool, tail: Bool) {
        let position = Int(list)
        var (first, count) = (lists[position].firstSector, lists[position].sectorCount)
        if lists[position].isSplit {
            let request = requests[Int(lists[position].current)].request
            (first, count) = (request.firstSector, request.sectorCount)
        }
        return ((first &* 512) & blockMask != 0, ((first &+ count) &* 512) & blockMask != 0)
    }

    /// Operation, flags and largest length for what the list's phase asks of the plugin.
    @inline(__always)
    private func pluginOperation(_ list: Int32) -> (op: UInt8, flags: UInt16, limit: UInt64) {
        let operation = lists[Int(list)].operation
        if operation == .read { return (UInt8(XBB_OP_READ), 0, device.maxTransfer) }
        if operation == .discard {
            let secure = lists[Int(list)].secure && device.capabilities.contains(.discardSecure)
            return (UInt8(XBB_OP_DISCARD), secure ? UInt16(XBB_REQ_SECURE) : 0, device.maxDiscard)
        }
        let durable = operation == .writeBarrier && device.capabilities.contains(.fua)
        return (UInt8(XBB_OP_WRITE), durable ? UInt16(XBB_REQ_FUA) : 0, device.maxTransfer)
    }

    @inline(__always)
    private mutating func fill(
        _ sub: Int32, _ list: Int32, op: UInt8, flags: UInt16, offset: UInt64, length: UInt64, buffer: Int
    ) {
        let request = unsafe port.address(of: sub)
        unsafe request.pointee.list = list
        unsafe request.pointee.req.offset = offset
        unsafe request.pointee.req.length = length
        unsafe request.pointee.req.flags = flags
        unsafe request.pointee.req.op = op
        if buffer >= 0 {
            unsafe request.pointee.iov.iov_base = memory.address(at: buffer, count: Int(truncatingIfNeeded: length))
            unsafe request.pointee.iov.iov_len = Int(truncatingIfNeeded: length)
            // The request was the plugin's, which may have advanced the pointer while it worked on it.
            let vector = unsafe UnsafeRawPointer(request) + CompletionPort.vectorOffset
            unsafe request.pointee.req.iov = vector.assumingMemoryBound(to: iovec.self)
            unsafe request.pointee.req.iovcnt = 1
        } else {
            unsafe request.pointee.req.iovcnt = 0
        }
        ready.append(sub)
    }

    // MARK: Completions

    /// Takes what the plugin completed; true if there was anything.
    @inline(__always)
    mutating func absorbCompletions() -> Bool {
        port.takeRemote()
        let count = port.localCount
        if count == 0 { return false }
        for position in 0..<count { absorb(port.completed(at: position)) }
        pluginInFlight -= count
        stats.add(.plugin_requests, UInt64(count))
        port.removeCompleted(count)
        pumpWaiters()
        return true
    }

    /// Goes on with lists of which a part waits for a free plugin request.
    @inline(__always)
    private mutating func pumpWaiters() {
        while !subWaiters.isEmpty, freeSubs.count > 0, let list = subWaiters.popFirst() { pump(list) }
    }

    @inline(__always)
    private mutating func absorb(_ sub: Int32) {
        let request = unsafe port.address(of: sub)
        let status = unsafe request.pointee.status
        let list = unsafe request.pointee.list
        unsafe request.pointee.state = PluginRequestState.host
        freeSubs.push(sub)
        complete(list, status)
    }

    /// One part of a list's phase ended with `status`.
    @inline(__always)
    private mutating func complete(_ list: Int32, _ status: Int32) {
        if status != 0 { recordFailure(list, status) }
        lists[Int(list)].outstanding &-= 1
        if lists[Int(list)].outstanding == 0 && lists[Int(list)].progress >= lists[Int(list)].length {
            phaseCompleted(list)
        }
    }

    @inline(never)
    private mutating func recordFailure(_ list: Int32, _ status: Int32) {
        stats.add(.plugin_errors)
        if lists[Int(list)].failure == 0 { lists[Int(list)].failure = status }
    }

    /// Fails a request that the plugin would not take.
    mutating func refuseReady(_ status: Int32) {
        guard let sub = ready.popFirst() else { return }
        let list = unsafe port.address(of: sub).pointee.list
        freeSubs.push(sub)
        complete(list, status)
        // No completion will come that could do this: the plugin has nothing.
        pumpWaiters()
    }
}
