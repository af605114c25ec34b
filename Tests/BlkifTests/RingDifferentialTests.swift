// SPDX-License-Identifier: BSD-2-Clause
// The same steps through our ends of the ring and through the macros of xen/io/ring.h: after every step every byte of
// the pages, every private index and every answer must be the same.
//
// Two differences are intended and do not show here, because these frontends do not write `rsp_prod`, nor backends
// `req_prod`: `publish()` compares with its private copy of the index that it published last, where the macros read
// it back from the shared page; and `available()` refuses indices that the macros let pass (see RingSides.swift).
import Memory
import TestSupport
import Testing

@testable import Blkif

/// Where free-running indices begin.
private let starts: [UInt32] = [0, 1, 0x7FFF_FFF0, 0x7FFF_FC01, 0xFFFF_FFFF, 0xFFFF_FFE1, 0xFFFF_FC10]

/// A random walk of a ring in all pairings at once.
private struct Walk {
    /// What is done more often for a while, so that rings become full and empty.
    enum Mood: CaseIterable {
        case filling, draining, mixed, idle
    }

    let worlds: [RingWorld]
    var random: SplitMix64
    var mood = Mood.filling
    var stepsOfMood = 0
    /// Steps done, and how often the interesting states were met.
    var steps = 0
    var fullRings = 0
    var events = 0
    var heldOff = 0
    var overflows = 0

    init(abi: RingABI, pages: Int, start: UInt32, seed: UInt64) {
        worlds = Pairing.allCases.map { RingWorld($0, abi: abi, pageCount: pages, start: start) }
        random = SplitMix64(seed: seed)
    }

    private var reference: RingWorld { worlds[0] }

    /// Chooses a step that a well-behaved end may do now.
    mutating func nextStep() -> RingStep {
        let front = reference.front
        let back = reference.back
        if stepsOfMood == 0 {
            mood = Mood.allCases[random.below(Mood.allCases.count)]
            stepsOfMood = 1 + random.below(3 * front.entryCount)
        }
        stepsOfMood -= 1
        let choice = random.below(100)
        let (fill, work, drain) =
            switch mood {
            case .filling: (60, 10, 5)
            case .draining: (5, 40, 35)
            case .mixed: (25, 30, 20)
            case .idle: (5, 10, 5)
            }
        if choice < fill {
            guard front.free > 0 else { return .publishRequests }
            return .put(.random(&random))
        }
        if choice < fill + work {
            if random.onceIn(2), back.outstanding > 0 {
                let statuses: [BlockStatus] = [.okay, .error, .notSupported]
                return .respond(
                    id: random.next(), wireOperation: UInt8(truncatingIfNeeded: random.next()),
                    status: statuses[random.below(3)])
            }
            if case .count(1...) = back.available() { return .takeRequest }
            return .publishResponses
        }
        if choice < fill + work + drain {
            if case .count(1...) = front.available() { return .takeResponse }
            return .finalCheckResponses
        }
        switch random.below(14) {
        case 0...2: return .publishRequests
        case 3...5: return .publishResponses
        case 6: return .finalCheckRequests
        case 7: return .finalCheckResponses
        case 8: return .requestsAvailable
        case 9: return .responsesAvailable
        case 10: return .setRequestEvent(near(front.requestProducer))
        case 11: return .setResponseEvent(near(back.responseProducer))
        case 12: return .showRequestProducer(near(back.requestConsumer))
        default:
            if random.onceIn(8) { return .attachBack }
            return .showResponseProducer(near(front.responseConsumer))
        }
    }

    /// An index around `index`, at the edges of the ring, or anywhere.
    private mutating func near(_ index: UInt32) -> UInt32 {
        let size = UInt32(reference.front.entryCount)
        switch random.below(6) {
        case 0: return UInt32(truncatingIfNeeded: random.next())
        case 1: return index &+ size &+ UInt32(random.below(3)) &- 1
        case 2: return index &- size &+ UInt32(random.below(3)) &- 1
        default: return index &+ UInt32(random.below(9)) &- 4
        }
    }

    /// Does one step everywhere. Says what differs, or nil.
    mutating func advance() -> String? {
        let step = nextStep()
        steps += 1
        if reference.front.free == 0 { fullRings += 1 }
        let expected = reference.apply(step)
        switch expected {
        case .flag(true): events += 1
        case .flag(false): heldOff += 1
        case .looked(.overflow, _): overflows += 1
        default: break
        }
        let indices = reference.indices
        for world in worlds.dropFirst() {
            let result = world.apply(step)
            if result != expected { return "\(world.pairing), \(step): \(result), macros: \(expected)" }
            if world.indices != indices { return "\(world.pairing), \(step): \(world.indices), macros: \(indices)" }
            if let offset = world.pages.firstDifference(from: reference.pages) {
                return "\(world.pairing), \(step): byte \(offset) of the pages differs"
            }
        }
        return nil
    }
}

@Suite("Our ring against the macros of ring.h")
struct RingDifferentialTests {
    @Test("All ring sizes", arguments: RingABI.allCases)
    func allSizes(abi: RingABI) {
        let seed = testSeed("differential ring test, \(abi), 1 to 32 pages")
        var random = SplitMix64(seed: seed)
        for pages in 1...BlkifLimits.ringPages {
            run(abi, pages: pages, start: starts[random.below(starts.count)], steps: 1500, seed: random.next())
        }
    }

    @Test("Indices that wrap around, and the sign", arguments: RingABI.allCases, starts)
    func wrapAround(abi: RingABI, start: UInt32) {
        let seed = testSeed("differential ring test, \(abi), from \(start)")
        var random = SplitMix64(seed: seed)
        let small = run(abi, pages: 1, start: start, steps: 20_000, seed: random.next())
        #expect(small.fullRings > 0 && small.events > 0 && small.heldOff > 0 && small.overflows > 0)
        run(abi, pages: 2, start: start, steps: 5000, seed: random.next())
        run(abi, pages: 8, start: start, steps: 5000, seed: random.next())
    }

    /// Enough steps to fill 1024 slots several times.
    @Test("The longest ring goes round", arguments: RingABI.allCases)
    func longest(abi: RingABI) {
        let seed = testSeed("differential ring test, \(abi), 32 pages around")
        let start = UInt32.max - 700
        let walk = run(abi, pages: 32, start: start, steps: 25_000, seed: seed)
        let made = walk.worlds[0].front.requestProducer &- start
        #expect(made > 2048, "\(made) requests")
    }

    @discardableResult
    private func run(_ abi: RingABI, pages: Int, start: UInt32, steps: Int, seed: UInt64) -> Walk {
        var walk = Walk(abi: abi, pages: pages, start: start, seed: seed)
        #expect(walk.worlds.allSatisfy { $0.indices == walk.worlds[0].indices })
        #expect(walk.worlds.allSatisfy { $0.pages.firstDifference(from: walk.worlds[0].pages) == nil })
        while walk.steps < steps {
            if let difference = walk.advance() {
                Issue.record("\(abi), \(pages) pages from \(start), step \(walk.steps), seed \(seed): \(difference)")
                break
            }
        }
        return walk
    }
}
