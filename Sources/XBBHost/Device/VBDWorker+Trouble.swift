// SPDX-License-Identifier: BSD-2-Clause
// Telling operators what the storage cannot do: in the log, in XenStore, and to a successor.
import BlockQueue
import Base
import CLinux
import Support
import Xen
import XenBus

extension VBDWorker {
    /// Goes on with the statistics of the process before, once; of a new disk they begin at zero.
    func resumeStatistics() {
        if hasStatistics { return }
        hasStatistics = true
        // What the process before published may be over.
        trouble.publishAt = clinux_monotonic_ns() &+ DiskTrouble.publishInterval
        do throws(OperationError) {
            if let identity = disk.openStatistics(try nodes.readStatistics()) {
                try nodes.publish(statistics: identity)
            }
        } catch {
            log.warning("\(error); counters and what xbbctl sets end with this process")
        }
    }

    /// A queue has logged an error of the storage: not more often than the limit of such lines allows.
    func storageFailed() {
        guard let last = disk.lastStorageError else { return }
        if last.operation == .flush { disk.device?.forgetToldError() }
        report("the storage failed: \(last.text)")
        events.emit(
            .error,
            [
                ("operation", .string("\(last.operation)")), ("errno", .string(OperationError.errnoName(last.code))),
                ("sector", .integer(last.firstSector)), ("sectors", .integer(last.sectorCount)),
                ("count", .integer(disk.storageErrors.reduce(0) { $0 &+ $1.count })), ("text", .string(last.text)),
            ])
        trouble.summaryAt = clinux_monotonic_ns() &+ DiskTrouble.summaryInterval
        publishTrouble()
    }

    /// More or fewer requests wait for space than before.
    func holdChanged() {
        let held = disk.heldRequests
        if trouble.take(held: held) {
            if held > 0 {
                events.emit(.error, [("text", .string("stopped: no space: \(held) requests of the guest wait"))])
                log.warning(
                    "stopped: no space: requests of the guest wait and are tried again every 5 s, and by 'xbbctl resume'"
                )
            } else {
                log.info("goes on: no request waits for space any more")
            }
        }
        publishTrouble()
    }

    /// The guest waits for storage that cannot be opened yet.
    func storageAwaited(_ reason: String) {
        // It may be open by now.
        guard case .opening = machine.stage else { return }
        let text =
            "\(reason): the guest waits until it can be opened; 'xbbctl swap' gives the disk another image, and "
            + "'xbbctl detach --force' takes it away"
        log.warning(text)
        (trouble.awaited, problem) = (text, text)
        events.emit(.error, [("text", .string(text))])
        publishTrouble()
    }

    /// A plugin has logged something while the guest waits for its start().
    func startTroubled(_ text: String) {
        // It may be over by now.
        guard case .opening = machine.stage else { return }
        (trouble.awaited, problem) = (text, text)
        events.emit(.error, [("text", .string(text))])
        publishTrouble()
    }

    /// The storage is open, or is not waited for any more.
    func endStorageWait() {
        guard trouble.awaited != nil else { return }
        trouble.awaited = nil
        publishTrouble()
    }

    /// Does what is due.
    func careForTrouble() {
        let now = clinux_monotonic_ns()
        if now >= trouble.summaryAt {
            let unlogged = disk.errorLimit.takeUnlogged()
            trouble.summaryAt = unlogged > 0 ? now &+ DiskTrouble.summaryInterval : .max
            if unlogged > 0 {
                let counts = disk.storageErrors.map {
                    "\($0.operation) \($0.code == 0 ? "other" : OperationError.errnoName($0.code)) \($0.count)"
                }
                log.error(
                    "\(unlogged) more errors of the storage were not logged; all: \(counts.joined(separator: ", "))")
            }
            publishTrouble()
        }
        if now >= trouble.publishAt, now >= trouble.mayPublishAt {
            trouble.mayPublishAt = now &+ DiskTrouble.publishInterval
            let text = trouble.text(of: disk)
            // What the process before published is true until the storage is open.
            if text == nil, !trouble.isPublished, case .opening = machine.stage {
                trouble.publishAt = trouble.mayPublishAt
                return
            }
            (trouble.publishAt, trouble.isPublished) = (.max, true)
            do throws(OperationError) {
                if !nodes.isLost { try nodes.publish(BackendKey.trouble, text) }
            } catch {
                log.warning(error.description)
            }
        }
    }

    /// Says in XenStore what is wrong, when that may be.
    func publishTrouble() {
        trouble.publishAt = max(clinux_monotonic_ns(), trouble.mayPublishAt)
    }
}
