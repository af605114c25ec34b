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
                    startsThrottled = true
                    setAgain(area.changes)
                    renewLimiter(full: true)
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
