// SPDX-License-Identifier: BSD-2-Clause
// Answers in the bytes of a dead process and the stream behind them.
import NBD
import Testing
import TestSupport

/// Headers of the end of a reply, in each form that a server may choose.
private func headers(_ cookie: UInt64) -> [[UInt8]] {
    [
        Reply.simple(cookie), Reply.simple(cookie, error: 5), Reply.done(cookie),
        Reply.error(cookie, 5, "no", isLast: true),
        Reply.error(cookie, 28, at: 0, isLast: true),
    ]
}

private func unanswered(_ cookies: [UInt64], buffer: [UInt8], stream: [UInt8], piece: Int = .max) -> Set<UInt64> {
    var scan = AnswerScan(outstanding: cookies)
    scan.scanBuffer(buffer)
    var place = 0
    while place < stream.count {
        let end = min(stream.count, place + min(piece, stream.count - place))
        scan.append(Array(stream[place..<end]))
        place = end
    }
    return scan.unanswered
}

@Suite struct AnswerScanTests {
    private let cookies = Cookies(secret: 0x1234_5678_9abc_def0)

    /// Each place at which a header can be cut, each form, anywhere in the buffer, in pieces of each size.
    @Test func aHeaderIsFoundWhereverItIsCut() {
        var random = SplitMix64(seed: testSeed("AnswerScanTests"))
        let all = (0..<64).map { cookies.cookie(of: $0) }
        for header in headers(all[9]) {
            for cut in 0...16 {
                for piece in [1, 2, 3, 7, 15, 16, 100] {
                    let before = random.bytes(random.below(60))
                    // The process had received no more; what follows is older.
                    let old = random.bytes(random.below(60))
                    let buffer = before + header.prefix(cut) + old
                    let stream = Array(header.dropFirst(cut)) + random.bytes(random.below(40))
                    let found = unanswered(all, buffer: buffer, stream: stream, piece: piece)
                    #expect(found == Set(all).subtracting([all[9]]), "cut \(cut), pieces of \(piece)")
                }
            }
        }
    }

    /// In the stream, at any place and in any pieces.
    @Test func aHeaderIsFoundAnywhereInTheStream() {
        for seed in testSeeds("AnswerScanTests", count: 100) {
            var random = SplitMix64(seed: seed)
            let all = (0..<200).map { cookies.cookie(of: random.next() &+ $0) }
            var (stream, answered): ([UInt8], Set<UInt64>) = (random.bytes(random.below(30)), [])
            for cookie in all where random.onceIn(2) {
                stream += random.pick(headers(cookie)) + random.bytes(random.below(50))
                answered.insert(cookie)
            }
            let split = random.below(stream.count + 1)
            let found = unanswered(
                all, buffer: Array(stream.prefix(split)), stream: Array(stream.dropFirst(split)),
                piece: 1 + random.below(60))
            #expect(found == Set(all).subtracting(answered), "seed \(seed)")
        }
    }

    /// Cookies and headers that are much alike, in parts that fit each other in many ways: what is found is what trying everything finds.
    @Test func itFindsWhatTryingEverythingFinds() {
        for seed in testSeeds("AnswerScanTests", count: 400) {
            var random = SplitMix64(seed: seed)
            let all =
                (0..<8).map { 0x6744_6698_4141_4100 | UInt64($0) } + (0..<8).map { 0x4141_4141_4141_4100 | UInt64($0) }
            var parts: [[UInt8]] = []
            for _ in 0..<8 {
                let header = random.pick(headers(random.pick(all)))
                let start = random.onceIn(2) ? 0 : random.below(16)
                parts.append(Array(header[start..<16].prefix(random.onceIn(2) ? 16 : random.below(16))))
            }
            let bytes = parts.flatMap { $0 }
            let split = random.below(bytes.count + 1)
            let (buffer, stream) = (Array(bytes.prefix(split)), Array(bytes.dropFirst(split)))
            let found = unanswered(all, buffer: buffer, stream: stream, piece: 1 + random.below(20))
            let expected = Set(all).subtracting(AnswerOracle.answered(all, buffer: buffer, stream: stream))
            #expect(found == expected, "seed \(seed)")
        }
    }

    /// A chunk that is not the last, data, extents, another magic number, and a cookie alone are no answers.
    @Test func whatIsNoEndOfAReplyIsNoAnswer() {
        let cookie = cookies.cookie(of: 1)
        for bytes in [
            Reply.error(cookie, 5), Reply.chunk(cookie, type: 0, isLast: false),
            Reply.data(cookie, at: 0, [1], isLast: true),
            Reply.hole(cookie, at: 0, 1, isLast: true), wire(UInt32(0x6744_6699)) + wire(UInt32(0)) + wire(cookie),
            wire(UInt32(0x2560_9513)) + wire(UInt32(0)) + wire(cookie), wire(cookie),
            Array(Reply.simple(cookie).dropFirst()),
        ] {
            #expect(unanswered([cookie], buffer: bytes, stream: []) == [cookie])
            for cut in 0...bytes.count {
                let found = unanswered(
                    [cookie], buffer: [1] + bytes.prefix(cut) + [2], stream: Array(bytes.dropFirst(cut)))
                #expect(found == [cookie], "cut \(cut) of \(bytes)")
            }
        }
    }

    /// A header whose parts are of two requests is none; nor is one whose end does not begin the stream.
    @Test func partsThatDoNotFitAreNoAnswer() {
        let all = (0..<32).map { cookies.cookie(of: $0) }
        for cut in 9...15 {
            let (one, other) = (Reply.simple(all[1]), Reply.simple(all[2]))
            let found = unanswered(all, buffer: Array(one.prefix(cut)), stream: Array(other.dropFirst(cut)))
            #expect(found == Set(all), "cut \(cut)")
        }
        for cut in 1...15 {
            let header = Reply.simple(all[1])
            let shifted = unanswered(all, buffer: Array(header.prefix(cut)), stream: [7] + header.dropFirst(cut))
            // A byte more within the error makes another error.
            #expect(shifted == Set(all) || (5...8).contains(cut), "cut \(cut)")
            // The part in the buffer is missing.
            let rest = Array(header.dropFirst(cut))
            #expect(unanswered(all, buffer: [UInt8](repeating: 1, count: 100), stream: rest) == Set(all))
        }
    }

    /// A guest that knows the protocol, and reads what it wrote: magic numbers everywhere, and cookies that it guesses.
    @Test func dataOfGuestsAreNoAnswers() {
        for seed in testSeeds("AnswerScanTests", count: 50) {
            var random = SplitMix64(seed: seed)
            let own = Cookies(secret: random.next())
            let first = random.next() >> 20
            let all = (0..<256).map { own.cookie(of: first + $0) }
            var data: [UInt8] = []
            while data.count < 20_000 {
                let guess = random.onceIn(2) ? first + random.below64(256) : random.next()
                let cookie = random.onceIn(2) ? guess : Cookies(secret: random.next()).cookie(of: guess)
                data += random.pick(headers(cookie)).prefix(1 + random.below(20))
            }
            let split = random.below(data.count)
            let found = unanswered(
                all, buffer: Array(data.prefix(split)), stream: Array(data.dropFirst(split)),
                piece: 1 + random.below(5000))
            #expect(found == Set(all), "seed \(seed)")
        }
    }

    /// Old answers of the connection stand in the buffer, too: their requests are not in question, and no two have the same cookie.
    @Test func oldAnswersAreNoAnswers() {
        let old = (0..<1000).flatMap { Reply.simple(cookies.cookie(of: $0)) }
        let all = (1000..<1100).map { cookies.cookie(of: $0) }
        #expect(unanswered(all, buffer: old, stream: old) == Set(all))
    }

    @Test func nothingIsAnsweredByNothing() {
        #expect(unanswered([1, 2], buffer: [], stream: []) == [1, 2])
        #expect(unanswered([], buffer: Reply.simple(1), stream: []).isEmpty)
    }
}

extension SplitMix64 {
    fileprivate mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
    }
    fileprivate mutating func below64(_ bound: UInt64) -> UInt64 { next() % bound }
}
