// SPDX-License-Identifier: BSD-2-Clause
// Operations of many threads over one queue, without XenStore.
import Blkif
import Synchronization
import TestSupport
import Testing
import XenLoopback

@testable import Blkfront

@Suite struct DiskQueueTests {
    private func write(_ queue: DiskQueue, _ bytes: [UInt8], at offset: Int) -> FrontIO {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: bytes.count, alignment: 16)
        memory.initializeMemory(as: UInt8.self, from: bytes, count: bytes.count)
        let io = FrontIO(.write, offset: UInt64(offset), byteCount: UInt64(bytes.count), memory: .owned(memory))
        queue.submit(io)
        return io
    }

    private func read(_ queue: DiskQueue, at offset: Int, count: Int) -> FrontIO {
        let io = FrontIO(
            .read, offset: UInt64(offset), byteCount: UInt64(count),
            memory: .owned(.allocate(byteCount: count, alignment: 16)))
        queue.submit(io)
        return io
    }

    @Test(arguments: [(0, 1), (3, 1), (0, 32), (7, 5)])
    func lengthsBeyondARequestAreCutAndPutTogether(skew: Int, requests: Int) throws {
        let lab = try QueueLab()
        let disk = MemoryDisk(sectors: 8192)
        var options = FrontOptions()
        options.requestsPerQueue = requests
        let box = try lab.queue(disk, options: options)
        let queue = DiskQueue(box, health: lab.health, sectorUnit: 512, skew: skew)
        try queue.start()
        var random = SplitMix64(seed: UInt64(skew))
        var model = [UInt8](repeating: 0, count: 8192 * 512)
        for _ in 0..<60 {
            let count = 512 * (1 + Int(random.below(600)))
            let offset = 512 * Int(random.below(UInt64(8192 - count / 512)))
            let bytes = randomBytes(count, seed: random.next())
            try write(queue, bytes, at: offset).wait()
            model.replaceSubrange(offset..<offset + count, with: bytes)
            let from = 512 * Int(random.below(UInt64(8192 - count / 512)))
            let io = read(queue, at: from, count: count)
            try io.wait()
            #expect(io.bytes == Array(model[from..<from + count]))
        }
        #expect(disk.bytes(at: 0, count: model.count) == model)
        #expect(disk.counts.firstSectors == [UInt8(skew)])
        queue.stop()
        try lab.stop()
    }

    @Test func manyThreadsShareARing() throws {
        let lab = try QueueLab()
        let disk = MemoryDisk(sectors: 16 * 256)
        let box = try lab.queue(disk, mischief: .reversesOrder, at: -1)
        let queue = DiskQueue(box, health: lab.health, sectorUnit: 512, skew: 0)
        try queue.start()
        let failures = Atomic<Int>(0)
        let threads = try (0..<16).map { number in
            try FrontThread(name: "client") {
                var random = SplitMix64(seed: UInt64(number))
                let base = number * 256 * 512
                for round in 0..<200 {
                    let count = 4096 * (1 + Int(random.below(16)))
                    let offset = base + 4096 * Int(random.below(16))
                    let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: round + number), count: count)
                    do {
                        try self.write(queue, bytes, at: offset).wait()
                        let io = self.read(queue, at: offset, count: count)
                        try io.wait()
                        if io.bytes != bytes { failures.add(1, ordering: .relaxed) }
                    } catch {
                        failures.add(1, ordering: .relaxed)
                    }
                }
            }
        }
        for thread in threads { thread.join() }
        #expect(failures.load(ordering: .relaxed) == 0)
        #expect(queue.isIdle)
        queue.stop()
        try lab.stopBackends()
        #expect(box.dismantle().isEmpty)
        #expect(try lab.report().grantedReferences == 0)
        try lab.stop()
    }

    @Test func aFailedPartFailsTheOperationOnce() throws {
        let lab = try QueueLab()
        var options = FrontOptions()
        options.requestsPerQueue = 2
        let box = try lab.queue(MemoryDisk(sectors: 8192), options: options, mischief: .fails(.error), at: 3)
        let queue = DiskQueue(box, health: lab.health, sectorUnit: 512, skew: 0)
        try queue.start()
        let operations = (0..<4).map { _ in read(queue, at: 0, count: 1 << 20) }
        let failed = operations.filter { (try? $0.wait()) == nil }
        #expect(failed.count == 1)
        try read(queue, at: 0, count: 1 << 20).wait()
        queue.stop()
        try lab.stop()
    }

    @Test func theEndOfTheDeviceEndsAllOperations() throws {
        let lab = try QueueLab()
        var options = FrontOptions()
        options.requestsPerQueue = 4
        let box = try lab.queue(MemoryDisk(sectors: 8192), options: options, mischief: .wrongOperation, at: 30)
        let queue = DiskQueue(box, health: lab.health, sectorUnit: 512, skew: 0)
        try queue.start()
        let operations = (0..<10).map { _ in read(queue, at: 0, count: 1 << 20) }
        var dead = 0
        for io in operations {
            do throws(BlkfrontError) {
                try io.wait()
            } catch {
                #expect(error == lab.health.error)
                dead += 1
            }
        }
        #expect(dead == 9)
        let late = read(queue, at: 0, count: 512)
        #expect(throws: BlkfrontError.self) { try late.wait() }
        queue.stop()
        try lab.stop()
    }

    @Test func stoppingFailsWhatIsInFlight() throws {
        let lab = try QueueLab()
        let box = try lab.idleQueue()
        let queue = DiskQueue(box, health: lab.health, sectorUnit: 512, skew: 0)
        try queue.start()
        let operations = (0..<100).map { _ in read(queue, at: 0, count: 65536) }
        #expect(try !operations[0].wait(timeout: 20))
        #expect(!queue.isIdle)
        queue.stop()
        for io in operations { #expect(throws: BlkfrontError.self) { try io.wait() } }
        #expect(box.dismantle().isEmpty)
        try lab.stop()
    }
}
