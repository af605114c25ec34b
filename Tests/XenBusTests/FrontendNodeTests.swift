// SPDX-License-Identifier: BSD-2-Clause
import TestSupport
import Testing
import XenBus

@Suite struct FrontendNodeTests {
    static let limits = FrontendLimits(maximumRingPageOrder: 5, maximumQueueCount: 4)
    /// As Linux blkfront writes it for one queue of one page.
    static let linux: Node = [
        "ring-ref": "8", "event-channel": "15", "protocol": RingProtocol.supported[0].rawValue,
        "feature-persistent": "1",
    ]
    static let twoQueues: Node = [
        "multi-queue-num-queues": "2", "ring-page-order": "1",
        "queue-0/ring-ref0": "1", "queue-0/ring-ref1": "2", "queue-0/event-channel": "7",
        "queue-1/ring-ref0": "3", "queue-1/ring-ref1": "4", "queue-1/event-channel": "8",
    ]

    static func read(_ node: Node, limits: FrontendLimits = limits) throws -> FrontendNode {
        try FrontendNode(limits: limits, read: reader(node))
    }

    @Test func onePageAsLinuxWritesIt() throws {
        let node = try Self.read(Self.linux)
        #expect(node.rings == [FrontendRing(pageReferences: [8], eventChannel: 15)])
        #expect(node.ringProtocol == RingProtocol.supported[0])
        #expect(node.usesPersistentGrants && node.trustsBackend && !node.understandsLargeSectors)
    }

    @Test(arguments: [
        (["ring-ref": "9"], [UInt32(9)]),
        (["ring-ref0": "9"], [9]),
        (["ring-page-order": "0", "ring-ref": "9"], [9]),
        (["ring-page-order": "0", "ring-ref0": "9"], [9]),
        (["num-ring-pages": "1", "ring-ref": "9"], [9]),
        (["num-ring-pages": "1", "ring-ref0": "9"], [9]),
        (["ring-page-order": "0", "num-ring-pages": "1", "ring-ref": "9", "ring-ref0": "5"], [9]),
        (["ring-page-order": "1", "ring-ref0": "9", "ring-ref1": "5"], [9, 5]),
        (["num-ring-pages": "2", "ring-ref0": "9", "ring-ref1": "5"], [9, 5]),
        (
            ["ring-page-order": "1", "num-ring-pages": "2", "ring-ref0": "9", "ring-ref1": "5", "ring-ref": "1"],
            [9, 5]
        ),
        (["ring-ref": "4294967295"], [.max]),
        (["ring-ref": "0000000009"], [9]),
    ])
    func ringSizesOfBothSchemes(_ keys: Node, _ references: [UInt32]) throws {
        let node = try Self.read(keys.merging(["event-channel": "1"]) { $1 })
        #expect(node.rings == [FrontendRing(pageReferences: references, eventChannel: 1)])
    }

    @Test func theLargestRing() throws {
        var node: Node = ["ring-page-order": "5", "event-channel": "131071"]
        for page in 0..<32 { node["ring-ref\(page)"] = String(page + 100) }
        #expect(try Self.read(node).rings.first?.pageReferences == (100..<132).map { UInt32($0) })
    }

    @Test func severalQueues() throws {
        let node = try Self.read(Self.twoQueues)
        #expect(
            node.rings == [
                FrontendRing(pageReferences: [1, 2], eventChannel: 7),
                FrontendRing(pageReferences: [3, 4], eventChannel: 8),
            ])
        let one = try Self.read(Self.linux.merging(["multi-queue-num-queues": "1"]) { $1 })
        #expect(one.rings.count == 1, "one queue stands at the top")
    }

    @Test func aFrontendThatDoesNotSayItsLayoutMeansX86_32() throws {
        #expect(try Self.read(["ring-ref": "1", "event-channel": "1"]).ringProtocol == RingProtocol.assumed)
        #if arch(x86_64)
            #expect(RingProtocol.assumed == .x86_32)
            #expect(RingProtocol.supported == [.x86_32, .x86_64])
        #endif
    }

    @Test func flagsAreNonzeroNumbers() throws {
        let node = try Self.read(
            Self.linux.merging(["feature-persistent": "0", "feature-large-sector-size": "2", "trusted": "0"]) { $1 })
        #expect(!node.usesPersistentGrants && node.understandsLargeSectors && !node.trustsBackend)
    }

    @Test(
        arguments: [
            ("event-channel", nil, NegotiationError.Rule.missing),
            ("event-channel", "", .notDecimal),
            ("event-channel", "-1", .notDecimal),
            ("event-channel", "0", .noEventChannel),
            ("event-channel", "131072", .numberTooLarge(maximum: 131071)),
            ("event-channel", "4294967296", .numberTooLarge(maximum: 131071)),
            ("ring-ref", nil, .missing),
            ("ring-ref", "8 ", .notDecimal),
            ("ring-ref", "4294967296", .numberTooLarge(maximum: 0xffff_ffff)),
            ("ring-ref", "18446744073709551616", .numberTooLarge(maximum: 0xffff_ffff)),
            ("ring-page-order", "6", .ringTooLarge(maximumPages: 32)),
            ("ring-page-order", "32", .ringTooLarge(maximumPages: 32)),
            ("ring-page-order", "64", .ringTooLarge(maximumPages: 32)),
            ("ring-page-order", "4294967295", .ringTooLarge(maximumPages: 32)),
            ("ring-page-order", "4294967296", .numberTooLarge(maximum: 0xffff_ffff)),
            ("ring-page-order", "x", .notDecimal),
            ("num-ring-pages", "0", .ringPagesNotPowerOfTwo),
            ("num-ring-pages", "3", .ringPagesNotPowerOfTwo),
            ("num-ring-pages", "33", .ringPagesNotPowerOfTwo),
            ("num-ring-pages", "64", .ringTooLarge(maximumPages: 32)),
            ("num-ring-pages", "2147483648", .ringTooLarge(maximumPages: 32)),
            ("protocol", "", .unknownProtocol(expected: RingProtocol.supported)),
            ("protocol", "x86_64-abi\0", .unknownProtocol(expected: RingProtocol.supported)),
            ("protocol", "powerpc64-abi", .unknownProtocol(expected: RingProtocol.supported)),
            ("multi-queue-num-queues", "0", .noQueues),
            ("multi-queue-num-queues", "5", .tooManyQueues(maximum: 4)),
            ("multi-queue-num-queues", "4294967295", .tooManyQueues(maximum: 4)),
            ("feature-persistent", "yes", .notDecimal),
            ("feature-large-sector-size", "", .notDecimal),
            ("trusted", "4294967296", .numberTooLarge(maximum: 0xffff_ffff)),
        ] as [(String, String?, NegotiationError.Rule)])
    func brokenRulesAreNamed(_ key: String, _ value: String?, _ rule: NegotiationError.Rule) {
        var node = Self.linux
        node[key] = value
        let error = #expect(throws: NegotiationError.self) { try Self.read(node) }
        #expect(error == NegotiationError(rule, key: key, value: value.map { Array($0.utf8) }))
    }

    @Test func theTwoSizesMustAgree() {
        let node = Self.linux.merging(["ring-page-order": "1", "num-ring-pages": "4"]) { $1 }
        let error = #expect(throws: NegotiationError.self) { try Self.read(node) }
        #expect(error?.rule == .ringSizesContradict)
    }

    @Test func aPageOfTheRingThatIsMissingIsNamed() {
        var node = Self.twoQueues
        node["queue-1/ring-ref1"] = nil
        #expect(throws: NegotiationError(.missing, key: "queue-1/ring-ref1")) { try Self.read(node) }
    }

    @Test(arguments: [
        ("queue-0/ring-ref1", "1", NegotiationError.Rule.ringReferenceRepeated),
        ("queue-1/ring-ref0", "1", .ringReferenceRepeated),
        ("queue-1/event-channel", "7", .eventChannelRepeated),
    ])
    func nothingIsSharedBetweenPagesAndQueues(_ key: String, _ value: String, _ rule: NegotiationError.Rule) {
        let error = #expect(throws: NegotiationError.self) {
            try Self.read(Self.twoQueues.merging([key: value]) { $1 })
        }
        #expect(error?.rule == rule)
    }

    @Test func limitsHoldWhateverIsConfigured() {
        let wild = FrontendLimits(maximumRingPageOrder: 1000, maximumQueueCount: .max)
        #expect(wild.maximumRingPageCount == 32)
        #expect(wild.maximumQueueCount == 64)
        let none = FrontendLimits(maximumRingPageOrder: -1, maximumQueueCount: 0)
        #expect(none.maximumRingPageCount == 1)
        #expect(none.maximumQueueCount == 1)
        let error = #expect(throws: NegotiationError.self) {
            try Self.read(Self.linux.merging(["ring-page-order": "1"]) { $1 }, limits: none)
        }
        #expect(error?.rule == .ringTooLarge(maximumPages: 1))
    }

    @Test func whatIsWrittenIsReadAgain() throws {
        var random = SplitMix64(seed: 1)
        for order in 0...5 {
            for queues in 1...4 {
                var next: UInt32 = 1
                let rings = (0..<queues).map { queue in
                    let references = (0..<(1 << order)).map { _ in
                        next += UInt32(random.next() % 1000 + 1)
                        return next
                    }
                    return FrontendRing(pageReferences: references, eventChannel: UInt32(queue + 1))
                }
                let node = FrontendNode(
                    rings: rings, ringProtocol: random.pick(RingProtocol.supported),
                    usesPersistentGrants: random.chance(50), understandsLargeSectors: random.chance(50),
                    trustsBackend: random.chance(50))
                let written = Node(node.entries.map { ($0.key, $0.value) }) { $1 }
                #expect(try Self.read(written) == node)
                // Who fetches the keys before knows which they are.
                let keys = FrontendNode.keys(limits: Self.limits, known: reader(written))
                #expect(try Self.read(written.filter { keys.contains($0.key) }) == node)
            }
        }
    }

    @Test func anyKeyWithAnyHostileValueIsAValueOrATypedError() {
        for base in [Self.linux, Self.twoQueues] {
            let keys = Set(base.keys).union(["ring-page-order", "num-ring-pages", "multi-queue-num-queues", "trusted"])
            for key in keys {
                for value in hostileValues {
                    let read = { name in name == key ? value : base[name].map { Array($0.utf8) } }
                    let keys = FrontendNode.keys(limits: Self.limits, known: read)
                    #expect(keys.count <= 7 + 4 * 34)
                    do throws(NegotiationError) {
                        _ = try FrontendNode(limits: Self.limits) { name in
                            #expect(keys.contains(name), "\(key)")
                            return read(name)
                        }
                    } catch {
                        #expect(!error.description.isEmpty)
                    }
                }
            }
        }
    }

    @Test func aReadingAsksForABoundedNumberOfKeys() {
        var asked = 0
        let limits = FrontendLimits(maximumRingPageOrder: 5, maximumQueueCount: 64)
        _ = try? FrontendNode(limits: limits) { key in
            asked += 1
            if key == "multi-queue-num-queues" { return Array("64".utf8) }
            if key == "ring-page-order" { return Array("5".utf8) }
            return key == "num-ring-pages" || key == "protocol" ? nil : Array(String(asked).utf8)
        }
        #expect(asked <= 7 + 64 * (32 + 3))
    }
}
