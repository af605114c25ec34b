// SPDX-License-Identifier: BSD-2-Clause
// What a turn of the engine has done by Xen and by a plugin.
import Base
import Memory
import PluginHost
import Xen

/// The effects of a queue's thread: grant copies, the plugin's calls, the event channel.
///
/// Generic over the two types, not over the platform that they belong to: they would be looked up in it in every turn.
final class XenEffects<Grants: GrantTable, Events: EventChannels>: LoopEffects {
    private let queue: PluginQueue
    private let grants: Grants
    private let channels: Events
    private let channel: EventPort
    /// The event channel is masked: an event was taken and not acknowledged yet.
    private var isMasked = false
    /// The last call of Xen that failed and was not told yet.
    private var failure: OperationError?

    init(queue: consuming PluginQueue, grants: Grants, channels: Events, channel: EventPort) {
        self.queue = queue
        self.grants = grants
        self.channels = channels
        self.channel = channel
    }

    /// The last call of Xen that failed, once.
    func takeFailure() -> OperationError? {
        if failure == nil { return nil }
        defer { failure = nil }
        return failure
    }

    // MARK: In a turn

    func copy(_ data: inout DataPlane) -> Bool {
        do throws(OperationError) {
            try data.execute(on: grants)
            return true
        } catch {
            failure = error
            return false
        }
    }

    func submit(_ side: inout PluginSide) -> Submission { queue.submit(&side) }

    func cancel() { queue.cancel() }

    func poll() -> Bool { queue.canPoll && queue.poll() }

    func notify() {
        do throws(OperationError) {
            try channels.notify(channel)
        } catch {
            failure = error
        }
    }

    func willPublish(_ engine: inout QueueEngine) {}

    // MARK: Between turns

    /// True if the plugin can be asked for completions without a system call.
    var canPoll: Bool { queue.canPoll }

    /// Takes the event that made the channel's descriptor readable; true if there was one. The channel is masked then.
    func takeEvent() -> Bool {
        do throws(OperationError) {
            // The handle has this one channel, which is masked now: a second read would find nothing. If it did not, the
            // descriptor stays readable.
            guard try channels.takePending() != nil else { return false }
            isMasked = true
            return true
        } catch {
            failure = error
            return false
        }
    }

    /// Lets events come again.
    func unmask() {
        if !isMasked { return }
        isMasked = false
        do throws(OperationError) { try channels.unmask(channel) } catch { failure = error }
    }
}
