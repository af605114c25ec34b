// SPDX-License-Identifier: BSD-2-Clause
// xbb-blkfront load: a load generator that can verify what it reads.
import ArgumentParser
import Blkfront
import XenLoopback

struct Load: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Runs a load and prints rates and latencies.",
        discussion: """
            Without --time and --count, one pass over the region. With --verify, every block that is written says \
            where it belongs and how often it was written; what is read is checked against that, and all is read \
            back at the end. Requests that overlap are not in flight together then. A pattern that only reads is \
            preceded by a pass of writes. With --verify history they overlap: what is read is checked against all \
            that the backend has acknowledged. It takes --rw randrw and --bs 512-N, N at most the size of a request, and uses the first \
            512 KiB of the disk, or as much as --size says.
            """)

    @OptionGroup var deviceArguments: DeviceArguments

    @Option(help: "\(LoadPattern.allCases.map(\.rawValue).joined(separator: ", ")).")
    var rw = LoadPattern.randread

    @Option(help: "Size of an operation, or a range: 4k, 4k-256k.")
    var bs = SizeRange(low: 4096, high: 4096)

    @Option(help: "Operations in flight for each queue.")
    var depth = 1

    @Option(help: "Where the region begins.")
    var offset = Size(bytes: 0)

    @Option(help: "Length of the region; the rest of the disk by default.")
    var size: Size?

    @Option(help: "Seconds; may have a fraction.")
    var time: Double?

    @Option(help: "Number of operations.")
    var count: UInt64?

    @Option(help: "Share of reads in randrw, in percent.")
    var rwmixread = 50

    @Option(help: "Verify what is read: \(Verification.allCases.map(\.rawValue).joined(separator: ", ")).")
    var verify: Verification?

    @Option(help: "A flush after so many writes.")
    var flushEvery = 0

    @Option(help: "About one of so many writes is a barrier.")
    var barrierEvery = 0

    @Option(help: "About one of so many operations is a discard.")
    var discardEvery = 0

    @Option(help: "Sector of its first page at which data begin, 0 to 7.")
    var skew = 0

    @Option(help: "Looks at the ring before sleeping.")
    var spins = 0

    @Option(help: "Seed of the random numbers.")
    var seed: UInt64 = 1

    @Option(help: "Report pauses of so many milliseconds or more without any answer.")
    var pauses: Double?

    @Option(help: "Milliseconds without any answer after which the run fails.")
    var stallTimeout = 60_000

    private var plan: LoadPlan {
        var plan = LoadPlan()
        plan.pattern = rw
        plan.blockSize = bs.low
        plan.maxBlockSize = bs.high
        plan.depth = depth
        plan.offset = offset.bytes
        plan.size = size?.bytes
        plan.duration = time.map { UInt64(max(0, min($0, 1e9)) * 1e9) }
        plan.count = count
        plan.readPercent = rwmixread
        plan.verify = verify == .crc32c
        plan.flushEvery = flushEvery
        plan.barrierEvery = barrierEvery
        plan.discardEvery = discardEvery
        plan.skew = skew
        plan.spins = spins
        plan.seed = seed
        plan.pauseThreshold = pauses.map { UInt64(max(0, min($0, 1e9)) * 1e6) }
        plan.stallTimeout = stallTimeout
        return plan
    }

    /// The same plan for overlapping requests.
    private var historyPlan: HistoryPlan {
        let plan = plan
        var history = HistoryPlan()
        history.sectors = plan.size.map { Int(clamping: $0 / 512) } ?? history.sectors
        history.mostSectors = plan.maxBlockSize / 512
        history.depth = plan.depth
        history.count = plan.count.map { Int(clamping: $0) } ?? (plan.duration == nil ? history.count : .max - 1)
        history.duration = plan.duration
        history.readPercent = plan.readPercent
        history.flushEvery = plan.flushEvery
        history.barrierEvery = plan.barrierEvery
        history.discardEvery = plan.discardEvery
        history.startsUnknown = true
        history.pauseThreshold = plan.pauseThreshold
        history.stallTimeout = plan.stallTimeout
        history.seed = plan.seed
        return history
    }

    func validate() throws {
        if let complaint = plan.complaint { throw ValidationError(complaint) }
        guard verify == .history else { return }
        guard rw == .randrw, bs.low == 512, bs.high <= deviceArguments.mostBytes else {
            throw ValidationError(
                "--verify history takes --rw randrw and --bs 512-N, N at most \(deviceArguments.mostBytes)")
        }
        guard offset.bytes == 0, skew == 0, spins == 0 else {
            throw ValidationError("--verify history takes no --offset, --skew or --spins")
        }
    }

    func run() throws {
        let report: LoadReport
        let device: FrontDevice
        var connected: FrontDevice?
        do {
            let perOperation = (bs.high + FrontQueue.directSize - 1) / FrontQueue.directSize + 1
            device = try deviceArguments.device(requestsPerQueue: max(1, depth * perOperation))
            try device.connect()
            connected = device
            if verify == .history {
                var run = try HistoryRun(device, historyPlan)
                report = run.report()
            } else {
                report = try LoadRun(device, plan).run()
            }
        } catch {
            // A disk that was refused is given back: its backend would wait for a frontend that is gone.
            try? connected?.close()
            throw fail("\(error)")
        }
        print(deviceArguments.json ? report.json.serialized : report.text)
        if let failure = report.failure {
            try? device.close()
            throw fail("\(failure)")
        }
        do {
            try device.close()
        } catch {
            throw fail("\(error)")
        }
        if !report.isGood { throw fail("the backend refused operations; see the report") }
    }
}

/// The words of --verify.
enum Verification: String, ExpressibleByArgument, CaseIterable {
    case crc32c, history
}

/// A number of bytes: 4096, 4k, 1M, 2G.
struct Size: ExpressibleByArgument {
    let bytes: UInt64

    init(bytes: UInt64) {
        self.bytes = bytes
    }

    init?(argument: String) {
        let shifts: [Character: UInt64] = ["k": 10, "K": 10, "m": 20, "M": 20, "g": 30, "G": 30, "t": 40, "T": 40]
        let shift = argument.last.flatMap { shifts[$0] }
        guard let number = UInt64(shift == nil ? argument : String(argument.dropLast())) else { return nil }
        let (bytes, overflow) = number.multipliedReportingOverflow(by: 1 << (shift ?? 0))
        if overflow { return nil }
        self.bytes = bytes
    }

    var defaultValueDescription: String { String(bytes) }
}

/// One size, or two with '-' between them.
struct SizeRange: ExpressibleByArgument {
    let low: Int
    let high: Int

    init(low: Int, high: Int) {
        self.low = low
        self.high = high
    }

    init?(argument: String) {
        let parts = argument.split(separator: "-", omittingEmptySubsequences: false)
        guard let first = parts.first, let low = Size(argument: String(first)), parts.count <= 2 else { return nil }
        guard let last = parts.last, let high = Size(argument: String(last)) else { return nil }
        guard low.bytes <= 1 << 30, high.bytes <= 1 << 30 else { return nil }
        (self.low, self.high) = (Int(low.bytes), Int(high.bytes))
    }

    var defaultValueDescription: String { low == high ? String(low) : "\(low)-\(high)" }
}
