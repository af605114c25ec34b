// SPDX-License-Identifier: BSD-2-Clause
// The loop of a queue's thread: turns of the engine, and sleep between them.
import Base
import Blkif
import CLinux
import CRing
import Memory
import PluginHost
import Xen

/// What a queue's thread does outside of turns, beside what turns have done.
protocol LoopEffects: QueueEffects {
    /// The last call of Xen that failed, once.
    func takeFailure() -> OperationError?
    /// True if the plugin can be asked for completions without a system call.
    var canPoll: Bool { get }
    /// Takes the event that made the channel's descriptor readable; true if there was one. The channel is masked then.
    func takeEvent() -> Bool
    /// Lets events come again.
    func unmask()
    /// Asks the plugin to finish what it has in hand.
    func cancel()
}

/// The loop of a queue's thread, one turn at a time.
///
/// It does not know the platform: a generic loop would look up the type of its effects in every turn.
struct QueueLoop: ~Copyable {
    private var engine: QueueEngine
    private let effects: any LoopEffects
    private let events: PluginEvents
    private var poll = PollRule()
    private var turnsSinceEvents = 0
    /// How much longer the ring is read, once the connection is ending.
    private var drain: Drain?

    init(engine: consuming QueueEngine, effects: any LoopEffects, events: PluginEvents) {
        self.engine = engine
        self.effects = effects
        self.events = events
    }

    /// Ends the loop: the plugin's queue is closed with it.
    consuming func finish() {}

    // MARK: Reports

    var overflow: RingOverflow? { engine.overflow }
    /// Draining was asked for, and nothing is on its way.
    var isDrained: Bool { engine.isDraining && (engine.isEmpty || engine.leavesOnlyHeld) }
    /// Requests that wait for space, or are being tried again.
    var heldRequests: Int { engine.hold.isActive ? engine.heldRequests : 0 }
    /// Requests that have no answer: once the loop has ended, those that are left to a successor.
    var leftRequests: Int { engine.requests.count - engine.freeRequests.count }
    /// Requests are not to be taken, and nothing is on its way. What waits for space waits on: it is not tried again before
    /// the pause ends.
    var isAtRest: Bool { engine.isHeld && (engine.isEmpty || engine.hasOnlyHeld) }

    /// The last rule that the frontend broke, once.
    mutating func takeFault() -> GuestFault? {
        if engine.fault == nil { return nil }
        defer { engine.fault = nil }
        return engine.fault
    }

    /// The last error of the storage and how many there were, once.
    mutating func takeStorageFailure() -> (last: StorageFailure, count: UInt64)? {
        if engine.failure == nil { return nil }
        defer { engine.failure = nil }
        return engine.failure
    }

    /// A request that was answered with an error because it made processes crash, once.
    mutating func takePoison() -> BlockRequest? {
        if engine.replaying.poison == nil { return nil }
        defer { engine.replaying.poison = nil }
        return engine.replaying.poison
    }

    /// True once, when the requests of an earlier process are on their way or done.
    mutating func takeReplayed() -> Bool {
        defer { engine.replaying.isDone = false }
        return engine.replaying.isDone
    }

    /// The last call of Xen that failed, once.
    mutating func takeXenError() -> OperationError? { effects.takeFailure() }

    // MARK: Turns

    mutating func apply(
        tuning: QueueTuning, offered: OfferedFeatures, mayTake: Bool, triesHeld: Bool, drain rule: DrainRule?
    ) {
        let wasHolding = engine.tuning.holdsWithoutSpace
        engine.tuning = tuning
        engine.disk = offered
        engine.isHeld = !mayTake
        engine.now = clinux_monotonic_ns()
        // Other limits, or none.
        engine.endThrottle()
        if triesHeld || (wasHolding && !tuning.holdsWithoutSpace) { engine.tryHeldAgain() }
        if let rule, drain == nil {
            drain = Drain(rule, now: engine.now)
            engine.endHolding(rule.held)
            // What a successor takes stays on the ring.
            if rule.quiet != nil { engine.endThrottleForDrain() }
        }
        // Nobody waits for a queue that takes nothing to take more.
        if drain != nil && !mayTake { engine.isDraining = true }
        poll.longest = tuning.pollNanoseconds
        poll.percent = tuning.pollPercent
    }

    /// Asks the plugin to hurry.
    func cancel() { effects.cancel() }

    /// Looks whether a turn may have something to do.
    mutating func mayWork() -> Bool {
        engine.now = clinux_monotonic_ns()
        return drain != nil || !engine.isEmpty || !engine.replays.isEmpty || engine.ring.hasNewRequests
    }

    /// One way around. False if there was nothing to do.
    ///
    /// Never inlined: `make count` counts the instructions of this function and of all that it calls.
    @inline(never)
    mutating func turn() -> Bool {
        engine.now = clinux_monotonic_ns()
        let worked = careForEvents(engine.turn(effects))
        if worked { poll.end(now: engine.now) }
        if drain != nil { advanceDrain(worked) }
        return worked
    }

    /// Stops reading the ring when the drain's rule is met.
    @inline(never)
    private mutating func advanceDrain(_ worked: Bool) {
        let isBusy =
            worked || !engine.isEmpty || engine.isThrottled
            || (engine.mayLookAtRing && engine.ring.hasNewRequests)
        if drain?.isOver(isBusy: isBusy, now: engine.now) == true { engine.isDraining = true }
    }

    /// Sends the frontend an event. To one that an earlier process left: the event of its last responses may be lost.
    mutating func notify() {
        engine.stats.add(.notifications_sent)
        effects.notify()
    }

    /// While the queue is busy, looks now and then at descriptors and timers of a plugin that cannot be polled.
    private mutating func careForEvents(_ worked: Bool) -> Bool {
        if !worked { return false }
        turnsSinceEvents += 1
        if turnsSinceEvents < 16 { return true }
        turnsSinceEvents = 0
        if events.needsCare { _ = events.runDue(now: engine.now) }
        if engine.plugin.inFlight > 0 && !effects.canPoll { takeEvents(events.wait(timeout: 0)) }
        return true
    }

    private mutating func takeEvents(_ channelIsReady: Bool) {
        if channelIsReady && effects.takeEvent() { engine.stats.add(.events_received) }
    }

    // MARK: Sleep

    /// Sleeps until there is something to do; `mustStay` is asked a last time before.
    mutating func sleep(unless mustStay: () -> Bool) {
        if events.runDue(now: engine.now) { return }
        if spin() { return }
        if engine.mayLookAtRing {
            if engine.ring.finalCheck() { return }
            // The ring is empty and the frontend knows that we want an event: now it may come.
            effects.unmask()
        }
        guard engine.plugin.port.prepareToSleep() else { return }
        if mustStay() || isDrained {
            engine.plugin.port.awoke()
            return
        }
        engine.stats.add(.sleeps)
        let ready = events.wait(timeout: timeout())
        engine.plugin.port.awoke()
        takeEvents(ready)
        turnsSinceEvents = 0
    }

    private func timeout() -> Int32 {
        var timeout = events.timeout(now: engine.now)
        if engine.stalledSince != nil { timeout = timeout < 0 ? 5 : min(timeout, 5) }
        if engine.retriesHeld {
            let pause = engine.hold.retryAt > engine.now ? engine.hold.retryAt - engine.now : 0
            let left = Int32(clamping: pause / 1_000_000 + 1)
            timeout = timeout < 0 ? left : min(timeout, left)
        }
        if engine.isThrottled {
            let left = Int32(clamping: (engine.throttle.until - engine.now) / 1_000_000 + 1)
            timeout = timeout < 0 ? left : min(timeout, left)
        }
        if let drain, !engine.isDraining {
            let left = drain.milliseconds(now: engine.now)
            timeout = timeout < 0 ? left : min(timeout, left)
        }
        return timeout
    }

    /// Looks for work for a while, without asking the frontend for events; true if there is some.
    private mutating func spin() -> Bool {
        let time = poll.begin(now: engine.now)
        if time == 0 { return false }
        let start = clinux_monotonic_ns()
        var now = start
        repeat {
            if engine.mayLookAtRing && engine.ring.hasNewRequests { return true }
            if engine.plugin.port.hasRemote { return true }
            if engine.plugin.inFlight > 0 && effects.poll() { return true }
            cring_cpu_pause()
            now = clinux_monotonic_ns()
        } while now &- start < time
        poll.wasInVain(now &- start)
        return false
    }
}
