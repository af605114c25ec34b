// SPDX-License-Identifier: BSD-2-Clause
// The plugin requests of a queue: free, ready to be offered, or with the plugin.
import PluginAPI
import PluginHost
import PluginPort

/// The pool of a queue's plugin requests. A request is known by its index in the port's pool.
package struct PluginSide: ~Copyable {
    let port: CompletionPort
    /// Plugin requests that may be in flight.
    let depthLimit: Int
    /// The most of a read or write, and of a discard, in bytes.
    let maxTransfer: UInt64
    let maxDiscard: UInt64
    /// The most of a request to write zeroes, in bytes; 0 where the plugin has none.
    let maxWriteZeroes: UInt64
    /// The most vectors of a request.
    let mostVectors: Int
    private var free: IndexStack
    /// Requests that wait to be offered.
    private(set) var ready: IndexQueue
    /// Lists of which a part waits for a free request.
    private var waiters: IndexQueue
    /// Requests that the plugin has.
    private(set) var inFlight = 0
    /// The most that is offered in one call; see ``setStep(unanswered:)``.
    private var step = Int.max
    /// After the last offer, the plugin had something left to complete.
    private var completesLater = false
    /// The least that is offered in one call where there is more.
    private static var leastStep: Int { 4 }

    /// The pool of `port`, for at most `listCount` lists at a time.
    init(port: CompletionPort, device: DeviceInfo, listCount: Int) {
        self.port = port
        depthLimit = min(device.queueDepth ?? port.requestCount, port.requestCount)
        maxTransfer = device.maxTransfer
        maxDiscard = device.maxDiscard
        maxWriteZeroes = device.capabilities.contains(.writeZeroes) ? device.maxWriteZeroes : 0
        mostVectors = min(device.maxVectors ?? PluginRequestPointer.mostVectors, PluginRequestPointer.mostVectors)
        free = IndexStack(full: port.requestCount)
        ready = IndexQueue(capacity: port.requestCount)
        waiters = IndexQueue(capacity: listCount)
    }

    /// Requests that are free.
    var freeCount: Int { free.count }
    /// Lists that wait for a free request.
    var waiterCount: Int { waiters.count }

    // MARK: Building requests

    /// A free request, or nil.
    @inline(__always)
    mutating func takeIfFree() -> Int32? { free.pop() }

    /// A free request; where there is none, the list is told by ``nextWaiter()`` when there is one again.
    @inline(__always)
    mutating func take(for list: Int32) -> Int32? {
        if let request = free.pop() { return request }
        waiters.append(list)
        return nil
    }

    /// A list that may go on to build requests; nil where none waits or no request is free.
    @inline(__always)
    mutating func nextWaiter() -> Int32? { free.count > 0 ? waiters.popFirst() : nil }

    /// Lets a request be offered.
    @inline(__always)
    mutating func makeReady(_ request: Int32) { ready.append(request) }

    // MARK: Offering

    /// Requests that can be offered now, the first ones of ``ready``.
    @inline(__always)
    var offerable: Int { min(ready.count, depthLimit &- inFlight, step) }

    /// Decides how much the next call offers, of `unanswered` lists on their way.
    ///
    /// A plugin that gives requests to a device gets at most half of them at once. Given all, a fast device has finished all
    /// when the call returns, and stands idle while all are copied, answered and asked again; with halves it works on the
    /// one while this thread is busy with the other. A plugin that completes in place is no faster for it.
    @inline(__always)
    mutating func setStep(unanswered: Int) {
        step = completesLater ? max((unanswered &+ 1) >> 1, Self.leastStep) : Int.max
    }

    /// Requests were offered: looks whether the plugin completed them in the call.
    @inline(__always)
    mutating func submitted() { completesLater = inFlight > port.localCount }

    /// The first `count` of ``ready`` are being offered: they are the plugin's.
    @inline(__always)
    mutating func offer(_ count: Int, _ body: (_ position: Int, _ request: Int32, PluginRequestPointer) -> Void) {
        for position in 0..<count {
            let request = ready[position]
            let pointer = port.request(request)
            pointer.setState(PluginRequestState.plugin)
            body(position, request, pointer)
        }
        ready.removeFirst(count)
        inFlight &+= count
    }

    /// A request that was offered and not taken waits again; false if the plugin has completed it nevertheless.
    ///
    /// Call it for the last one first, so that the order stays.
    mutating func takeBack(_ request: Int32) -> Bool {
        guard port.takeBack(request) else { return false }
        ready.prepend(request)
        inFlight -= 1
        return true
    }

    /// The first request that waits, which becomes free; its list. nil where none waits.
    mutating func dropReady() -> Int32? {
        guard let request = ready.popFirst() else { return nil }
        let list = port.request(request).list
        free.push(request)
        return list
    }

    // MARK: Completions

    /// Completions that can be taken now, those of other threads among them.
    @inline(__always)
    mutating func beginAbsorbing() -> Int {
        port.takeRemote()
        return port.localCount
    }

    /// A completion by its position: the request is free again.
    @inline(__always)
    mutating func absorb(_ position: Int) -> (list: Int32, status: Int32) {
        let request = port.completed(at: position)
        let pointer = port.request(request)
        let result = (pointer.list, pointer.status)
        pointer.setState(PluginRequestState.host)
        free.push(request)
        return result
    }

    /// `count` completions were taken.
    @inline(__always)
    mutating func endAbsorbing(_ count: Int) {
        inFlight &-= count
        port.removeCompleted(count)
    }
}
