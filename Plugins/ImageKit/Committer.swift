// SPDX-License-Identifier: BSD-2-Clause
// The thread that makes durable what many requests wait for. It sleeps while nothing is under way.
import CLinux
import ImageCore
import ImageWriting
import PluginKit
import Synchronization

/// The committer of an engine.
///
/// `@unchecked Sendable`: what changes is under the monitor.
package final class Committer: ThreadBody, @unchecked Sendable {
    private let engine: any CommittingEngine
    private let monitor = Monitor()
    /// Set while a wake-up is on its way: who needs the committer often signals once.
    private let isCalled = Atomic<Bool>(false)
    private var isStopping = false
    private var thread: PluginThread?

    /// What is freed waits so long for more of its kind, ns: a sync for each of a thousand discards would slow the disk. So long is
    /// also between two reads of tables for which nobody waits.
    private static let patience: UInt64 = 100_000_000

    /// Starts the thread.
    package init(_ engine: any CommittingEngine) throws(PluginError) {
        self.engine = engine
        thread = try PluginThread(self)
        engine.wakeCommitter { [unowned self] in call() }
    }

    /// Any thread.
    private func call() {
        if isCalled.exchange(true, ordering: .acquiringAndReleasing) { return }
        monitor.locked {}
        monitor.signal()
    }

    package func run() {
        while true {
            // Whoever calls from here on is seen by the next look.
            isCalled.store(false, ordering: .sequentiallyConsistent)
            switch engine.pending {
            case .now:
                engine.commit()
                continue
            case .later:
                sleep(Self.patience)
                if monitor.locked({ isStopping }) { return }
                engine.commit()
            case .nothing:
                sleep(nil)
                if monitor.locked({ isStopping }) { return }
            }
        }
    }

    /// Until somebody calls; with a time, only until it is over or there is something that does not wait.
    private func sleep(_ time: UInt64?) {
        let deadline = time.map { clinux_monotonic_ns() + $0 }
        monitor.lock()
        while !isStopping {
            // In one step: a call between a look and its reset would be lost.
            if isCalled.exchange(false, ordering: .sequentiallyConsistent), deadline == nil || engine.pending == .now {
                break
            }
            guard let deadline else {
                monitor.wait()
                continue
            }
            if clinux_monotonic_ns() >= deadline { break }
            monitor.wait(until: deadline)
        }
        monitor.unlock()
    }

    /// Ends the thread.
    package func stop() {
        monitor.locked { isStopping = true }
        monitor.broadcast()
        thread?.join()
        thread = nil
    }
}
