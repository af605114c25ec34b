// SPDX-License-Identifier: BSD-2-Clause
// The order of a turn, and what it needs done outside of the engine.
import Blkif
import Glibc
import Memory
import Xen

/// What a turn has done for it: by Xen and a plugin in a queue's thread, by fakes in tests.
///
/// Each is called at most once in a turn, whatever number of requests that is. An existential, not a generic parameter: the
/// modules that know the platform are others, so that a generic turn would look up types at run time.
protocol QueueEffects: AnyObject {
    /// Does the copies of the batch, which is not empty. False if none was tried.
    func copy(_ data: inout DataPlane) -> Bool
    /// Offers what is ready to the plugin.
    func submit(_ side: inout PluginSide) -> Submission
    /// Lets the plugin reap its completions, where that takes no system call; true if there were any.
    func poll() -> Bool
    /// Sends the frontend an event.
    func notify()
    /// All of a turn is done but for the frontend, which sees the answers next. For checks; changes nothing.
    func willPublish(_ engine: inout QueueEngine)
}

extension QueueEngine {
    /// How long a plugin may take nothing, with nothing in flight, before its requests fail: 10 s, in ns.
    static var stallLimit: UInt64 { 10_000_000_000 }

    /// One way around: completions, ring, copies, plugin, responses. False if there was nothing to do.
    ///
    /// ``now`` is set before. What was answered is published once, with at most one event.
    mutating func turn(_ effects: any QueueEffects) -> Bool {
        ring.holdOffEvents()
        if hold.isActive { careForHeld() }
        var worked = absorbCompletions()
        if worked { KillPoint.reach(.completed) }
        if locksBlocks && meetPeers() { worked = true }
        if takeRequests() {
            worked = true
            KillPoint.reach(.taken)
            if collectFetches() {
                let isCopied = effects.copy(&data)
                KillPoint.reach(.fetched)
                fetched(succeeded: isCopied)
            }
        }
        // What needs no copy goes first: the storage works on it while this thread copies.
        if plugin.offerable > 0 && submit(effects) { worked = true }
        if collectCopies() {
            worked = true
            copiesDone(succeeded: effects.copy(&data))
            KillPoint.reach(.copied)
            if plugin.offerable > 0 && submit(effects) { worked = true }
        }
        publish(effects)
        if plugin.inFlight > 0 && effects.poll() { worked = true }
        if plugin.port.localCount > 0 { worked = true }
        return worked
    }

    /// Offers what is ready; true if the plugin took any of it, or was given up.
    @inline(__always)
    mutating func submit(_ effects: any QueueEffects) -> Bool {
        plugin.setStep(unanswered: listsInFlight)
        let submission = effects.submit(&plugin)
        plugin.submitted()
        KillPoint.reach(.submitted)
        if submission.offered == 0 { return false }
        if submission.taken == submission.offered && submission.violations == 0 {
            stalledSince = nil
            return true
        }
        return refused(submission)
    }

    /// The plugin did not take all that it was offered.
    @inline(never)
    private mutating func refused(_ submission: Submission) -> Bool {
        stats.add(.plugin_violations, UInt64(submission.violations))
        if submission.taken < submission.offered { stats.add(.plugin_busy) }
        if submission.taken > 0 {
            stalledSince = nil
            return true
        }
        if plugin.inFlight > 0 { return false }
        guard let since = stalledSince else {
            stalledSince = now
            return false
        }
        if now &- since > Self.stallLimit {
            while !plugin.ready.isEmpty { refuseReady(-EIO) }
            stalledSince = nil
            return true
        }
        return false
    }

    /// Shows the frontend what was answered.
    @inline(__always)
    mutating func publish(_ effects: any QueueEffects) {
        if unpublished == 0 { return }
        stats.add(.reqs_queued_for_completion, unpublished)
        stats.add(.reqs_completed, unpublished)
        unpublished = 0
        effects.willPublish(&self)
        KillPoint.reach(.answered)
        let wantsEvent = ring.publish()
        KillPoint.reach(.published)
        releaseAnswered()
        KillPoint.reach(.released)
        if wantsEvent {
            stats.add(.notifications_sent)
            effects.notify()
        }
    }
}
