// SPDX-License-Identifier: BSD-2-Clause
// A network plugin whose process is killed with writes on their way: its successor, which has what it kept, waits until none of
// them can come any more (`XBB_OPEN_AFTER_DEATH`).
import CPluginHarness
import Glibc
import PluginAPI
import PluginHost

extension Bench {
    func succeeded() throws(Failure) {
        try require(harness_keep_files() == 0, "cannot make a socket: error \(errno)")
        let rounds = subject.isQuick ? 3 : 20
        var (versions, kept) = (0, 0)
        for round in 0..<rounds {
            versions += try killedWhileItWrites(round)
            kept = Int(harness_kept_files())
            try takeOver(UInt32(round))
        }
        note("\(rounds) times SIGKILL, behind \(versions) writes; \(kept) files kept")
    }

    /// Returns how many writes were completed before.
    private func killedWhileItWrites(_ round: Int) throws(Failure) -> Int {
        at("a process that writes and is killed, round \(round)")
        let enough = 20 + round * 7
        var count = 0
        try inCopy { progress throws(Failure) in
            try writeForEver(to: progress)
        } watch: { copy, progress in
            var byte: UInt8 = 0
            while unsafe read(progress, &byte, 1) == 1 {
                count += 1
                if count == enough { kill(copy, SIGKILL) }
            }
        }
        // The copy ends by itself if there is nothing to check or something failed; it has reported that.
        if count < enough { _exit(0) }
        return count
    }

    /// Writes all blocks at once, again and again.
    private func writeForEver(to progress: Int32) throws(Failure) {
        guard try plugin.library.isNetwork, try plugin.library.hasNoFile else {
            throw .skip("the plugin is none of the network: crash.flush looks at what a kill leaves of its files")
        }
        let (disk, _) = try diskThatOutlives(crashBlockBytes * crashBlockCount)
        let queue = try queue(disk)
        while true {
            let requests = (0..<crashBlockCount).map { crashWrite($0, .max) }
            var (next, told) = (0, 0)
            while told < requests.count {
                if next < requests.count { next += queue.submit(Array(requests[next...])) }
                _ = queue.run(milliseconds: 1)
                let done = requests[..<next].count(where: \.isDone)
                for _ in told..<max(told, done) {
                    var byte: UInt8 = 0
                    if unsafe write(progress, &byte, 1) != 1 { return }
                }
                told = max(told, done)
            }
        }
    }

    /// Writes to each block in the next process, and looks a while later whether it still has that.
    private func takeOver(_ version: UInt32) throws(Failure) {
        at("the successor of a process that was killed while it wrote, round \(version)")
        try inNextProcess(isAfterDeath: true) { queue throws(Failure) in
            let writes = (0..<crashBlockCount).map { crashWrite($0, version) }
            try performAll(writes, on: queue)
            queue.idle(milliseconds: 500)
            let reads = (0..<crashBlockCount).map { crashRead($0) }
            try performAll(reads, on: queue)
            for (block, request) in reads.enumerated() {
                try require(
                    request.bytes == crashContent(block, version),
                    "a write of a process that was killed came behind one of its successor, at \(block * crashBlockBytes): "
                        + "with XBB_OPEN_AFTER_DEATH wait until the storage has done, or never does, what that process sent "
                        + "(host->keep())")
            }
        }
    }
}
