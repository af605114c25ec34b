// SPDX-License-Identifier: BSD-2-Clause
// What is set for a disk: in xbb.conf, over that by its node, over that by `xbbctl set`.
import Base
import BlockQueue
import CLinux
import Settings
import Support
import Xen

extension ServedDisk {
    /// Changes settings by their names, here and for successors: all of them or, where one is wrong or they do not go
    /// together, none. Nil if it worked, else what is wrong.
    func change(_ wanted: [(name: String, value: String)]) -> String? {
        do throws(OperationError) {
            var changes = changes
            for change in wanted {
                let setting = try SettingsSchema.changing(change.name)
                changes[setting] = try setting.parse(change.value)
            }
            try adopt(changes, ownSettings)
        } catch {
            return error.description
        }
        area?.store(
            changes: SettingsSchema.changing.compactMap { setting in
                changes[setting].map { (setting.name, $0.description) }
            })
        return nil
    }

    /// Sets what was set in the process before. Limits are checked with the node's, which is read later.
    func setAgain(_ wanted: [(name: String, value: String)]) {
        for change in wanted {
            do throws(OperationError) {
                let setting = try SettingsSchema.changing(change.name)
                changes[setting] = try setting.parse(change.value)
            } catch {
                log.warning("not set again: \(error)")
            }
        }
        tunables = Tunables(SettingsSchema.withoutLimits(changes).over(options.tunables.values))
    }

    /// Takes what the disk's node says of it: of `options`, those that are settings. Throws what is wrong with them.
    func take(options found: [String: String]) throws(OperationError) {
        let own = try SettingsSchema.settings(among: found)
        do throws(OperationError) {
            try adopt(changes, own)
        } catch {
            // xbb.conf may have others than it had when these were set.
            let rest = SettingsSchema.withoutLimits(changes)
            if rest == changes { throw error }
            try adopt(rest, own)
            log.warning("limits are not set again: \(error)")
        }
    }

    private func adopt(_ changes: SettingValues, _ own: SettingValues) throws(OperationError) {
        let values = changes.over(SettingsSchema.layered(own, over: options.tunables.values))
        try SettingsSchema.checkLimits(values)
        self.changes = changes
        ownSettings = own
        tunables = Tunables(values)
    }

    // MARK: Queues

    /// Passes on what can be changed.
    func tune(_ queue: QueueThread<Platform>) {
        queue.setTuning(tuning)
    }

    /// What the queues run with.
    var tuning: QueueTuning {
        var tuning = tunables.tuning
        tuning.limiter = limiter
        return tuning
    }

    // MARK: Limits

    /// Makes buckets for the limits: empty ones let a burst through first, full ones do not.
    func renewLimiter(full: Bool) {
        let limits = tunables.limits
        guard limits.isSet else { return limiter = nil }
        let now = clinux_monotonic_ns()
        // The process before may have been corrupted: a disk does not stand still for longer than this on its word.
        let debt = full ? min(area?.limitDebt ?? 0, now &+ 60_000_000_000) : 0
        limiter = DiskLimiter(limits, queueCount: mostQueues, full: full, debtUntil: debt, now: now)
    }

    /// Requests that wait on the rings for the limits.
    var throttledRequests: Int { limiter?.waitingRequests(now: clinux_monotonic_ns()) ?? 0 }
}
