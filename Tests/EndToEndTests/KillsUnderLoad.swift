// SPDX-License-Identifier: BSD-2-Clause
// A guest's history of overlapping requests on a disk whose workers are killed and replaced at random.
import Blkfront
import CLinux
import Foundation
import TestSupport

/// What was done to the workers of a disk while a guest used it.
struct KillsUnderLoad {
    /// What the guest saw.
    let report: LoadReport
    private(set) var kills = 0
    private(set) var handOvers = 0

    /// A run on another thread.
    private final class HistoryBox: @unchecked Sendable {
        private var run: HistoryRun
        init(_ run: HistoryRun) { self.run = run }
        func report() -> LoadReport { run.report() }
    }

    /// Runs a history on the first `sectors` sectors of 512 bytes: 12,000 operations and 15 kills, or more until a worker died with requests in
    /// flight; with `XBB_LONG` a minute. `afterKill` is called between a kill, with its number, and the start of the next worker.
    init(
        _ disk: Disk, _ device: FrontDevice, sectors: Int, seed: UInt64, afterKill: (Int) throws -> Void = { _ in }
    ) throws {
        let isLong = ProcessInfo.processInfo.environment["XBB_LONG"] == "1"
        var random = SplitMix64(seed: seed)
        var plan = HistoryPlan()
        plan.sectors = sectors
        plan.duration = isLong ? 60_000_000_000 : nil
        plan.count = isLong ? .max - 1 : 12_000
        plan.barrierEvery = 0
        plan.startsUnknown = true
        plan.seed = random.next()
        let run = HistoryBox(try HistoryRun(device, plan))
        var (kills, handOvers) = (0, 0)
        var next = clinux_monotonic_ns() + 100_000_000
        // Requests are sent only where others were answered, so that this says whether a worker has come to anything.
        let sent = { device.queues.reduce(UInt64(0)) { $0 + $1.withQueue { $0.publications } } }
        var (before, isEarly) = (sent(), false)
        report = try inBackground({ run.report() }) {
            guard clinux_monotonic_ns() >= next, disk.worker.isRunning, isEarly || sent() > before else { return }
            guard isLong || kills < 15 || !disk.log.has("requests in flight") else { return }
            if random.onceIn(4) {
                disk.worker.signal(SIGTERM)
                _ = try disk.worker.awaitExit()
                handOvers += 1
                try disk.startWorker(["--predecessor", "handed-over"])
            } else {
                disk.worker.kill()
                kills += 1
                try afterKill(kills)
                try disk.startWorker(["--predecessor", "killed:signal 9"])
            }
            // Sometimes before the successor has come to anything, but not always: a start takes long on a busy machine.
            isEarly = !isEarly && random.onceIn(5)
            before = sent()
            let pause = isEarly ? random.below(10) : 30 + random.below(150)
            next = clinux_monotonic_ns() + UInt64(pause) * 1_000_000
        }
        (self.kills, self.handOvers) = (kills, handOvers)
    }
}
