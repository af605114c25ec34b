// SPDX-License-Identifier: BSD-2-Clause
// The load generator: what it does, what it finds, and how it ends.
import Blkif
import CLinux
import Glibc
import Testing
import XenLoopback

@testable import Blkfront

@Suite struct LoadRunTests {
    private func load(
        settings: ToySettings = ToySettings(), options: (inout FrontOptions) -> Void = { _ in },
        _ plan: (inout LoadPlan) -> Void
    ) throws -> (report: LoadReport, counts: MemoryDisk.Counts) {
        let lab = try DeviceLab()
        let host = try lab.host(settings: settings)
        let device = try lab.device(options)
        try device.connect()
        var made = LoadPlan()
        plan(&made)
        let report = try LoadRun(device, made).run()
        if report.failure == nil { try device.close() } else { try? device.close() }
        let counts = host.disk.counts
        try lab.stop()
        return (report, counts)
    }

    @Test(arguments: LoadPattern.allCases)
    func onePassWithoutEnd(pattern: LoadPattern) throws {
        let (report, counts) = try load {
            $0.pattern = pattern
            $0.depth = 8
        }
        #expect(report.isGood, "\(report.text)")
        #expect(counts.reads + counts.writes == 1024)
        #expect((counts.reads > 0) == (pattern != .write && pattern != .randwrite))
        #expect((counts.writes > 0) == pattern.writes)
        let total = report.operations.reduce(0) { $0 + $1.bytes }
        #expect(total == 4 << 20)
    }

    @Test(arguments: [1, 4], [(4096, 4096), (4096, 262_144), (512, 65536), (40960, 122_880)])
    func verificationPassesOnADiskThatIsRight(queues: Int, sizes: (Int, Int)) throws {
        for pattern in LoadPattern.allCases {
            let (report, counts) = try load(options: { $0.queues = queues }) {
                $0.pattern = pattern
                $0.blockSize = sizes.0
                $0.maxBlockSize = sizes.1
                $0.depth = 8
                $0.count = 200
                $0.verify = true
                $0.flushEvery = 10
                $0.barrierEvery = 10
                $0.discardEvery = 10
                $0.skew = queues == 1 ? 0 : 3
                $0.seed = 42
            }
            #expect(report.isGood, "\(pattern): \(report.text)")
            #expect(report.verifiedBlocks > 0)
            #expect(!pattern.writes || counts.flushes > 0)
            #expect(counts.refused == 0)
            let operations = report.operations.filter { $0.name != "flush" }.reduce(0) { $0 + $1.count }
            #expect(operations == 200, "\(pattern): \(report.text)")
        }
    }

    @Test func aDiskThatForgetsOrChangesIsFound() throws {
        let lab = try DeviceLab()
        let host = try lab.host()
        let device = try lab.device()
        try device.connect()
        var plan = LoadPlan()
        plan.pattern = .randrw
        plan.verify = true
        plan.depth = 4
        plan.duration = 20_000_000_000
        // Somebody else changes one byte of the disk again and again.
        let disk = host.disk
        let vandal = try FrontThread(name: "vandal") {
            for round in 0..<1000 {
                usleep(1000)
                disk.store([0xee], at: (round * 4096 + 2000) % (4 << 20))
            }
        }
        let report = try LoadRun(device, plan).run()
        vandal.join()
        guard case .verify(.checksum(let offset, _, _)) = report.failure else {
            Issue.record("\(report.text)")
            return
        }
        #expect(offset % 4096 == 0)
        #expect(report.text.contains("verification failed") && report.json.serialized.contains("\"ok\":false"))
        try device.close()
        try lab.stop()
    }

    @Test(arguments: [Mischief.wrongOperation, .keepsGrantMapped, .paddingAtEnd])
    func aFaultOfTheBackendEndsTheRun(mischief: Mischief) throws {
        var settings = ToySettings()
        settings.mischief = mischief
        settings.mischiefAt = 50
        let (report, _) = try load(settings: settings) { $0.depth = 8 }
        guard case .device(.dead) = report.failure else {
            Issue.record("\(report.text)")
            return
        }
    }

    @Test func errorsOfTheDiskAreCounted() throws {
        var settings = ToySettings()
        settings.mischief = .fails(.error)
        settings.mischiefAt = 50
        let (report, _) = try load(settings: settings) {
            $0.pattern = .write
            $0.verify = true
        }
        #expect(report.failure == nil && !report.isGood)
        #expect(report.operation("write")?.errors == 1 && report.operation("write")?.count == 1023)
    }

    @Test func silenceEndsTheRun() throws {
        var settings = ToySettings()
        settings.mischief = .neverNotifies
        let (report, _) = try load(settings: settings) { $0.stallTimeout = 300 }
        guard case .device(.timeout) = report.failure else {
            Issue.record("\(report.text)")
            return
        }
    }

    @Test func aBackendThatClosesEndsTheRun() throws {
        let lab = try DeviceLab()
        let host = try lab.host()
        let device = try lab.device { $0.queues = 2 }
        try device.connect()
        var plan = LoadPlan()
        plan.duration = 60_000_000_000
        let closer = try FrontThread(name: "closer") {
            usleep(50_000)
            try? host.asToolstack { try $0.write("\(host.back)/state", "5") }
        }
        let report = try LoadRun(device, plan).run()
        closer.join()
        guard case .device(.closed) = report.failure else {
            Issue.record("\(report.text)")
            return
        }
        try device.close()
        try lab.stop()
    }

    @Test func whatCannotBeRunIsRefused() throws {
        let lab = try DeviceLab()
        var settings = ToySettings()
        settings.keys["info"] = "4"
        _ = try lab.host(settings: settings)
        let device = try lab.device()
        #expect(throws: BlkfrontError.self) { try LoadRun(device, LoadPlan()) }
        try device.connect()
        var plan = LoadPlan()
        plan.pattern = .write
        #expect(throws: BlkfrontError.invalid("the disk is read-only")) { try LoadRun(device, plan) }
        plan.pattern = .read
        plan.offset = 8192 * 512
        #expect(throws: BlkfrontError.self) { try LoadRun(device, plan) }
        try device.close()
        try lab.stop()
    }

    @Test(arguments: [1, 32], [false, true])
    func theBenchFrontendCountsEveryAnswer(depth: Int, scattered: Bool) throws {
        let lab = try QueueLab()
        let disk = MemoryDisk(sectors: 4096)
        let frame = try lab.domain.allocateFrames(1)
        let ringReference = try lab.domain.grantAccess(to: 0, frame: frame, readOnly: false)
        let data = try lab.domain.allocateFrames(depth)
        let references = try (0..<UInt32(depth)).map {
            try lab.domain.grantAccess(to: 0, frame: data + $0, readOnly: false)
        }
        let port = try lab.domain.allocatePort(for: 0)
        let ring = FrontRing(initializing: lab.domain.pages(at: frame), abi: .native, startIndex: 0xffff_ff00)
        let backend = try TestBackend(
            lab.xen.platform(), domain: lab.domain.id, references: [ringReference], port: port.number, abi: .native,
            disk: disk)
        var bench = BenchFrontend(
            ring: ring, references: references, depth: depth, pages: 512, scattered: scattered)
        for _ in 0..<3 {
            let result = try bench.run(
                responses: 1000, notify: { try? port.notify() }, wait: { _ = port.wait(milliseconds: 1000) })
            #expect(result.responses == 1000 && result.errors == 0)
            #expect(result.notifications <= result.publications)
        }
        #expect(disk.counts.reads == 3000)
        try backend.stop()
        try lab.stop()
    }
}
