// SPDX-License-Identifier: BSD-2-Clause
// The effects between the engine's steps: grant copies, the plugin's submit, events, sleep.
import PluginHost
import Base
import Blkif
import CLinux
import CRing
import Glibc
import Memory
import PluginAPI
import Xen

/// The loop of a queue's thread, one turn at a time.
struct QueueLoop<Platform: XenPlatform>: ~Copyable {
    private var engine: QueueEngine
    private var queue: PluginQueue
    private let events: PluginEvents
    private let grants: Platform.Grants
    private let channels: Platform.Events
    private let channel: EventPort
    /// The event channel is masked: an event was taken and not acknowledged yet.
    private var isMasked = false
    private var pollNanoseconds: UInt64 = 0
    private var turnsSinceEvents = 0
    /// When the plugin began to take nothing although it has nothing, in ns; nil while it works.
    private var stalledSince: UInt64?
    private var xenError: OperationError?

    /// How long a plugin may take nothing, with nothing in flight, before its requests fail: 10 s.
    private static var stallLimit: UInt64 { 10_000_000_000 }

    init(
        engine: consuming QueueEngine, queue: consuming PluginQueue, events: PluginEvents, grants: Platform.Grants,
        channels: Platform.Events, channel: EventPort
    ) {
        self.engine = engine
        self.queue = queue
        self.events = events
        self.grants = grants
        self.channels = channels
        self.channel = channel
    }

    /// Ends the loop: the plugin's queue is closed with it.
    consuming func finish() {}

    var overflow: RingOverflow? { engine.overflow }
    /// Draining was asked for, and nothing is on its way.
    var isDrained: Bool { engine.isDraining && engine.isIdle && engine.pluginInFlight == 0 }
    /// Requests are not to be taken, and nothing is on its way.
    var isAtRest: Bool { engine.isHeld && engine.isIdle && engine.pluginInFlight == 0 }

    mutating func takeFault() -> GuestFault? {
        if engine.fault == nil { return nil }
        defer { engine.fault = nil }
        return engine.fault
    }

    /// A request that was answered with an error because it made processes crash.
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

    mutating func takeXenError() -> OperationError? {
        if xenError == nil { return nil }
        defer { xenError = nil }
        return xenError
    }

    mutating func apply(
        tuning: QueueTuning, offered: OfferedFeatures, pollNanoseconds: UInt64, mayTake: Bool, drain: Bool
    ) {
        engine.tuning = tuning
        engine.disk = offered
        engine.isHeld = !mayTake
        engine.isDraining = engine.isDraining || drain
        self.pollNanoseconds = pollNanoseconds
    }

    /// One way around: completions, ring, copies, plugin, responses. False if there was nothing to do.
    mutating func turn() -> Bool {
        engine.now = clinux_monotonic_ns()
        engine.ring.holdOffEvents()
        var worked = engine.absorbCompletions()
        if worked { KillPoint.reach(.completed) }
        if engine.gather() {
            worked = true
            KillPoint.reach(.taken)
        }
        if engine.collectCopies() {
            worked = true
            copy()
            KillPoint.reach(.copied)
        }
        if submit() {
            worked = true
            KillPoint.reach(.submitted)
        }
        publish()
        if engine.pluginInFlight > 0 && queue.canPoll && queue.poll() { worked = true }
        if engine.port.localCount > 0 { worked = true }
        return careForEvents(worked)
    }

    private mutating func copy() {
        do throws(OperationError) {
            try grants.copy(&engine.copies)
            engine.copiesDone(succeeded: true)
        } catch {
            xenError = error
            engine.copiesDone(succeeded: false)
        }
    }

    private mutating func submit() -> Bool {
        guard let taken = queue.submit(&engine) else { return false }
        if taken > 0 {
            stalledSince = nil
            return true
        }
        if engine.pluginInFlight > 0 { return false }
        guard let since = stalledSince else {
            stalledSince = engine.now
            return false
        }
        if engine.now &- since > Self.stallLimit {
            while !engine.ready.isEmpty { engine.refuseReady(-EIO) }
            stalledSince = nil
            return true
        }
        return false
    }

    private mutating func publish() {
        if engine.unpublished == 0 { return }
        engine.stats.add(.reqs_queued_for_completion, engine.unpublished)
        engine.stats.add(.reqs_completed, engine.unpublished)
        engine.unpublished = 0
        KillPoint.reach(.answered)
        let wantsEvent = engine.ring.publish()
        KillPoint.reach(.published)
        engine.releaseAnswered()
        KillPoint.reach(.released)
        if wantsEvent { notify() }
    }

    /// Sends the frontend an event. To one that an earlier process left: the event of its last responses may be lost.
    mutating func notify() {
        engine.stats.add(.notifications_sent)
        do throws(OperationError) {
            try channels.notify(channel)
        } catch {
            xenError = error
        }
    }

    /// While the queue is busy, looks now and then at descriptors and timers of a plugin that cannot be polled.
    private mutating func careForEvents(_ worked: Bool) -> Bool {
        if !worked { return false }
        turnsSinceEvents += 1
        if turnsSinceEvents < 16 { return true }
        turnsSinceEvents = 0
        if events.needsCare { _ = events.runDue(now: engine.now) }
        if engine.pluginInFlight > 0 && !queue.canPoll { takeEvents(events.wait(timeout: 0)) }
        return true
    }

    private mutating func takeEvents(_ channelIsReady: Bool) {
        guard channelIsReady else { return }
        do throws(OperationError) {
            // The handle has this one channel, which is masked now: a second read would find nothing. If it did not, the
            // descriptor stays readable.
            guard try channels.takePending() != nil else { return }
            isMasked = true
            engine.stats.add(.events_received)
        } catch {
            xenError = error
        }
    }

    // MARK: Sleep

    /// Sleeps until there is something to do; `mustStay` is asked a last time before.
    mutating func sleep(unless mustStay: () -> Bool) {
        if events.runDue(now: engine.now) { return }
        if spin() { return }
        if engine.mayLookAtRing {
            if engine.ring.finalCheck() { return }
            // The ring is empty and the frontend knows that we want an event: now it may come.
            if isMasked {
                isMasked = false
                do throws(OperationError) { try channels.unmask(channel) } catch { xenError = error }
            }
        }
        guard engine.port.prepareToSleep() else { return }
        if mustStay() || (engine.isDraining && engine.isIdle && engine.pluginInFlight == 0) {
            engine.port.awoke()
            return
        }
        engine.stats.add(.sleeps)
        let ready = events.wait(timeout: timeout())
        engine.port.awoke()
        takeEvents(ready)
        turnsSinceEvents = 0
    }

    private func timeout() -> Int32 {
        let timers = events.timeout(now: engine.now)
        guard stalledSince != nil else { return timers }
        return timers < 0 ? 5 : min(timers, 5)
    }

    /// Looks for work for a while, without asking the frontend for events; true if there is some.
    private func spin() -> Bool {
        if pollNanoseconds == 0 { return false }
        let end = clinux_monotonic_ns() &+ pollNanoseconds
        repeat {
            if engine.mayLookAtRing && engine.ring.hasNewRequests { return true }
            if engine.port.hasRemote { return true }
            if engine.pluginInFlight > 0 && queue.canPoll && queue.poll() { return true }
            cring_cpu_pause()
        } while clinux_monotonic_ns() < end
        return false
    }
}
