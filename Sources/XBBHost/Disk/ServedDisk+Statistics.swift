// SPDX-License-Identifier: BSD-2-Clause
// What was counted and changed for a disk, and what its storage could not do.
import BlockQueue
import Base
import Settings
import Support
import Xen

extension ServedDisk {
    /// The file for statistics; nil where there is none to be had.
    static func openArea(_ path: String?, _ log: Log) -> StatisticsArea? {
        guard let path else { return nil }
        do throws(OperationError) {
            return try StatisticsArea(path: path)
        } catch {
            log.warning("\(error); counters and what xbbctl sets end with this process")
            return nil
        }
    }

    /// Goes on with the statistics called `identity`, or begins at zero; the number that new ones are called by is to be
    /// published for a successor. Before the first frontend is served.
    func openStatistics(_ identity: UInt64?) -> UInt64? {
        guard let area else { return nil }
        do throws(OperationError) {
            if let identity, identity != 0 {
                do throws(OperationError) {
                    try area.adopt(identity: identity)
                    statistics = (0..<area.queueCount).map(area.queue)
                    for change in area.changes {
                        if let problem = apply(change.name, change.value) { log.warning("not set again: \(problem)") }
                    }
                    return nil
                } catch {
                    log.warning("\(error); they begin at zero")
                }
            }
            let made = UInt64.random(in: 1...UInt64.max)
            try area.begin(identity: made)
            return made
        } catch {
            log.warning("\(error); counters and what xbbctl sets end with this process")
            return nil
        }
    }

    /// Changes a setting by its name, here and for successors; nil if it worked, else what is wrong.
    func change(_ name: String, _ value: String) -> String? {
        if let problem = apply(name, value) { return problem }
        area?.store(
            changes: SettingsSchema.changing.compactMap { setting in
                changes[setting].map { (setting.name, $0.description) }
            })
        return nil
    }

    private func apply(_ name: String, _ value: String) -> String? {
        do throws(OperationError) {
            let setting = try SettingsSchema.changing(name)
            changes[setting] = try setting.parse(value)
        } catch {
            return error.description
        }
        var changed = tunables
        let problem = changed.set(name, value)
        tunables = changed
        return problem
    }

    // MARK: Errors of the storage

    /// How often each operation failed in each way.
    var storageErrors: [StorageErrorCount] {
        var sums: [StorageErrorCount] = []
        for entry in statistics.flatMap(\.errors) {
            if let index = sums.firstIndex(where: { $0.operation == entry.operation && $0.code == entry.code }) {
                sums[index].count &+= entry.count
            } else {
                sums.append(entry)
            }
        }
        return sums
    }

    /// The last error of all queues.
    var lastStorageError: StorageError? {
        statistics.compactMap(\.lastError).max { $0.time < $1.time }
    }

    // MARK: Requests that wait for space

    /// Requests that wait for space, or are being tried again.
    var heldRequests: Int { queues.reduce(0) { $0 + $1.heldRequests } }

    /// Tries again what waits for space; how many requests that are.
    func tryHeldAgain() -> Int {
        let held = heldRequests
        for queue in queues { queue.tryHeldAgain() }
        return held
    }
}
