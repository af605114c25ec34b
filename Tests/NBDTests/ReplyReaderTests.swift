// SPDX-License-Identifier: BSD-2-Clause
// Replies of servers that keep the rules, in any order and pieces, and of servers that break each of them.
import NBD
import Testing
import TestSupport

/// One read of 4096 bytes at 8192 with cookie 5, one write with cookie 6, one block status with cookie 7.
private func world(isStructured: Bool = true) -> ReplyWorld {
    var world = ReplyWorld(isStructured: isStructured, context: isStructured ? 1 : nil)
    world.send(.read, 5, offset: 8192, length: 4096)
    world.send(.write, 6, offset: 0, length: 512)
    world.send(.blockStatus, 7, offset: 0, length: 65536)
    return world
}

private func bytes(_ count: Int, _ value: UInt8) -> [UInt8] { [UInt8](repeating: value, count: count) }

/// The rule that a stream breaks; nil: none.
private func broken(_ stream: [UInt8], isStructured: Bool = true) -> ProtocolError? {
    var world = world(isStructured: isStructured)
    var random = SplitMix64(seed: 1)
    let error = world.take(stream, &random)
    #expect(world.faults.isEmpty)
    return error
}

/// Answers after a stream that breaks no rule.
private func answers(_ stream: [UInt8], isStructured: Bool = true) -> [Int: Int32] {
    var world = world(isStructured: isStructured)
    var random = SplitMix64(seed: 2)
    #expect(world.take(stream, &random) == nil)
    #expect(world.faults.isEmpty)
    return world.answers
}

@Suite struct ReplyReaderTests {
    @Test func aSimpleReplyBringsTheDataOfARead() {
        var world = world(isStructured: false)
        var random = SplitMix64(seed: 3)
        #expect(world.take(Reply.simple(6) + Reply.simple(5, data: bytes(4096, 7)), &random) == nil)
        #expect(world.answers == [0: 0, 1: 0] && world.data[0] == bytes(4096, 7) && world.faults.isEmpty)
    }

    @Test func aSimpleReplyWithAnErrorHasNoData() {
        #expect(answers(Reply.simple(5, error: 5) + Reply.simple(6, error: 28), isStructured: false) == [0: 5, 1: 28])
    }

    /// Numbers that the specification has are Linux's; no other one is success.
    @Test func errorsAreThoseOfLinux() {
        let known: [(UInt32, Int32)] = [
            (1, 1), (5, 5), (12, 12), (22, 22), (28, 28), (75, 75), (95, 95), (108, 108), (2, 22), (256, 22),
            (.max, 22),
            (1 << 31, 22),
        ]
        for (wire, expected) in known {
            #expect(answers(Reply.simple(6, error: wire)) == [1: expected])
            #expect(answers(Reply.error(6, wire, isLast: true)) == [1: expected])
        }
    }

    @Test func chunksMayComeInAnyOrder() {
        let chunks = (0..<8).map { Reply.data(5, at: 8192 + UInt64($0) * 512, bytes(512, UInt8($0))) }
        var random = SplitMix64(seed: 4)
        for order in [[7, 6, 5, 4, 3, 2, 1, 0], [0, 2, 4, 6, 1, 3, 5, 7], [3, 0, 7, 1, 6, 2, 5, 4]] {
            var world = world()
            #expect(world.take(order.flatMap { chunks[$0] } + Reply.done(5), &random) == nil)
            #expect(world.answers == [0: 0] && world.data[0] == (0..<8).flatMap { bytes(512, UInt8($0)) })
        }
    }

    @Test func holesAreZeroes() {
        var world = world()
        var random = SplitMix64(seed: 5)
        let stream =
            Reply.hole(5, at: 8192, 1024) + Reply.simple(6) + Reply.data(5, at: 9216, bytes(3072, 9), isLast: true)
        #expect(world.take(stream, &random) == nil)
        #expect(world.answers == [0: 0, 1: 0] && world.data[0] == bytes(1024, 0) + bytes(3072, 9))
    }

    @Test func theFirstOfSeveralErrorsCounts() {
        let text = "medium error\u{1b}[2J"
        let stream =
            Reply.error(5, 5, text, at: 9000) + Reply.error(5, 28, at: 9100) + Reply.hole(5, at: 8192, 100)
            + Reply.done(5)
        #expect(answers(stream) == [0: 5])
        var world = world()
        var random = SplitMix64(seed: 6)
        #expect(world.take(stream, &random) == nil)
        _ = world.take(Reply.error(6, 5, text, isLast: true), &random)
        #expect(world.reader.errorText == "medium error?[2J")
    }

    /// An error of a kind that is not known is an error.
    @Test func unknownErrorChunksAreErrors() {
        #expect(answers(Reply.error(6, 5, "x", isLast: true, type: 0x8123)) == [1: 5])
        #expect(broken(Reply.chunk(6, type: 0x8123, isLast: true, [0, 0])) == .chunkLength(type: 0x8123, 2))
    }

    @Test func anErrorMayBeTheLastChunkOrNot() {
        #expect(answers(Reply.error(5, 5, isLast: true)) == [0: 5])
        #expect(answers(Reply.error(5, 5) + Reply.hole(5, at: 8192, 4096, isLast: true)) == [0: 5])
        #expect(answers(Reply.hole(5, at: 8192, 4096) + Reply.error(5, 5, at: 8192, isLast: true)) == [0: 5])
    }

    @Test func extentsAreDelivered() {
        var world = world()
        var random = SplitMix64(seed: 7)
        #expect(world.take(Reply.extents(7, [(4096, 3), (1 << 20, 0)]), &random) == nil)
        #expect(world.answers == [2: 0])
        // The last one may go beyond the request.
        #expect(world.extents[2] == [Extent(length: 4096, state: 3), Extent(length: 61440, state: 0)])
    }

    /// As many as a server likes, of which the first are kept.
    @Test func extentsAreBounded() {
        var world = ReplyWorld(isStructured: true, context: 1)
        world.send(.blockStatus, 7, offset: 0, length: 1 << 30)
        var random = SplitMix64(seed: 8)
        let many = [(UInt32, UInt32)](repeating: (512, 0), count: 100_000)
        #expect(world.take(Reply.extents(7, many, isLast: false) + Reply.done(7), &random) == nil)
        #expect(world.answers == [0: 0] && world.extents[0]?.count == ReplyReader.keptExtents)
        let tooLong = Array(Reply.extents(7, []).prefix(16)) + wire(UInt32(4 + 8 * ((1 << 20) + 1))) + wire(UInt32(1))
        #expect(broken(tooLong) == .chunkLength(type: 5, 4 + 8 * ((1 << 20) + 1)))
    }

    @Test func extentsBreakNoRule() {
        #expect(broken(Reply.extents(7, context: 2, [(512, 0)])) == .context(2))
        #expect(broken(Reply.extents(7, [(0, 0)])) == .extents)
        #expect(broken(Reply.extents(7, [(65536, 0), (512, 0)])) == .extents)
        #expect(broken(Reply.extents(7, [])) == .chunkLength(type: 5, 4))
        #expect(broken(Reply.extents(7, [(512, 0)], isLast: false) + Reply.extents(7, [(512, 0)])) == .context(1))
        #expect(broken(Reply.extents(6, [(512, 0)])) == .chunk(type: 5, .write))
        #expect(broken(Reply.done(7)) == .incomplete(.blockStatus))
        #expect(broken(Reply.simple(7)) == .simpleReply(.blockStatus))
        #expect(answers(Reply.simple(7, error: 22)) == [2: 22])
        #expect(broken(Reply.simple(7), isStructured: false) == .simpleReply(.blockStatus))
    }

    @Test func anUnknownCookieIsRefused() {
        #expect(broken(Reply.simple(99)) == .unknownCookie)
        #expect(broken(Reply.done(99)) == .unknownCookie)
        #expect(broken(Reply.simple(6) + Reply.simple(6)) == .unknownCookie)
        #expect(broken(Reply.data(99, at: 0, [1])) == .unknownCookie)
    }

    @Test func aWrongMagicNumberIsRefused() {
        #expect(broken(bytes(16, 0)) == .magic(0))
        #expect(broken(Reply.simple(6) + bytes(16, 0x67)) == .magic(0x6767_6767))
    }

    @Test func chunksOutsideOfTheRequestAreRefused() {
        #expect(broken(Reply.data(5, at: 8191, [1])) == .outside)
        #expect(broken(Reply.data(5, at: 8192 + 4096, [1])) == .outside)
        #expect(broken(Reply.data(5, at: 8192 + 4095, [1, 2])) == .outside)
        #expect(broken(Reply.data(5, at: .max, [1])) == .outside)
        #expect(broken(Reply.hole(5, at: 8192, .max)) == .outside)
        #expect(broken(Reply.hole(5, at: 0, 16384)) == .outside)
        #expect(broken(Reply.error(5, 5, at: 8191)) == .outside)
        #expect(broken(Reply.error(5, 5, at: 8192 + 4096)) == .outside)
        #expect(broken(Reply.chunk(5, type: 1, isLast: true, wire(UInt64(8192)) + bytes(4097, 1))) == .outside)
    }

    /// Memory that nothing was received into never shows as data.
    @Test func aReadWithoutAllBytesIsNeverAnsweredWithSuccess() {
        #expect(broken(Reply.done(5)) == .incomplete(.read))
        #expect(broken(Reply.data(5, at: 8192, bytes(4095, 1), isLast: true)) == .incomplete(.read))
        #expect(broken(Reply.hole(5, at: 8193, 4095) + Reply.done(5)) == .incomplete(.read))
        #expect(
            broken(Reply.hole(5, at: 8192, 100) + Reply.hole(5, at: 8392, 3896) + Reply.done(5)) == .incomplete(.read))
    }

    @Test func bytesThatArriveTwiceAreRefused() {
        #expect(broken(Reply.hole(5, at: 8192, 512) + Reply.hole(5, at: 8192, 512)) == .overlap)
        #expect(broken(Reply.hole(5, at: 8292, 512) + Reply.data(5, at: 8192, bytes(101, 1))) == .overlap)
        #expect(broken(Reply.hole(5, at: 8192, 4096) + Reply.data(5, at: 9000, [1])) == .overlap)
    }

    @Test func moreThanEightSeparatePlacesAreRefused() {
        let apart = (0..<9).map { Reply.hole(5, at: 8192 + UInt64($0) * 100, 50) }
        #expect(broken(Array(apart.prefix(8).joined())) == nil)
        #expect(broken(Array(apart.joined())) == .scattered)
    }

    @Test func dataForWritesAreRefused() {
        #expect(broken(Reply.data(6, at: 0, [1])) == .chunk(type: 1, .write))
        #expect(broken(Reply.hole(6, at: 0, 512)) == .chunk(type: 2, .write))
        #expect(broken(Reply.chunk(5, type: 3, isLast: true)) == .chunk(type: 3, .read))
    }

    @Test func chunkLengthsAreThoseOfTheirTypes() {
        #expect(broken(Reply.chunk(5, type: 0, isLast: true, [0])) == .chunkLength(type: 0, 1))
        #expect(broken(Reply.chunk(5, type: 1, isLast: true, wire(UInt64(8192)))) == .chunkLength(type: 1, 8))
        #expect(broken(Reply.chunk(5, type: 2, isLast: true, bytes(13, 0))) == .chunkLength(type: 2, 13))
        #expect(broken(Reply.hole(5, at: 8192, 0)) == .chunkLength(type: 2, 0))
        #expect(broken(Reply.chunk(5, type: 0x8001, isLast: true, bytes(5, 0))) == .chunkLength(type: 0x8001, 5))
        let long = wire(UInt32(5)) + wire(UInt16(9)) + bytes(8, 65)
        #expect(broken(Reply.chunk(5, type: 0x8001, isLast: true, long)) == .chunkLength(type: 0x8001, 14))
        #expect(broken(Reply.error(6, 5, String(repeating: "x", count: 9000))) == .chunkLength(type: 0x8001, 9006))
    }

    @Test func anErrorChunkHasAnError() { #expect(broken(Reply.error(5, 0, isLast: true)) == .errorZero) }

    @Test func anEmptyChunkIsTheLast() { #expect(broken(Reply.chunk(5, type: 0, isLast: false)) == .emptyChunk) }

    @Test func structuredRepliesAreThoseThatWereAgreedOn() {
        #expect(broken(Reply.simple(5, error: 5)) == .simpleReply(.read))
        #expect(broken(Reply.simple(5, data: bytes(4096, 1))) == .simpleReply(.read))
        #expect(broken(Reply.done(6), isStructured: false) == .structuredReply)
        #expect(broken(Reply.error(6, 5) + Reply.simple(6)) == .simpleReplyAfterChunks)
    }

    @Test func nothingIsReadAfterAnError() {
        var world = world()
        var random = SplitMix64(seed: 9)
        #expect(world.take(Reply.simple(99), &random) == .unknownCookie)
        #expect(world.take(Reply.simple(6), &random) == .failedBefore)
    }

    /// Several requests at once, answered in any order, cut anywhere: all bytes are where they belong.
    @Test func aServerThatKeepsTheRulesIsUnderstood() {
        for seed in testSeeds("ReplyReaderTests", count: 300) {
            var random = SplitMix64(seed: seed)
            let isStructured = !random.onceIn(4)
            var world = ReplyWorld(isStructured: isStructured, context: isStructured ? 9 : nil)
            var rows: [[[UInt8]]] = []
            var expected: [(data: [UInt8], error: Int32)] = []
            for number in 0..<1 + random.below(6) {
                let cookie = random.next()
                let offset = random.from(0, to: 1 << 50)
                let length = UInt32(random.from(1, to: 9000))
                let kind = random.pick([Command.Kind.read, .read, .write, .flush, .trim])
                let slot = world.send(kind, cookie, offset: offset, length: length)
                #expect(slot == number)
                var data: [UInt8] = []
                var row: [[UInt8]] = []
                let error: UInt32 = random.onceIn(5) ? 5 : 0
                if kind == .read, isStructured {
                    for part in ReplyPlan.parts(length, &random) {
                        let isHole = random.onceIn(3)
                        let bytes = (0..<part).map { _ in isHole ? 0 : UInt8(truncatingIfNeeded: random.next()) }
                        let place = offset + UInt64(data.count)
                        row.append(
                            isHole ? Reply.hole(cookie, at: place, UInt32(part)) : Reply.data(cookie, at: place, bytes))
                        data += bytes
                    }
                    // Up to seven places are free of each other in any order.
                    if row.count < 8 { ReplyPlan.shuffle(&row, &random) }
                    if error != 0 {
                        row.insert(Reply.error(cookie, error, "bad", at: offset), at: random.below(row.count + 1))
                    }
                    row.append(Reply.done(cookie))
                } else {
                    if kind == .read, error == 0 {
                        data = (0..<length).map { _ in UInt8(truncatingIfNeeded: random.next()) }
                    }
                    row.append(
                        isStructured && random.onceIn(2)
                            ? error == 0 ? Reply.done(cookie) : Reply.error(cookie, error, isLast: true)
                            : Reply.simple(cookie, error: error, data: data))
                }
                rows.append(row)
                expected.append((data, Int32(error)))
            }
            let error = world.take(ReplyPlan.interleave(rows, &random), &random)
            #expect(error == nil && world.faults.isEmpty, "seed \(seed): \(String(describing: error)) \(world.faults)")
            for (slot, wanted) in expected.enumerated() {
                #expect(world.answers[slot] == wanted.error, "seed \(seed)")
                #expect(wanted.error != 0 || world.data[slot] == wanted.data, "seed \(seed)")
            }
        }
    }
}

/// How a server answers, by chance.
private enum ReplyPlan {
    static func parts(_ length: UInt32, _ random: inout SplitMix64) -> [Int] {
        var left = Int(length)
        var parts: [Int] = []
        while left > 0 {
            parts.append(1 + random.below(random.onceIn(2) ? left : min(left, 2000)))
            left -= parts.last ?? 0
        }
        return parts
    }

    static func shuffle(_ row: inout [[UInt8]], _ random: inout SplitMix64) {
        for index in row.indices { row.swapAt(index, random.below(row.count)) }
    }

    static func interleave(_ rows: [[[UInt8]]], _ random: inout SplitMix64) -> [UInt8] {
        var rows = rows.filter { !$0.isEmpty }
        var stream: [UInt8] = []
        while !rows.isEmpty {
            let row = random.below(rows.count)
            stream += rows[row].removeFirst()
            rows.removeAll { $0.isEmpty }
        }
        return stream
    }
}
