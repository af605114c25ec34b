// SPDX-License-Identifier: BSD-2-Clause
// Steps by chance, done in all pairings of ends at once: after each, every byte, every index and every answer must be the same.
import Memory
import TestSupport

@testable import Blkif

/// A random walk of a ring in all pairings at once.
struct RingWalk {
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

    init(abi: RingABI, pages: Int, start: UInt32, random source: SplitMix64) {
        worlds = Pairing.allCases.map { RingWorld($0, abi: abi, pageCount: pages, start: start) }
        random = source
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
