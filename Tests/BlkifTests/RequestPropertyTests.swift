// SPDX-License-Identifier: BSD-2-Clause
// Random requests: valid but for at most one rule, and bytes of no meaning at all.
import CBlkifOracle
import Memory
import TestSupport
import Testing

@testable import Blkif

/// Makes requests that are valid, and breaks one rule of them.
private struct RequestMaker {
    var random: SplitMix64
    var request = RequestDescription()
    var disk = OfferedFeatures(sectorCount: 0)

    /// A valid request and a disk that takes it.
    mutating func makeValid() {
        let offers = random.next()
        disk = OfferedFeatures(
            sectorCount: diskSize(), isReadOnly: random.onceIn(4), discard: offers & 1 != 0 ? DiscardSupport() : nil,
            hasBarrier: offers & 2 != 0, canFlush: offers & 4 != 0)
        request = RequestDescription(id: random.next(), handle: UInt16(truncatingIfNeeded: random.next()))
        var operations: [BlockOperation] = [.read]
        if !disk.isReadOnly { operations.append(.write) }
        if disk.hasBarrier && !disk.isReadOnly { operations.append(.writeBarrier) }
        if disk.canFlush { operations.append(.flush) }
        if disk.discard != nil && !disk.isReadOnly { operations.append(.discard) }
        let operation = operations[random.below(operations.count)]
        request.operation = operation.rawValue
        if operation == .discard {
            request.secure = random.onceIn(2)
            request.discardSectors = random.onceIn(3) ? disk.sectorCount : random.from(1, to: disk.sectorCount)
            placeOnDisk(request.discardSectors)
            return
        }
        let mayBeEmpty = operation == .writeBarrier || operation == .flush
        if mayBeEmpty && (random.onceIn(2) || (disk.isReadOnly && operation == .flush)) {
            request.firstSector = random.next()
            return
        }
        makeSegments()
        placeOnDisk(request.segmentSectors)
    }

    /// Small ones, whose edges are met often, and the largest.
    private mutating func diskSize() -> UInt64 {
        switch random.below(4) {
        case 0: random.from(1, to: 200)
        case 1: random.from(1, to: 1 << 40)
        case 2: UInt64.max - random.from(0, to: 100)
        default: 1 << random.from(0, to: 63)
        }
    }

    /// 1 to 11 segments that fit on the disk together.
    private mutating func makeSegments() {
        var room = disk.sectorCount
        for _ in 0..<(random.onceIn(4) ? 11 : 1 + random.below(11)) where room > 0 {
            let length = random.from(1, to: min(8, room))
            let first = random.from(0, to: 8 - length)
            request.segments.append(
                BlockSegment(
                    reference: UInt32(truncatingIfNeeded: random.next()), firstSector: UInt8(first),
                    lastSector: UInt8(first + length - 1)))
            room -= length
        }
    }

    /// Anywhere on the disk, often at its ends.
    private mutating func placeOnDisk(_ count: UInt64) {
        let last = disk.sectorCount - count
        request.firstSector =
            switch random.below(3) {
            case 0: 0
            case 1: last
            default: random.from(0, to: last)
            }
    }

    /// The rules that this request could break.
    private var breakable: [RequestError] {
        let reads = request.operation == BlockOperation.read.rawValue
        var rules: [RequestError] = [.unknownOperation]
        if request.isDiscard { return rules + [.emptyDiscard, .beyondEndOfDisk, .readOnlyDisk] }
        rules.append(.tooManySegments)
        let isBarrier = request.operation == BlockOperation.writeBarrier.rawValue
        if !reads && (isBarrier || !request.segments.isEmpty) { rules.append(.readOnlyDisk) }
        if request.segments.isEmpty { return rules }
        if reads || request.operation == BlockOperation.write.rawValue { rules.append(.noSegments) }
        return rules + [.segmentBackwards, .segmentBeyondPage, .beyondEndOfDisk]
    }

    /// Breaks exactly one rule, and says which.
    mutating func breakOne() -> RequestError {
        let rule = breakable[random.below(breakable.count)]
        switch rule {
        case .unknownOperation: breakOperation()
        case .noSegments: request.segmentCount = 0
        case .tooManySegments: request.segmentCount = UInt8(random.from(12, to: random.onceIn(2) ? 12 : 255))
        case .segmentBackwards:
            let last = random.from(0, to: 7)
            let first = random.from(last + 1, to: random.onceIn(2) ? last + 1 : 255)
            let index = random.below(request.segments.count)
            request.segments[index].firstSector = UInt8(first)
            request.segments[index].lastSector = UInt8(last)
        case .segmentBeyondPage:
            let last = random.from(8, to: random.onceIn(2) ? 8 : 255)
            let index = random.below(request.segments.count)
            request.segments[index].lastSector = UInt8(last)
            if random.onceIn(2) { request.segments[index].firstSector = UInt8(random.from(0, to: last)) }
        case .beyondEndOfDisk: breakRange()
        case .readOnlyDisk: disk.isReadOnly = true
        case .emptyDiscard: request.discardSectors = 0
        case .unreachableSegments, .innerOperation: break
        }
        return rule
    }

    private mutating func breakOperation() {
        if random.onceIn(2) {
            switch BlockOperation(rawValue: request.operation) {
            case .writeBarrier: return disk.hasBarrier = false
            case .flush: return disk.canFlush = false
            case .discard: return disk.discard = nil
            default: break
            }
        }
        let unknown: [UInt8] = [4, 6, 7, 128, 255, UInt8(random.from(7, to: 255))]
        // The discard's fields become those of a request.
        request.operation = unknown[random.below(unknown.count)]
    }

    /// Too far by one, anywhere behind, or around the end of 64 bits.
    private mutating func breakRange() {
        let count = request.isDiscard ? request.discardSectors : request.segmentSectors
        let firstBad = disk.sectorCount - count + 1
        if request.isDiscard && random.onceIn(3) {
            // A start that is fine, and a count that is not; with luck start and count wrap around.
            let room = disk.sectorCount - request.firstSector
            if room < .max {
                return request.discardSectors = random.onceIn(2) ? room + 1 : random.from(room + 1, to: .max)
            }
        }
        request.firstSector =
            switch random.below(4) {
            case 0: firstBad
            case 1: .max - random.from(0, to: min(count - 1, .max - firstBad))
            default: random.from(firstBad, to: .max)
            }
    }
}

/// Requests of all kinds that have been seen.
private struct Tally {
    var valid = 0
    var broken: [RequestError: Int] = [:]
    var operations: Set<UInt8> = []
}

@Suite("Random requests")
struct RequestPropertyTests {
    static let cases = 100_000

    @Test("One rule broken, and the error is of that rule", arguments: [RingABI.x86_64, .x86_32])
    func oneRule(abi: RingABI) {
        let seed = testSeed("requests with one broken rule, \(abi)")
        var maker = RequestMaker(random: SplitMix64(seed: seed))
        let layout = RingLayout(abi)
        var tally = Tally()
        // One request parsed in place over and over, as the host does it.
        let parsed = ParsedRequest()
        for number in 0..<Self.cases {
            maker.makeValid()
            let expected: RequestError? = maker.random.onceIn(2) ? maker.breakOne() : nil
            let request = maker.request
            var slot = request.slot(layout)
            guard slot.matches(request.slotOfC(abi), count: layout.slotSize) else {
                Issue.record("\(abi), seed \(seed), case \(number): encoders differ for \(request)")
                return
            }
            if maker.random.onceIn(2) { request.addNoise(to: &slot, layout, &maker.random) }
            let error = parsed.parse(slot, layout: layout, disk: maker.disk)
            if let problem = check(parsed, error, request, expected) {
                Issue.record("\(abi), seed \(seed), case \(number): \(problem); \(request), \(maker.disk)")
                return
            }
            if let error { tally.broken[error, default: 0] += 1 } else { tally.valid += 1 }
            tally.operations.insert(request.operation)
        }
        #expect(tally.valid > Self.cases / 3)
        // These two are of indirect requests, which are none of parsing.
        for rule in RequestError.allCases where rule != .unreachableSegments && rule != .innerOperation {
            #expect(tally.broken[rule, default: 0] > Self.cases / 500, "\(rule)")
        }
        #expect(tally.operations.isSuperset(of: [0, 1, 2, 3, 4, 5, 6, 255]))
        print("requests with one broken rule, \(abi): \(tally.valid) valid, \(tally.broken)")
    }

    /// What is wrong with the result, or nil.
    private func check(
        _ parsed: ParsedRequest, _ error: RequestError?, _ request: RequestDescription, _ expected: RequestError?
    ) -> String? {
        if error != expected { return "gave \(error.debugDescription), not \(expected.debugDescription)" }
        if parsed.id != request.id { return "id \(parsed.id)" }
        if parsed.wireOperation != request.operation { return "operation \(parsed.wireOperation)" }
        if error != nil { return parsed.segmentCount == 0 ? nil : "segments of a request that was refused" }
        if parsed.operation.rawValue != request.operation { return "operation \(parsed.operation)" }
        if parsed.firstSector != request.firstSector { return "first sector \(parsed.firstSector)" }
        let sectors = request.isDiscard ? request.discardSectors : request.segmentSectors
        if parsed.sectorCount != sectors { return "\(parsed.sectorCount) sectors" }
        if parsed.secure != request.secure { return "secure \(parsed.secure)" }
        if Int(parsed.segmentCount) != request.segments.count { return "\(parsed.segmentCount) segments" }
        for (index, segment) in request.segments.enumerated() where parsed.segments[index] != segment {
            return "segment \(index): \(parsed.segments[index])"
        }
        return nil
    }

    /// Bytes with no plan behind them, shaped so that each rule is met; a parser written apart reads them too.
    @Test("Random bytes never trap, and mean what C's structs say", arguments: [RingABI.x86_64, .x86_32])
    func randomBytes(abi: RingABI) {
        let seed = testSeed("random slots, \(abi)")
        var random = SplitMix64(seed: seed)
        let layout = RingLayout(abi)
        let parsed = ParsedRequest()
        var compared = 0
        var valid = 0
        for number in 0..<1_000_000 {
            var slot = SlotBytes.random(&random)
            let shaped = number % 8 != 0
            if shaped { shape(&slot, layout, &random) }
            let disk = randomDisk(&random)
            let error = parsed.parse(slot, layout: layout, disk: disk)
            if error == nil { valid += 1 }
            // The second opinion is slow; one in four is enough of them.
            guard number % 4 == 1 else { continue }
            compared += 1
            let second = meaning(of: slot, abi: abi, disk: disk)
            guard (parsed.id, parsed.wireOperation, parsed.meaning(error)) == second else {
                Issue.record("seed \(seed), slot \(number): \(parsed.meaning(error)), C: \(second), \(disk)")
                return
            }
        }
        #expect(valid > 10_000 && compared > 200_000)
        print("random slots, \(abi): 1000000 parsed, \(valid) valid, \(compared) compared")
    }

    private func shape(_ slot: inout SlotBytes, _ layout: RingLayout, _ random: inout SplitMix64) {
        let dice = random.next()
        slot.store(UInt8(truncatingIfNeeded: dice & 7), at: 0)
        slot.store(UInt8(truncatingIfNeeded: (dice >> 8) % 14), at: 1)
        if dice & 0x10 == 0 { slot.store((dice >> 16) & 0xFFF, at: layout.sectorOffset) }
        if dice & 0x20 == 0 { slot.store((dice >> 28) & 0xFFF, at: layout.segmentsOffset) }
        // Segments that are mostly right, sometimes at the edge.
        let pattern = random.next()
        for index in 0..<11 {
            let offset = layout.segmentsOffset + 8 * index + 4
            let bits = pattern >> UInt64(index * 5)
            slot.store(UInt8(truncatingIfNeeded: bits & 3), at: offset)
            slot.store(UInt8(truncatingIfNeeded: (bits & 0x1F == 0x1F) ? 8 : 2 + ((bits >> 2) & 7) % 6), at: offset + 1)
        }
    }

    private func randomDisk(_ random: inout SplitMix64) -> OfferedFeatures {
        let dice = random.next()
        let size: UInt64 = dice & 0xC0 == 0 ? .max - (dice >> 32) & 0xFF : (dice >> 8) & 0x1FFF
        return OfferedFeatures(
            sectorCount: size, isReadOnly: dice & 3 == 0, discard: dice & 0xC != 0 ? DiscardSupport() : nil,
            hasBarrier: dice & 0x10 != 0,
            canFlush: dice & 0x20 != 0)
    }
}
