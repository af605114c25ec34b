// SPDX-License-Identifier: BSD-2-Clause
// A disk over the whole path: blocking and non-blocking operations, resize, and every way to end.
import Blkfront
import CLinux
import Glibc
import Synchronization
import Testing
import XenBus
import XenLoopback

@Suite struct FrontDiskTests {
    /// Collects what a disk reports.
    private final class Events: Sendable {
        let all = Mutex<[FrontEvent]>([])

        func wait(for event: FrontEvent) -> Bool {
            for _ in 0..<5000 {
                if all.withLock({ $0.contains(event) }) { return true }
                usleep(2000)
            }
            return false
        }
    }

    @Test(arguments: [1, 3])
    func everyOperation(queues: Int) throws {
        let lab = try DeviceLab()
        let host = try lab.host()
        let device = try lab.device { $0.queues = queues }
        try device.connect()
        let disk = try FrontDisk(device, skew: queues == 1 ? 0 : 5)
        #expect(disk.byteCount == 8192 * 512 && disk.sectorSize == 512)
        let bytes = (0..<300_032).map { UInt8(truncatingIfNeeded: $0 / 7) }
        try disk.write(bytes, at: 512 * 3)
        #expect(try disk.read(at: 512 * 3, count: bytes.count) == bytes)
        #expect(host.disk.bytes(at: 512 * 3, count: bytes.count) == bytes)
        try disk.write(Array(repeating: 9, count: 1024), at: 0, barrier: true)
        try disk.flush()
        try disk.writeZeroes(at: 4096, count: 200_192)
        #expect(host.disk.bytes(at: 4096, count: 200_192).allSatisfy { $0 == 0 })
        try disk.discard(at: 0, count: 8192 * 512)
        #expect(try disk.read(at: 0, count: 1024) == Array(repeating: 0, count: 1024))
        #expect(host.disk.counts.flushes == 1 && host.disk.counts.discards == 1 && host.disk.counts.barriers == 1)
        #expect(try disk.read(at: 0, count: 0) == [])
        #expect(throws: BlkfrontError.self) { try disk.read(at: 1, count: 512) }
        #expect(throws: BlkfrontError.self) { try disk.read(at: 0, count: 100) }
        #expect(throws: BlkfrontError.failed(status: -1)) { try disk.read(at: 8192 * 512, count: 512) }
        try disk.close()
        #expect(throws: BlkfrontError.self) { try disk.flush() }
        try disk.close()
        #expect(try lab.report().grantedReferences == 0)
        try lab.stop()
    }

    @Test func operationsThatReturnAtOnce() throws {
        let lab = try DeviceLab()
        _ = try lab.host()
        let device = try lab.device()
        try device.connect()
        let disk = try FrontDisk(device)
        let called = Atomic<Int>(0)
        var operations: [FrontIO] = []
        for number in 0..<64 {
            operations.append(
                try disk.startWrite([UInt8](repeating: UInt8(number), count: 65536), at: UInt64(number) * 65536) { _ in
                    called.add(1, ordering: .relaxed)
                })
        }
        for io in operations { try io.wait() }
        #expect(called.load(ordering: .relaxed) == 64)
        let reads = try (0..<64).map { try disk.startRead(at: UInt64($0) * 65536, count: 65536) }
        for (number, io) in reads.enumerated() {
            try io.wait()
            #expect(io.bytes.allSatisfy { $0 == UInt8(number) })
        }
        try disk.startFlush().wait()
        try disk.startDiscard(at: 0, count: 4096).wait()
        try disk.close()
        try lab.stop()
    }

    @Test func aNewSizeIsSeen() throws {
        let lab = try DeviceLab()
        let host = try lab.host()
        let device = try lab.device()
        try device.connect()
        let events = Events()
        let disk = try FrontDisk(device) { event in events.all.withLock { $0.append(event) } }
        try host.resize(sectors: 10_000)
        #expect(events.wait(for: .resized(5_120_000)))
        #expect(disk.byteCount == 5_120_000)
        try disk.close()
        try lab.stop()
    }

    @Test(arguments: [XenbusState.closing, .closed])
    func theBackendMayClose(state: XenbusState) throws {
        let lab = try DeviceLab()
        let host = try lab.host()
        let device = try lab.device()
        try device.connect()
        let events = Events()
        let disk = try FrontDisk(device) { event in events.all.withLock { $0.append(event) } }
        try disk.write([UInt8](repeating: 1, count: 4096), at: 0)
        try host.asToolstack { try $0.write("\(host.back)/state", String(state.rawValue)) }
        #expect(events.wait(for: .backendCloses(state)))
        #expect(throws: BlkfrontError.self) { try disk.read(at: 0, count: 512) }
        #expect(device.state == .closed)
        try lab.stop()
    }

    @Test func theToolstackMayRemoveEverything() throws {
        let lab = try DeviceLab()
        let host = try lab.host()
        let device = try lab.device()
        try device.connect()
        let events = Events()
        let disk = try FrontDisk(device) { event in events.all.withLock { $0.append(event) } }
        try host.asToolstack {
            try $0.remove(host.front, in: .none)
            try $0.remove(host.back, in: .none)
        }
        #expect(events.wait(for: .backendCloses(.unknown)))
        #expect(disk.failure != nil)
        // A node that was removed does not come back to life.
        #expect(try host.asToolstack { try $0.text("\(host.front)/state") } == nil)
        try lab.stop()
    }

    @Test func withoutAnAnswerTheDeviceEnds() throws {
        for mischief in [Mischief.neverAnswers, .neverNotifies] {
            let lab = try DeviceLab()
            var settings = ToySettings()
            settings.mischief = mischief
            _ = try lab.host(settings: settings)
            let device = try lab.device()
            try device.connect()
            let disk = try FrontDisk(device, ioTimeout: 100)
            // A response that is there before the thread sleeps is seen without an event, and rightly.
            var failure: BlkfrontError?
            for _ in 0..<1000 where failure == nil {
                do { _ = try disk.read(at: 0, count: 4096) } catch { failure = error }
            }
            guard case .timeout = failure else {
                Issue.record("\(mischief): \(String(describing: failure))")
                continue
            }
            #expect(throws: BlkfrontError.self) { try disk.read(at: 0, count: 4096) }
            try disk.close()
            #expect(try lab.report().grantedReferences == 0)
            try lab.stop()
        }
    }

    @Test func aFaultOfTheBackendEndsTheDiskAndIsToldAtTheEnd() throws {
        let lab = try DeviceLab()
        var settings = ToySettings()
        settings.mischief = .keepsGrantMapped
        settings.mischiefAt = 2
        _ = try lab.host(settings: settings)
        let device = try lab.device()
        try device.connect()
        let disk = try FrontDisk(device)
        var failure: BlkfrontError?
        for _ in 0..<5 where failure == nil {
            do { _ = try disk.read(at: 0, count: 4096) } catch { failure = error }
        }
        guard case .dead(.grantInUse) = failure else {
            Issue.record("\(String(describing: failure))")
            return
        }
        #expect(throws: BlkfrontError.self) { try disk.close() }
        try lab.stop()
    }
}
