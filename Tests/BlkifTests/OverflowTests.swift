// SPDX-License-Identifier: BSD-2-Clause
// A frontend, or a backend, that lies about its indices.
import CBlkifOracle
import Glibc
import Memory
import TestSupport
import Testing

@testable import Blkif

/// A ring in the middle of its work: `taken` requests taken, `answered` of them answered, `waiting` more shown.
private final class Ring {
    let pages: TestPages
    let front: OurFront
    let back: OurBack

    init(_ abi: RingABI, start: UInt32, taken: Int, answered: Int = 0, waiting: Int = 0) throws {
        pages = TestPages(pages: 1)
        front = OurFront(pages, abi: abi, start: start)
        back = OurBack(pages, abi: abi)
        var slot = SlotBytes()
        for _ in 0..<taken { front.put(slot) }
        _ = front.publish()
        #expect(try back.availableOrThrow() == taken)
        for _ in 0..<taken { back.take(into: &slot) }
        for id in 0..<answered { back.respond(id: UInt64(id), wireOperation: 0, status: .okay) }
        _ = back.publish()
        for _ in 0..<answered { _ = front.take() }
        for _ in 0..<waiting { front.put(slot) }
        _ = front.publish()
    }

    /// What the backend says after the frontend showed `producer`.
    func look(at producer: UInt32) -> Result<Int, RingOverflow> {
        front.forgeRequestProducer(producer)
        do { return .success(try back.availableOrThrow()) } catch { return .failure(error) }
    }
}

private let starts: [UInt32] = [0, 100, 0x7FFF_FFF0, 0xFFFF_FFF0, .max]

@Suite("Indices that cannot be true")
struct OverflowTests {
    @Test("req_prod ahead of the ring", arguments: RingABI.allCases, starts)
    func ahead(abi: RingABI, start: UInt32) throws {
        let ring = try Ring(abi, start: start, taken: 10, answered: 10)
        let size = UInt32(ring.back.entryCount)
        let consumer = ring.back.requestConsumer
        #expect(consumer == start &+ 10)
        #expect(ring.look(at: consumer) == .success(0))
        #expect(ring.look(at: consumer &+ 1) == .success(1))
        #expect(ring.look(at: consumer &+ size) == .success(Int(size)))
        for lie in [size + 1, size + 2, 2 * size, 1_000_000, 1 << 31, .max - 1, .max] {
            let shown = consumer &+ lie
            let overflow = RingOverflow(requestProducer: shown, entryCount: Int(size))
            #expect(ring.look(at: shown) == .failure(overflow), "by \(lie)")
            #expect(ring.back.finalCheck(), "a lie is work, for available() to refuse")
            #expect(ring.back.requestConsumer == consumer)
        }
        // Nothing was broken by looking.
        #expect(ring.look(at: consumer &+ 3) == .success(3))
    }

    @Test("req_prod behind what was taken", arguments: RingABI.allCases, starts)
    func backwards(abi: RingABI, start: UInt32) throws {
        let ring = try Ring(abi, start: start, taken: 20, answered: 5)
        let consumer = ring.back.requestConsumer
        let macros = MacroBack(ring.pages, abi: abi)
        var slot = SlotBytes()
        for _ in 0..<15 { macros.take(into: &slot) }
        #expect(macros.requestConsumer == consumer && macros.outstanding == 15)
        for lie in [UInt32(1), 2, 14, 15] {
            let overflow = RingOverflow(requestProducer: consumer &- lie, entryCount: ring.back.entryCount)
            #expect(ring.look(at: consumer &- lie) == .failure(overflow), "back by \(lie)")
            // The macros alone would let these pass, and give old slots as new requests.
            #expect(!macros.producerOverflow)
            #expect(macros.unconsumed > 0)
        }
        for lie in [UInt32(16), 100, 1_000_000, 1 << 31] {
            let overflow = RingOverflow(requestProducer: consumer &- lie, entryCount: ring.back.entryCount)
            #expect(ring.look(at: consumer &- lie) == .failure(overflow), "back by \(lie)")
            #expect(macros.producerOverflow)
        }
        #expect(ring.look(at: consumer) == .success(0))
    }

    @Test("More requests than slots for their responses", arguments: RingABI.allCases, starts)
    func consumerOverflow(abi: RingABI, start: UInt32) throws {
        for answered in [0, 1, 7] {
            let ring = try Ring(abi, start: start, taken: 32, answered: answered)
            let size = ring.back.entryCount
            let consumer = ring.back.requestConsumer
            #expect(ring.back.outstanding == size - answered)
            let macros = MacroBack(ring.pages, abi: abi)
            var slot = SlotBytes()
            for _ in 0..<ring.back.outstanding { macros.take(into: &slot) }
            #expect(macros.consumerOverflow == (answered == 0))

            #expect(ring.look(at: consumer &+ UInt32(answered)) == .success(answered))
            let shown = consumer &+ UInt32(answered) &+ 1
            #expect(ring.look(at: shown) == .failure(RingOverflow(requestProducer: shown, entryCount: size)))
            // With no slot left there is nothing to do but to answer, whatever the frontend shows.
            #expect(ring.back.hasNewRequests == (answered > 0))
            #expect(ring.back.finalCheck() == (answered > 0))
            #expect(ring.pages.word(at: RingLayout.requestEvent) == (answered > 0 ? start &+ 1 : consumer &+ 1))
            ring.back.respond(id: 0, wireOperation: 0, status: .okay)
            #expect(ring.look(at: shown) == .success(answered + 1))
        }
    }

    /// The service loop of a backend ends for each state of a hostile ring.
    @Test("No endless loop", arguments: RingABI.allCases)
    func noEndlessLoop(abi: RingABI) {
        let seed = testSeed("hostile req_prod, \(abi)")
        var random = SplitMix64(seed: seed)
        let pages = TestPages(pages: 1)
        _ = OurFront(pages, abi: abi, start: .max - 100)
        let back = OurBack(pages, abi: abi)
        let flag = StopFlag()
        let base = UInt(bitPattern: pages.base)
        let scribbler = TestThread {
            _ = oracle_scribble(
                UnsafeMutableRawPointer(bitPattern: base + UInt(RingLayout.requestProducer)),
                UnsafePointer(bitPattern: base + UInt(RingLayout.responseProducer)), seed, flag.word)
        }
        defer {
            flag.stop()
            scribbler.join()
        }
        var slot = SlotBytes()
        var refused = 0
        var found = 0
        var rounds = 0
        while pages.word(at: RingLayout.requestProducer) == .max - 100 { sched_yield() }
        // As long as it takes to have seen both, within reason.
        while rounds < 200_000 || (rounds < 1_000_000 && (refused == 0 || found == 0)) {
            rounds += 1
            // At most one ring of requests can be taken before something must be answered.
            var taken = 0
            do {
                while true {
                    let count = try back.availableOrThrow()
                    guard count >= 0, back.outstanding + count <= back.entryCount else {
                        Issue.record("seed \(seed): \(count) available with \(back.outstanding) outstanding")
                        return
                    }
                    if count == 0 { break }
                    for _ in 0..<(1 + random.below(count)) {
                        back.take(into: &slot)
                        taken += 1
                    }
                }
            } catch {
                refused += 1
            }
            guard taken <= back.entryCount, back.outstanding <= back.entryCount else {
                Issue.record("seed \(seed): \(taken) taken at once, \(back.outstanding) outstanding")
                return
            }
            found += taken
            for _ in 0..<random.below(back.outstanding + 1) {
                back.respond(id: 0, wireOperation: 0, status: .error)
            }
            _ = back.publish()
            _ = back.finalCheck()
        }
        #expect(refused > 0 && found > 0)
        print("hostile req_prod, \(abi): \(refused) times refused, \(found) requests taken")
    }

    @Test("publish() does not believe the shared rsp_prod", arguments: RingABI.allCases, starts)
    func scribbledResponseProducer(abi: RingABI, start: UInt32) throws {
        for threshold in 0...4 {
            let ring = try Ring(abi, start: start, taken: 8, answered: 2)
            ring.pages.set(start &+ 2 &+ UInt32(threshold), at: RingLayout.responseEvent)
            ring.back.respond(id: 7, wireOperation: 1, status: .okay)
            ring.back.respond(id: 8, wireOperation: 1, status: .okay)
            // The frontend writes our index: it harms nobody but itself, and only until the next publish.
            ring.pages.set(start &+ 2 &+ 1_000, at: RingLayout.responseProducer)
            let notify = ring.back.publish()
            #expect(notify == (threshold == 1 || threshold == 2), "threshold \(threshold) of responses 3 and 4")
            #expect(ring.pages.word(at: RingLayout.responseProducer) == start &+ 4)
            #expect(!ring.back.publish(), "nothing new")
        }
    }

    @Test("Another backend finds what was not answered", arguments: RingABI.allCases, starts)
    func takeover(abi: RingABI, start: UInt32) throws {
        let ring = try Ring(abi, start: start, taken: 12, answered: 5, waiting: 9)
        // Written and not published: the frontend has not seen it, so it is done again.
        ring.back.respond(id: 5, wireOperation: 0, status: .okay)
        let second = OurBack(ring.pages, abi: abi)
        #expect(second.requestConsumer == start &+ 5 && second.responseProducer == start &+ 5)
        #expect(second.outstanding == 0)
        #expect(try second.availableOrThrow() == 12 - 5 + 9)
        #expect(second.hasNewRequests && !second.publish())
    }

    @Test("rsp_prod ahead of the requests", arguments: RingABI.allCases, starts)
    func hostileBackend(abi: RingABI, start: UInt32) throws {
        let ring = try Ring(abi, start: start, taken: 6, answered: 2)
        let consumer = ring.front.responseConsumer
        #expect(consumer == start &+ 2)
        for shown in UInt32(0)...4 {
            ring.pages.set(consumer &+ shown, at: RingLayout.responseProducer)
            #expect(try ring.front.availableOrThrow() == Int(shown))
        }
        for lie in [UInt32(5), 6, 32, 33, 1_000_000, 1 << 31, .max] {
            ring.pages.set(consumer &+ lie, at: RingLayout.responseProducer)
            #expect(throws: RingOverflow(requestProducer: consumer &+ lie, entryCount: 32), "by \(lie)") {
                try ring.front.availableOrThrow()
            }
        }
    }
}
