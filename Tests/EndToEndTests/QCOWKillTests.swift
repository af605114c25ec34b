// SPDX-License-Identifier: BSD-2-Clause
// Workers die while a guest reads a QCOW image; every byte that it gets is compared with what QEMU reads.
import Blkfront
import Blkif
import CLinux
import Foundation
import Synchronization
import TestSupport
import Testing

/// Random reads of a disk whose content is known, until told to stop.
private final class KnownReads: Sendable {
    private let content: [UInt8]
    private let seed: UInt64
    /// Reads that were answered.
    let answered = Atomic<Int>(0)
    /// No more reads are begun.
    let isOver = Atomic<Bool>(false)

    init(of content: [UInt8], seed: UInt64) {
        self.content = content
        self.seed = seed
    }

    /// Keeps up to `depth` reads in flight. Throws with the first that is not answered in 30 s, fails or is wrong.
    func run(_ queue: inout FrontQueue, depth: Int) throws {
        var random = SplitMix64(seed: seed)
        var waiting: [Int: Range<Int>] = [:]
        while true {
            while waiting.count < depth, !isOver.load(ordering: .relaxed), let id = queue.allocate() {
                let count = 512 * (1 + random.below(FrontQueue.directSize / 512))
                let first = 512 * random.below((content.count - count) / 512 + 1)
                try begin(id, first..<first + count, &queue)
                waiting[id] = first..<first + count
            }
            if waiting.isEmpty { return }
            try queue.publish()
            let completion = try queue.next()
            guard let range = waiting.removeValue(forKey: completion.id) else { throw LabError("a strange answer") }
            try check(completion, range, &queue)
            queue.release(completion.id)
            answered.add(1, ordering: .relaxed)
        }
    }

    /// Reads everything once, in order.
    func runOnce(_ queue: inout FrontQueue) throws {
        for start in stride(from: 0, to: content.count, by: FrontQueue.directSize) {
            let range = start..<min(start + FrontQueue.directSize, content.count)
            let id = try queue.slot()
            try begin(id, range, &queue)
            try queue.publish()
            try check(try queue.next(), range, &queue)
            queue.release(id)
        }
    }

    private func begin(_ id: Int, _ range: Range<Int>, _ queue: inout FrontQueue) throws {
        queue.buffer(of: id)[0..<range.count].initializeMemory(as: UInt8.self, repeating: 0xa5)
        try queue.submit(id, .read, sector: UInt64(range.lowerBound / 512), byteCount: range.count)
    }

    private func check(_ completion: FrontCompletion, _ range: Range<Int>, _ queue: inout FrontQueue) throws {
        let bytes = UnsafeRawBufferPointer(rebasing: queue.buffer(of: completion.id)[0..<range.count])
        let isSame = content.withUnsafeBytes { all in
            guard let expected = UnsafeRawBufferPointer(rebasing: all[range]).baseAddress, let found = bytes.baseAddress
            else { return false }
            return memcmp(found, expected, range.count) == 0
        }
        guard completion.status == 0, isSame else { throw LabError("\(range): status \(completion.status), \(isSame)") }
    }
}

extension EndToEnd {
    @Suite struct QCOWKillTests {
        /// 32 MiB in clusters of data that no deflating makes smaller, of text that it does, and of nothing.
        private static func raw(_ random: inout SplitMix64) -> Data {
            let cluster = 64 << 10
            var words = [UInt64](repeating: 0, count: (32 << 20) / 8)
            for start in stride(from: 0, to: words.count, by: cluster / 8) {
                let kind = random.below(5)
                for index in start..<start + cluster / 8 where kind > 0 {
                    words[index] = kind > 2 ? random.next() : 0x5842_4220 &+ random.next() % 8
                }
            }
            return words.withUnsafeBytes { Data($0) }
        }

        /// The disk and what it must read as.
        private func attach(_ lab: QCOWLab, _ random: inout SplitMix64, environment: [String] = []) throws
            -> (Disk, [UInt8])
        {
            let raw = Self.raw(&random)
            try raw.write(to: URL(fileURLWithPath: "\(lab.templates)/raw"))
            // What deflating makes no smaller is stored as it is.
            try lab.run("qemu-img convert -c -f raw -O qcow2 raw image && rm raw")
            let compressed = try lab.run("qemu-img check image | sed -n 's/.* \\([0-9.]*\\)% compressed.*/\\1/p'")
            #expect((20...80).contains(try #require(Double(compressed))), "\(compressed)")
            let content = try lab.expected("image")
            #expect(content.elementsEqual(raw))
            let disk = try lab.lab.attach(
                51712, Storage(path: "\(lab.templates)/image", mode: "r", format: "qcow2"),
                arguments: ["--journal", "\(lab.lab.directory)/journal"], environment: environment)
            return (disk, content)
        }

        /// Reads at random while `meanwhile` does something to the worker until it says that it has done enough; then
        /// reads everything.
        private func read(
            _ lab: QCOWLab, _ disk: Disk, _ content: [UInt8], pages: Int, seed: UInt64,
            meanwhile: (KnownReads) throws -> Bool
        ) throws {
            let device = try disk.connect { $0.ringPages = pages }
            let reads = KnownReads(of: content, seed: seed)
            defer { reads.isOver.store(true, ordering: .relaxed) }
            let end = clinux_monotonic_ns() + 180_000_000_000
            try inBackground({
                try device.queues[0].withQueue { (queue) throws in
                    try reads.run(&queue, depth: 24 * pages)
                    try reads.runOnce(&queue)
                }
            }) {
                if clinux_monotonic_ns() > end { throw LabError("no end in 180 s: \(disk.log.suffix(2000))") }
                if try meanwhile(reads) { reads.isOver.store(true, ordering: .relaxed) }
            }
            #expect(try disk.key("state") == "4")
            try device.close()
            try lab.lab.finish(mostLog: 1 << 20)
        }

        @Test(arguments: [1, 4])
        func randomKills(pages: Int) throws {
            var random = SplitMix64(seed: testSeed("QCOWKillTests.randomKills"))
            let lab = try QCOWLab()
            let (disk, content) = try attach(lab, &random)
            var kills = 0
            var next = 100
            var pause: UInt64 = 0
            try read(lab, disk, content, pages: pages, seed: random.next()) { reads in
                guard reads.answered.load(ordering: .relaxed) >= next, clinux_monotonic_ns() >= pause else {
                    return false
                }
                if kills == 15 { return true }
                disk.worker.kill()
                kills += 1
                try disk.startWorker(["--predecessor", "killed:signal 9"])
                // After some more reads, or before the successor has come to anything.
                let isAtOnce = random.onceIn(4)
                next = reads.answered.load(ordering: .relaxed) + (isAtOnce ? 0 : 1 + random.below(200))
                pause = clinux_monotonic_ns() + (isAtOnce ? random.next() % 10_000_000 : 0)
                return false
            }
            #expect(disk.log.has("requests in flight"), "\(disk.log.suffix(2000))")
        }

        /// Each worker dies in another place, the first four of them with requests in flight.
        @Test func eachWorkerDiesInAnotherPlace() throws {
            var places = [
                "taking:9", "taken:9", "copied:9", "submitted:9", "replayed", "completed:9", "opened", "mapped",
                "answered:9", "bound", "connected", "published:9", "started", "released:9",
            ]
            var random = SplitMix64(seed: testSeed("QCOWKillTests.eachWorkerDiesInAnotherPlace"))
            let lab = try QCOWLab()
            let (disk, content) = try attach(lab, &random, environment: ["XBB_KILL_POINT=\(places.removeFirst())"])
            var next = 0
            var isLast = false
            try read(lab, disk, content, pages: 4, seed: random.next()) { reads in
                let answered = reads.answered.load(ordering: .relaxed)
                if isLast { return answered >= next }
                guard !disk.worker.isRunning else { return false }
                #expect(try disk.worker.awaitExit() == .signalled(SIGKILL), "\(disk.log)")
                isLast = places.isEmpty
                next = answered + 200
                let environment = isLast ? [] : ["XBB_KILL_POINT=\(places.removeFirst())"]
                try disk.startWorker(["--predecessor", "killed:signal 9"], environment: environment)
                return false
            }
            #expect(isLast)
        }
    }
}
