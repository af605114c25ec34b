// SPDX-License-Identifier: BSD-2-Clause
// The disk of xbb-delay: requests wait in a list until their time, and its thread performs them then.
//
// The data moves at the end of the delay, not at the start, so a host that takes a buffer back early is found out.
import CLinux
import Glibc
import PluginKit
import TestingKit

/// A request that waits. An array has no place for the request itself.
private final class Waiting {
    let queue: DelayQueue
    let id: RequestID
    /// Nanoseconds of CLOCK_MONOTONIC.
    var due: UInt64
    private var request: Request?

    init(_ request: consuming Request, of queue: DelayQueue, due: UInt64) {
        id = request.id
        self.request = consume request
        self.queue = queue
        self.due = due
    }

    func perform(in memory: MemoryDisk) {
        guard let request = request.take() else { return }
        let outcome = memory.perform(request)
        request.complete(outcome)
    }
}

/// A queue of a `DelayDevice`.
final class DelayQueue: CancellingQueue {
    private let device: DelayDevice

    init(_ device: DelayDevice) { self.device = device }

    func submit(_ batch: inout RequestBatch) { device.submit(&batch, of: self) }
    func cancel(_ request: RequestID?) { device.hurry(self, request) }
}

/// A disk in memory with one thread.
///
/// `@unchecked Sendable`: what changes is under the monitor, and the thread is the control calls' alone.
final class DelayDevice: DrainingDisk, CountingDisk, ThreadBody, @unchecked Sendable {
    private let memory: MemoryDisk
    private let delay: UInt64
    private let reorders: Bool
    private let hold: Int
    private let stuckAt: UInt64
    private let hurries: Bool
    private let monitor = Monitor()
    // Under the monitor:
    private var waiting: [Waiting] = []
    private var randomState: UInt64
    private var stopping = false
    private var isDraining = false
    private var (drains, cancels): (UInt64, UInt64) = (0, 0)
    private var thread: PluginThread?

    init(_ opening: Opening) throws(PluginError) {
        memory = try MemoryDisk(
            size: try opening[DelayOption.size], file: try opening[DelayOption.keep] ? opening.label : nil,
            block: try opening[DelayOption.block], queues: try opening[DelayOption.queues])
        delay = try opening[DelayOption.delay] * 1000
        reorders = try opening[DelayOption.reorder]
        hold = Int(clamping: try opening[DelayOption.hold])
        stuckAt = try opening[DelayOption.stuckAt]
        hurries = try opening[DelayOption.hurries]
        randomState = try opening[DelayOption.seed]
    }

    func start() throws(PluginError) { thread = try PluginThread(self) }

    func close() {
        monitor.locked { stopping = true }
        monitor.broadcast()
        thread?.join()
        thread = nil
    }

    var info: DiskInfo { memory.info }

    func openQueue(_ parameters: QueueParameters) -> DelayQueue { DelayQueue(self) }

    func submit(_ batch: inout RequestBatch, of queue: DelayQueue) {
        let now = clinux_monotonic_ns()
        monitor.lock()
        while let request = batch.next() {
            // The host has said that nothing comes.
            if isDraining {
                request.complete(.ioError)
                continue
            }
            let wait = reorders && delay > 0 ? random() % (2 * delay) : delay
            let isStuck = request.operation != .flush && request.offset == stuckAt
            waiting.append(Waiting(request, of: queue, due: now + (isStuck ? 600_000_000_000 : wait)))
        }
        if hold > 0, waiting.count >= hold { for entry in waiting { entry.due = now } }
        monitor.unlock()
        monitor.signal()
    }

    /// What waits of a queue, or one request of it, is due now.
    func hurry(_ queue: DelayQueue, _ request: RequestID?) {
        monitor.lock()
        cancels += 1
        for entry in waiting where hurries && entry.queue === queue && (request == nil || entry.id == request) {
            entry.due = 0
        }
        monitor.unlock()
        monitor.signal()
    }

    func beginDrain() {
        monitor.locked {
            isDraining = true
            drains += 1
        }
    }

    func endDrain() { monitor.locked { isDraining = false } }

    var statistics: [(StaticString, UInt64)] {
        let (drains, cancels) = monitor.locked { (self.drains, self.cancels) }
        return [("drains", drains), ("cancels", cancels)]
    }

    func run() {
        monitor.lock()
        while !stopping || !waiting.isEmpty {
            let now = clinux_monotonic_ns()
            var due = waiting.filter { $0.due <= now }
            if !due.isEmpty {
                waiting.removeAll { $0.due <= now }
                if reorders { shuffle(&due) }
                monitor.unlock()
                for entry in due { entry.perform(in: memory) }
                monitor.lock()
            } else if let next = waiting.map(\.due).min() {
                monitor.wait(until: next)
            } else {
                monitor.wait()
            }
        }
        monitor.unlock()
    }

    /// SplitMix64.
    private func random() -> UInt64 {
        randomState &+= 0x9e37_79b9_7f4a_7c15
        var z = randomState
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    private func shuffle(_ list: inout [Waiting]) {
        guard list.count > 1 else { return }
        for index in 1..<list.count { list.swapAt(index, Int(random() % UInt64(index + 1))) }
    }
}
