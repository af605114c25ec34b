// SPDX-License-Identifier: BSD-2-Clause
// Two threads, one ring, and events only when publish() asks for one: no wake-up may be lost.
import Glibc
import Memory
import TestSupport
import Testing

@testable import Blkif

/// Does nothing for a random while: nothing at all, some work, giving up the processor, or sleep.
private func pause(_ random: inout SplitMix64) {
    switch random.below(256) {
    case 0: usleep(UInt32(random.below(60)))
    case 1...4: sched_yield()
    case 5...20:
        var left = random.below(100)
        while left > 0 { left -= 1 }
    default: break
    }
}

/// What happened on a side; read after its thread has ended.
private struct SideReport {
    var problem: String?
    var requests = 0
    var publishes = 0
    var sleeps = 0
}

/// Sends requests, keeps some in flight, and checks each response.
private final class FrontRunner: @unchecked Sendable {
    private let front: any FrontSide
    private let encoder: RequestEncoder
    private let total: Int
    private let toBack: TestEvent
    private let toFront: TestEvent
    private var random: SplitMix64
    /// The id that each token has in flight, or nil. A token is the low byte of an id.
    private var inFlight: [UInt64?]
    private var freeTokens: [Int]
    private(set) var report = SideReport()

    init(
        _ front: any FrontSide, _ layout: RingLayout, total: Int, toBack: TestEvent, toFront: TestEvent, seed: UInt64
    ) {
        self.front = front
        encoder = RequestEncoder(layout: layout)
        self.total = total
        self.toBack = toBack
        self.toFront = toFront
        random = SplitMix64(seed: seed)
        inFlight = Array(repeating: nil, count: front.entryCount)
        freeTokens = Array(0..<front.entryCount)
    }

    func run() {
        var sent = 0
        var slot = SlotBytes()
        while report.requests < total {
            let batch = min(front.free, total - sent, 1 + random.below(front.entryCount / 2))
            for _ in 0..<batch {
                guard let token = freeTokens.popLast() else { return report.problem = "more room than tokens" }
                let id = UInt64(sent) << 8 | UInt64(token)
                inFlight[token] = id
                encoder.begin(&slot, BlockOperation.flush.rawValue, 0, 0, id, 0)
                front.put(slot)
                sent += 1
            }
            if batch > 0 { publish() }
            pause(&random)
            let taken = takeResponses()
            if report.problem != nil { return }
            // Sleeps when there is nothing else to do, and sometimes although there were.
            let couldSend = sent < total && front.free > 0
            if report.requests < sent, taken == 0, !couldSend || random.onceIn(4) {
                if front.finalCheck() { continue }
                report.sleeps += 1
                guard toFront.wait() else { return report.problem = "frontend: no event after \(report.requests)" }
            }
        }
    }

    private func publish() {
        report.publishes += 1
        if front.publish() { toBack.send() }
    }

    private func takeResponses() -> Int {
        guard case .count(let ready) = front.available() else {
            report.problem = "frontend: rsp_prod too far"
            return 0
        }
        let count = random.onceIn(3) ? ready : min(ready, random.below(8))
        for _ in 0..<count {
            let response = front.take()
            let token = Int(response.id & 0xFF)
            guard token < inFlight.count, inFlight[token] == response.id else {
                report.problem = "frontend: response to \(response.id), which is not in flight"
                return count
            }
            let status: BlockStatus = response.id & 0x100 == 0 ? .okay : .error
            if response.wireOperation != BlockOperation.flush.rawValue || response.status != status.rawValue {
                report.problem = "frontend: \(response)"
            }
            inFlight[token] = nil
            freeTokens.append(token)
            report.requests += 1
        }
        return count
    }
}

/// Takes requests, completes them in any order, and sleeps when there are none.
private final class BackRunner: @unchecked Sendable {
    private let back: any BackSide
    private let layout: RingLayout
    private let total: Int
    private let toBack: TestEvent
    private let toFront: TestEvent
    private var random: SplitMix64
    private var pending: [UInt64] = []
    private(set) var report = SideReport()

    init(
        _ back: any BackSide, _ layout: RingLayout, total: Int, toBack: TestEvent, toFront: TestEvent, seed: UInt64
    ) {
        self.back = back
        self.layout = layout
        self.total = total
        self.toBack = toBack
        self.toFront = toFront
        random = SplitMix64(seed: seed)
    }

    func run() {
        var slot = SlotBytes()
        let request = ParsedRequest()
        let disk = OfferedFeatures(sectorCount: 1)
        while report.requests < total {
            if random.onceIn(2) { back.holdOffEvents() }
            guard case .count(let ready) = back.available() else { return report.problem = "backend: req_prod too far" }
            let count = random.onceIn(3) ? ready : min(ready, random.below(8))
            for _ in 0..<count {
                back.take(into: &slot)
                if let error = request.parse(slot, layout: layout, disk: disk) {
                    return report.problem = "backend: \(error)"
                }
                pending.append(request.id)
            }
            pause(&random)
            if pending.isEmpty {
                if ready > 0 || back.finalCheck() { continue }
                report.sleeps += 1
                guard toBack.wait() else { return report.problem = "backend: no event after \(report.requests)" }
            } else {
                complete(1 + random.below(pending.count))
            }
        }
    }

    private func complete(_ count: Int) {
        for _ in 0..<count {
            pending.swapAt(random.below(pending.count), pending.count - 1)
            let id = pending.removeLast()
            let status: BlockStatus = id & 0x100 == 0 ? .okay : .error
            back.respond(id: id, wireOperation: BlockOperation.flush.rawValue, status: status)
            report.requests += 1
        }
        report.publishes += 1
        if back.publish() { toFront.send() }
    }
}

@Suite("Events only when they are asked for", .serialized)
struct HoldOffTests {
    @Test("A million requests lose no wake-up")
    func million() { run(.oursAlone, .x86_64, total: 1_000_000) }

    @Test("Each pairing of our ends and those of the macros", arguments: Pairing.allCases, [RingABI.x86_64, .x86_32])
    func pairings(pairing: Pairing, abi: RingABI) { run(pairing, abi, total: 100_000) }

    @Test("While the backend is at work, requests cause no events", arguments: [UInt32.max - 1, 0x7FFF_FFFE, 0])
    func backendAtWork(start: UInt32) {
        let world = RingWorld(.oursAlone, abi: .x86_64, pageCount: 1, start: start)
        var slot = SlotBytes()
        #expect(!world.back.finalCheck())
        for step in 0..<6 {
            if step % 2 == 1 { world.back.holdOffEvents() }
            world.front.put(SlotBytes())
            #expect(world.front.publish() == (step % 2 == 0))
            #expect(world.back.finalCheck(), "what came without an event is seen before sleep")
            world.back.take(into: &slot)
            #expect(!world.back.finalCheck())
        }
    }

    private func run(_ pairing: Pairing, _ abi: RingABI, total: Int) {
        let seed = testSeed("hold-off, \(pairing), \(abi)")
        // Indices pass both places where they could be taken for something else; one page is the smallest ring.
        let start: UInt32 = seed & 1 == 0 ? .max - 20_000 : 0x8000_0000 - 20_000
        let world = RingWorld(pairing, abi: abi, pageCount: 1, start: start)
        let toBack = TestEvent()
        let toFront = TestEvent()
        let layout = RingLayout(abi)
        let front = FrontRunner(world.front, layout, total: total, toBack: toBack, toFront: toFront, seed: seed)
        let back = BackRunner(world.back, layout, total: total, toBack: toBack, toFront: toFront, seed: ~seed)
        let threads = [TestThread { front.run() }, TestThread { back.run() }]
        for thread in threads { thread.join() }

        #expect(front.report.problem == nil && back.report.problem == nil)
        #expect(front.report.requests == total && back.report.requests == total)
        #expect(world.front.free == world.front.entryCount && world.back.outstanding == 0)
        #expect(world.front.requestProducer == start &+ UInt32(total))
        // Held off: fewer events than requests, fewer even than there were occasions to send one.
        #expect(toBack.sent < total && toBack.sent < front.report.publishes)
        #expect(toFront.sent < total && toFront.sent < back.report.publishes)
        print(
            "hold-off, \(pairing), \(abi): \(total) requests; to backend \(front.report.publishes) publishes, "
                + "\(toBack.sent) events, \(back.report.sleeps) sleeps; to frontend \(back.report.publishes), "
                + "\(toFront.sent), \(front.report.sleeps)")
    }
}
