// SPDX-License-Identifier: BSD-2-Clause
// A worker that is killed: data that was reported as durable must be there when the disk is opened again.
import CPluginHarness
import DiskEvents
import Glibc
import PluginAPI
import PluginHost
import Support

extension Check {
    static let crash = [
        Check(.crash, "flush", "after SIGKILL all writes are there that a flush, or no cache, made durable") {
            bench throws(Failure) in
            try bench.killedOften(withFUA: false)
        },
        Check(.crash, "fua", "after SIGKILL all writes are there that had FUA") { bench throws(Failure) in
            try bench.killedOften(withFUA: true)
        },
        .replay,
        Check(.crash, "successor", "after SIGKILL nothing of the dead process comes behind what its successor writes") {
            bench throws(Failure) in
            try bench.succeeded()
        },
    ]
}

/// Size in bytes and number of the blocks that are written before a kill.
let crashBlockBytes = 4096
let crashBlockCount = 64

/// Each sector of a block contains the block's number and the version of the write.
func crashContent(_ block: Int, _ version: UInt32) -> [UInt8] {
    var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: block), count: crashBlockBytes)
    for sector in stride(from: 0, to: crashBlockBytes, by: 512) {
        for byte in 0..<4 { bytes[sector + byte] = UInt8(truncatingIfNeeded: version >> (byte * 8)) }
    }
    return bytes
}

/// A write of a version of a block.
func crashWrite(_ block: Int, _ version: UInt32, flags: Int = 0) -> Request {
    let request = Request(XBB_OP_WRITE, UInt64(block * crashBlockBytes), crashBlockBytes, flags: flags)
    request.put(crashContent(block, version))
    return request
}

/// A read of a block.
func crashRead(_ block: Int) -> Request {
    Request(XBB_OP_READ, UInt64(block * crashBlockBytes), crashBlockBytes)
}

extension Bench {
    /// A disk of at least `bytes` bytes that can be written and outlives the process.
    func diskThatOutlives(_ bytes: Int) throws(Failure) -> (Disk, DeviceInfo) {
        let plugin = try plugin
        if plugin.library.hasNoFile, !plugin.library.isNetwork {
            throw .skip("the plugin has no file to keep data in")
        }
        let disk = try disk()
        let info = try info(disk)
        try require(info.capabilities.contains(.write), skipping: "the disk cannot be written")
        try require(info.size >= UInt64(bytes), skipping: "the disk is too small")
        return (disk, info)
    }

    fileprivate func killedOften(withFUA: Bool) throws(Failure) {
        let rounds = subject.isQuick ? 2 : 20
        var count = 0
        for seed in 0..<UInt64(rounds) { count += try killed(seed: seed, withFUA: withFUA) }
        note("\(count) acknowledgements before \(rounds) times SIGKILL")
    }

    /// Returns how many writes were reported as durable.
    private func killed(seed: UInt64, withFUA: Bool) throws(Failure) -> Int {
        at("a process that writes and is killed, round \(seed)")
        var durable = [UInt32](repeating: 0, count: crashBlockCount)
        var count = 0
        let enough = 50 + Int(seed) * 23
        try inCopy { progress throws(Failure) in
            try write(to: progress, seed: seed, withFUA: withFUA)
        } watch: { copy, progress in
            var report: [UInt32] = [0, 0]
            while unsafe read(progress, &report, 8) == 8 {
                if Int(report[0]) < crashBlockCount { durable[Int(report[0])] = report[1] }
                count += 1
                if count == enough { kill(copy, SIGKILL) }
            }
        }
        // The copy ends by itself if there is nothing to check or something failed; it has reported that.
        if count < enough { _exit(0) }
        try verify(durable, withFUA: withFUA, seed: seed)
        return count
    }

    /// Writes until it is killed, and reports what is durable.
    private func write(to progress: Int32, seed: UInt64, withFUA: Bool) throws(Failure) {
        let (disk, info) = try diskThatOutlives(crashBlockBytes * crashBlockCount)
        try require(!withFUA || info.capabilities.contains(.fua), skipping: "the plugin does not say FUA")
        let hasCache = info.capabilities.contains(.flush)
        let queue = try queue(disk)
        var random = SplitMix64(seed: seed)
        var pending: [(Int, UInt32)] = []
        for version in UInt32(1)... {
            let block = random.less(crashBlockCount)
            let isDurable = !hasCache || withFUA && random.less(2) == 0
            let flags = withFUA && isDurable && hasCache ? XBB_REQ_FUA : 0
            try perform(crashWrite(block, version, flags: flags), on: queue)
            pending.append((block, version))
            if !isDurable, withFUA || pending.count < 8 {
                if withFUA { pending.removeAll() }
                continue
            }
            if hasCache, !withFUA {
                let flush = Request(XBB_OP_FLUSH, 0, 0)
                try perform(flush, on: queue)
            }
            for (block, version) in pending {
                let report = [UInt32(block), version]
                if unsafe Glibc.write(progress, report, 8) != 8 { return }
            }
            pending.removeAll()
        }
    }

    private func verify(_ durable: [UInt32], withFUA: Bool, seed: UInt64) throws(Failure) {
        try inNextProcess { queue throws(Failure) in
            for (block, version) in durable.enumerated() where version > 0 {
                let request = crashRead(block)
                try perform(request, on: queue)
                let bytes = request.bytes
                for sector in stride(from: 0, to: crashBlockBytes, by: 512) {
                    let found = (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[sector + $1]) << ($1 * 8) }
                    if found >= version { continue }
                    let how = withFUA ? "a WRITE with FUA" : "a WRITE and what makes it durable"
                    throw Failure(
                        "\(how) of \(crashBlockBytes) bytes at \(block * crashBlockBytes) was acknowledged and is gone after "
                            + "SIGKILL: found version \(found) of \(version) (round \(seed))")
                }
            }
        }
    }

    /// Opens the disk after a kill, in another new process, as a new worker would, and calls `body` there.
    ///
    /// `isAfterDeath`: as one that finds what the dead one kept. Where its start() says that the storage was not reached
    /// (-ENOTCONN) another one follows it, as xbbd does it; the 30th one's failure is the check's.
    func inNextProcess(isAfterDeath: Bool = false, _ body: (Queue) throws(Failure) -> Void) throws(Failure) {
        var followers = isAfterDeath ? 29 : 0
        while true {
            let status = try inCopy { _ throws(Failure) in
                let disk = try disk(isAfterDeath: isAfterDeath, followers: followers)
                let queue = try queue(disk)
                try body(queue)
                close(disk, [queue])
            }
            guard status == WorkerStatus.storageGone << 8 else {
                return try require(
                    status == 0,
                    "the disk cannot be opened and read after SIGKILL: the process ended with status \(status)")
            }
            followers -= 1
            // What this one kept is there for the next one.
            harness_kept_files()
            usleep(100_000)
        }
    }

    /// The disk; where its storage was not reached and `followers` processes may come behind this one, it ends as a worker does.
    private func disk(isAfterDeath: Bool, followers: Int) throws(Failure) -> Disk {
        do throws(Failure) {
            return try disk(isAfterDeath: isAfterDeath)
        } catch {
            if error.code == -ENOTCONN, followers > 0 { _exit(WorkerStatus.storageGone) }
            throw error
        }
    }
}
