// SPDX-License-Identifier: BSD-2-Clause
// Queues held to a limit, with a clock of the test's own.
import Blkif
import Testing

@testable import BlockQueue

/// A guest that always has as many requests on the ring as it may.
private final class Flood {
    let rig: EngineRig
    private let depth: Int
    private let send: (EngineRig) -> Sent
    private var onTheRing: [Sent] = []
    /// Requests that were answered.
    private(set) var answered = 0

    init(_ rig: EngineRig, depth: Int = 32, _ send: @escaping (EngineRig) -> Sent) {
        self.rig = rig
        self.depth = depth
        self.send = send
    }

    /// All that is to be done at `now`, in ns.
    func step(_ now: UInt64) {
        while onTheRing.count < depth { onTheRing.append(send(rig)) }
        // Turns are a microsecond each.
        rig.engine.now = now
        rig.run()
        for sent in onTheRing where rig.status(sent) != nil {
            rig.givePagesBack(sent)
            rig.forget(sent)
            answered += 1
            onTheRing.removeAll { $0.id == sent.id }
        }
    }
}

@Suite("A queue held to a limit")
struct EngineLimitTests {
    private static let start: UInt64 = 1_000_000_000

    /// Steps of 1 ms from `first` on; where they end.
    @discardableResult
    private func run(_ floods: [Flood], from first: UInt64 = start, milliseconds: Int, step: Int = 1) -> UInt64 {
        var now = first
        for _ in 0..<(milliseconds / step) {
            now += UInt64(step) * 1_000_000
            for flood in floods { flood.step(now) }
        }
        return now
    }

    private func limits(_ change: (inout DiskLimits) -> Void) -> DiskLimits {
        var limits = DiskLimits()
        change(&limits)
        return limits
    }

    private func limiter(_ rig: EngineRig, full: Bool = true, queues: Int = 1, _ change: (inout DiskLimits) -> Void)
        -> DiskLimiter
    {
        let limiter = DiskLimiter(limits(change), queueCount: queues, full: full, now: rig.engine.now)
        rig.engine.tuning.limiter = limiter
        return limiter
    }

    private func rig(_ change: (inout EngineRig.Setup) -> Void = { _ in }) throws -> EngineRig {
        let rig = try EngineRig(change)
        rig.engine.now = Self.start
        return rig
    }

    // The engine cannot be copied, which #expect would do.
    private func isThrottled(_ rig: EngineRig) -> Bool { rig.engine.isThrottled }
    private func outstanding(_ rig: EngineRig) -> Int { rig.engine.ring.outstanding }
    private func isEmpty(_ rig: EngineRig) -> Bool { rig.engine.isEmpty }

    @Test("4 KiB: 10 s at a limit of bytes and of requests are exact within 2 %", arguments: [0, 3])
    func small(_ index: Int) throws {
        let rig = try rig()
        _ = limiter(rig) { $0[index].rate = index == 0 ? 2_000_000 : 500 }
        let flood = Flood(rig) { $0.read(64, 8) }
        run([flood], milliseconds: 10_000)
        let part = Double(flood.answered) / (index == 0 ? 20_000_000 / 4096 : 5000)
        #expect(part > 0.98 && part < 1.02, "\(part)")
        #expect(rig.problems == [])
    }

    @Test("1 MiB: 10 s at a limit of bytes are exact within 2 %", arguments: [BlockOperation.read, .write])
    func large(_ operation: BlockOperation) throws {
        let rig = try rig {
            $0.indirectSegments = 256
            $0.memoryBytes = 16 << 20
        }
        _ = limiter(rig) { $0[operation == .read ? 1 : 2].rate = 30 << 20 }
        let flood = Flood(rig, depth: 4) { $0.sendIndirect(operation, 0, $0.segments(2048)) }
        run([flood], milliseconds: 10_000, step: 5)
        let part = Double(flood.answered) / 300
        #expect(part > 0.98 && part < 1.02, "\(part)")
        #expect(rig.problems == [])
    }

    @Test("what waits stays on the ring, nothing is done for it, and it is counted once")
    func waits() throws {
        let rig = try rig()
        let limiter = limiter(rig, full: false) { $0[3].rate = 10 }
        let reads = (0..<20).map { rig.read($0 * 8, 8) }
        rig.run()
        // The bucket holds one, and one more gets through.
        #expect(rig.statuses(Array(reads[..<2])) == [0, 0] && reads[2...].allSatisfy { rig.status($0) == nil })
        #expect(isThrottled(rig) && outstanding(rig) == 0 && isEmpty(rig))
        #expect(rig.counter(.throttled_requests) == 18 && limiter.waitingRequests(now: rig.engine.now) == 18)
        let calls = rig.counter(.plugin_requests)
        for _ in 0..<50 { #expect(!rig.turn(), "there is nothing to do") }
        #expect(rig.counter(.plugin_requests) == calls)
        for number in 2..<20 {
            rig.engine.now += 100_000_000
            rig.run()
            #expect(rig.status(reads[number]) == 0 && (number == 19 || rig.status(reads[number + 1]) == nil))
        }
        rig.turn()
        #expect(!isThrottled(rig) && limiter.waitingRequests(now: rig.engine.now) == 0)
        #expect(rig.counter(.throttled_requests) == 18)
        let seconds = Double(rig.counter(.throttled_microseconds)) / 1e6
        #expect(seconds > 1.75 && seconds < 1.85, "\(seconds)")
        rig.expectIdle()
    }

    @Test("reads do not wait for writes' limits, and the ring keeps its order")
    func directions() throws {
        let rig = try rig()
        _ = limiter(rig) { $0[5].rate = 1 }
        let first = [rig.read(0, 8), rig.write(8, 8), rig.read(0, 8), rig.write(16, 8), rig.read(24, 8)]
        rig.run()
        #expect(rig.statuses(first) == [0, 0, 0, nil, nil])
        rig.engine.now += 1_000_000_000
        rig.run()
        #expect(rig.statuses(first) == [0, 0, 0, 0, 0])
        rig.expectIdle()
    }

    @Test("a flush costs nothing, a discard one request and no bytes, what is refused one read")
    func costs() throws {
        let rig = try rig()
        _ = limiter(rig) {
            $0[3].rate = 1
            $0[0].rate = 1
        }
        rig.engine.now += 3_000_000_000
        let flushes = (0..<5).map { _ in rig.flush() }
        rig.run()
        #expect(rig.statuses(flushes).allSatisfy { $0 == 0 })
        let discards = [rig.discard(0, 4096), rig.discard(0, 4096)]
        rig.run()
        #expect(rig.statuses(discards) == [0, nil], "no bytes, or it would be a month")
        rig.engine.now += 1_000_000_000
        let next = [rig.read(1 << 30, 8), rig.read(1 << 30, 8)]
        rig.run()
        #expect(rig.statuses(discards) == [0, 0] && rig.statuses(next) == [nil, nil])
        rig.engine.now += 1_000_000_000
        rig.run()
        #expect(rig.statuses(next) == [-1, nil])
        rig.engine.now += 1_000_000_000
        rig.run()
        #expect(rig.statuses(next) == [-1, -1])
        rig.expectIdle()
    }

    @Test("a request that is larger than the burst gets through")
    func largerThanBurst() throws {
        let rig = try rig()
        _ = limiter(rig, full: false) { $0[0].rate = 1 }
        let reads = [rig.read(0, 88), rig.read(88, 8)]
        rig.run()
        #expect(rig.statuses(reads) == [0, nil] && isThrottled(rig))
        rig.engine.now += 88 * 512 * 1_000_000_000
        rig.run()
        #expect(rig.statuses(reads) == [0, 0])
        rig.expectIdle()
    }

    @Test("segments that are not whole pages are given back what they did not read")
    func partialSegments() throws {
        let rig = try rig { $0.indirectSegments = 64 }
        let limiter = limiter(rig) { $0[0].rate = 512 * 64 }
        rig.engine.now += 500_000_000
        let segments = (0..<64).map { _ in BlockSegment(reference: rig.newPage(), firstSector: 0, lastSector: 0) }
        let read = rig.sendIndirect(.read, 0, segments)
        rig.run()
        #expect(rig.status(read) == 0)
        let debt = limiter.debtUntil(now: rig.engine.now) - rig.engine.now
        #expect((899_000_000...901_000_000).contains(debt), "\(debt)")
        rig.expectIdle()
    }

    @Test("other limits, and none, count at once")
    func changes() throws {
        let rig = try rig()
        _ = limiter(rig) { $0[3].rate = 1 }
        let reads = (0..<8).map { rig.read($0 * 8, 8) }
        rig.run()
        #expect(rig.statuses(reads) == [0] + [Int16?](repeating: nil, count: 7) && isThrottled(rig))
        _ = limiter(rig, full: false) { $0[3].rate = 30 }
        rig.engine.endThrottle()
        rig.run()
        #expect(rig.statuses(reads) == [0, 0, 0, 0, 0, nil, nil, nil])
        rig.engine.tuning.limiter = nil
        rig.engine.endThrottle()
        rig.run()
        #expect(rig.statuses(reads).allSatisfy { $0 == 0 })
        rig.expectIdle()
    }

    @Test("a pause and a hand-over do not wait for the limit: what waits stays on the ring")
    func pause() throws {
        let rig = try rig()
        _ = limiter(rig) { $0[3].rate = 1 }
        let read = [rig.read(0, 8), rig.read(0, 8)][1]
        rig.run()
        rig.engine.isHeld = true
        #expect(isEmpty(rig), "at rest at once")
        rig.engine.now += 5_000_000_000
        rig.run()
        #expect(rig.status(read) == nil)
        rig.engine.isHeld = false
        rig.run()
        #expect(rig.status(read) == 0)
        let next = rig.read(0, 8)
        rig.run()
        rig.engine.isDraining = true
        #expect(isEmpty(rig) && outstanding(rig) == 0)
        try rig.succeed(.handedOver)
        rig.engine.now = 10_000_000_000
        rig.run()
        #expect(rig.status(next) == 0)
    }

    @Test("when a connection ends its ring is emptied without a wait; whoever ends it again and again for that, waits")
    func drain() throws {
        let rig = try rig()
        let limiter = limiter(rig) { $0[3].rate = 10 }
        func begin() -> [Sent] {
            rig.engine.endThrottleForDrain()
            let reads = (0..<32).map { rig.read($0 * 8, 8) }
            rig.run()
            return reads
        }
        #expect(rig.statuses(begin()).allSatisfy { $0 == 0 })
        let debt = limiter.debtUntil(now: rig.engine.now) - rig.engine.now
        #expect((3_100_000_000...3_200_000_000).contains(debt), "\(debt)")
        let more = begin()
        #expect(rig.statuses(more).allSatisfy { $0 == nil })
        // A second is left: it may again.
        rig.engine.now += debt - 900_000_000
        rig.engine.endThrottleForDrain()
        rig.run()
        #expect(rig.statuses(more).allSatisfy { $0 == 0 })
        rig.expectIdle()
    }

    @Test("the limit is the disk's: several queues share it, and each gets its part", arguments: [2, 4])
    func fair(_ queues: Int) throws {
        let rigs = try (0..<queues).map { _ in try rig() }
        let shared = limiter(rigs[0], queues: queues) { $0[0].rate = 4_000_000 }
        for (number, rig) in rigs.enumerated() {
            rig.engine.tuning.limiter = shared
            rig.engine.throttle.queue = number
        }
        // The first has requests of 44 KiB, the others of 4 KiB.
        let floods = rigs.enumerated().map { number, rig in Flood(rig) { $0.read(0, number == 0 ? 88 : 8) } }
        run(floods, milliseconds: 4000)
        let bytes = floods.enumerated().map { $0.element.answered * ($0.offset == 0 ? 45056 : 4096) }
        let part = Double(bytes.reduce(0, +)) / 16_000_000
        #expect(part > 0.98 && part < 1.02, "\(part)")
        for (queue, own) in bytes.enumerated() {
            let share = Double(own) / 16_000_000 * Double(queues)
            #expect(share > 0.85 && share < 1.15, "queue \(queue) got \(share) of its share: \(bytes)")
        }
    }

    @Test("a queue that begins later does not shut the others out, and one that is paused does not hold them up")
    func lateAndPaused() throws {
        let rigs = try [rig(), rig()]
        let shared = limiter(rigs[0], queues: 2) { $0[3].rate = 1000 }
        for (number, rig) in rigs.enumerated() {
            rig.engine.tuning.limiter = shared
            rig.engine.throttle.queue = number
        }
        let floods = rigs.map { Flood($0) { $0.read(0, 8) } }
        var now = run([floods[0]], milliseconds: 3000)
        #expect((2900...3150).contains(floods[0].answered), "\(floods[0].answered)")
        let before = floods[0].answered
        now = run(floods, from: now, milliseconds: 2000)
        let (first, second) = (floods[0].answered - before, floods[1].answered)
        #expect(first > 700 && second > 700 && (1900...2150).contains(first + second), "\(first) \(second)")
        rigs[1].engine.isHeld = true
        let then = floods[0].answered
        run(floods, from: now, milliseconds: 2000)
        #expect(floods[0].answered - then > 1800, "\(floods[0].answered - then)")
    }
}
