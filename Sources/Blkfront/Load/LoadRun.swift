// SPDX-License-Identifier: BSD-2-Clause
// A load on all queues of a device.
import CLinux
import Synchronization

/// Runs a ``LoadPlan`` on a connected device: one thread for each queue, each on its own part of the disk.
///
/// Nobody else may use the device's queues during the run.
public struct LoadRun {
    private let device: FrontDevice
    private let plan: LoadPlan

    /// A run of `plan`. Throws if it is impossible on this device.
    public init(_ device: FrontDevice, _ plan: LoadPlan) throws(BlkfrontError) {
        if let complaint = plan.complaint { throw .invalid(complaint) }
        guard device.state == .connected, !device.queues.isEmpty else {
            throw .invalid("the device is not connected")
        }
        guard plan.blockSize % device.info.sectorUnit == 0 else {
            throw .invalid("the block size must be a multiple of the disk's sectors of \(device.info.sectorUnit) bytes")
        }
        if plan.pattern.writes && device.info.readOnly { throw .invalid("the disk is read-only") }
        self.device = device
        self.plan = plan
        let region = region
        guard region.blocks >= UInt64(device.queues.count) * UInt64(plan.maxBlockSize / plan.blockSize) else {
            throw .invalid("the region of \(region.blocks) blocks is too small")
        }
    }

    private var region: (base: UInt64, blocks: UInt64) {
        let size = device.info.byteCount
        let base = min(plan.offset, size)
        let bytes = min(plan.size ?? .max, size - base)
        return (base, bytes / UInt64(plan.blockSize))
    }

    struct Outcome: ~Copyable, Sendable {
        var counters = LoadCounters()
        var report = LoadReport()
    }

    /// Runs until the plan ends or something fails. Blocks; the report tells which.
    ///
    /// The calling thread watches XenStore: a backend that wants to close ends the run.
    public func run() -> LoadReport {
        let shared = Shared(stop: LoadStop(duration: plan.duration), workers: device.queues.count)
        let (base, blocks) = region
        let share = blocks / UInt64(device.queues.count)
        var threads: [FrontThread] = []
        for (index, box) in device.queues.enumerated() {
            let (plan, info, count) = (plan, device.info, device.queues.count)
            do throws(BlkfrontError) {
                threads.append(
                    try FrontThread(name: "load-q\(index)") {
                        let share = LoadShare(
                            index: index, count: count,
                            base: base + UInt64(index) * share * UInt64(plan.blockSize), blocks: share)
                        Self.work(plan, share, info, box, shared)
                    })
            } catch {
                shared.fail(.device(error))
                shared.end()
            }
        }
        watchStore(until: shared)
        for thread in threads { thread.join() }
        return shared.outcome.withLock { outcome in
            outcome.report.connection = ConnectionReport(device)
            outcome.report.finish(outcome.counters, nanoseconds: shared.stop.elapsed)
            return outcome.report
        }
    }

    private static func work(
        _ plan: LoadPlan, _ share: LoadShare, _ info: BackendInfo, _ box: FrontQueueBox, _ shared: Shared
    ) {
        var worker = LoadWorker(
            plan: plan, share: share, slotCount: box.slotCount, bufferSize: box.bufferSize, info: info)
        let (notifications, publications, indirect) = box.withQueue { queue -> (UInt64, UInt64, UInt64) in
            let before = (queue.notifications, queue.publications, queue.indirectRequests)
            do throws(LoadFailure) {
                try worker.run(&queue, stop: shared.stop)
            } catch {
                shared.fail(error)
            }
            return (
                queue.notifications - before.0, queue.publications - before.1, queue.indirectRequests - before.2
            )
        }
        shared.outcome.withLock { outcome in
            outcome.counters.add(worker.counters)
            outcome.report.verifiedBlocks += worker.verifiedBlocks
            outcome.report.pauses += worker.longPauses
            outcome.report.notifications += notifications
            outcome.report.publications += publications
            outcome.report.indirectRequests += indirect
        }
        shared.end()
    }

    private func watchStore(until shared: Shared) {
        var items = [
            pollfd(fd: device.store.watchFileDescriptor, events: Int16(POLLIN), revents: 0),
            pollfd(fd: shared.done, events: Int16(POLLIN), revents: 0),
        ]
        while shared.running.load(ordering: .acquiring) > 0 {
            _ = unsafe poll(&items, nfds_t(items.count), -1)
            do throws(BlkfrontError) {
                for event in try device.handleStoreEvents() {
                    if case .backendCloses(let state) = event {
                        shared.fail(.device(device.health.end(.closed("the backend went to state \(state)"))))
                    }
                }
            } catch {
                shared.fail(.device(device.health.end(error)))
                return
            }
        }
    }

    /// State that the workers share with the thread that waits for them.
    private final class Shared: Sendable {
        let stop: LoadStop
        let outcome = Mutex(Outcome())
        let running: Atomic<Int>
        let done: Int32

        init(stop: LoadStop, workers: Int) {
            self.stop = stop
            running = Atomic(workers)
            done = makeEvent()
        }

        deinit { close(done) }

        func fail(_ failure: LoadFailure) {
            outcome.withLock { outcome in
                if outcome.report.failure == nil { outcome.report.failure = failure }
            }
            stop.set()
        }

        func end() {
            if running.subtract(1, ordering: .acquiringAndReleasing).newValue == 0 { _ = eventfd_write(done, 1) }
        }
    }
}
