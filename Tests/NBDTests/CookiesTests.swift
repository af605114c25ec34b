// SPDX-License-Identifier: BSD-2-Clause
// Cookies of a connection, and requests as bytes.
import NBD
import Testing
import TestSupport

@Suite struct CookiesTests {
    @Test func everyNumberComesBack() {
        var random = SplitMix64(seed: testSeed("CookiesTests"))
        for _ in 0..<10_000 {
            let cookies = Cookies(secret: random.next())
            for number in [random.next(), random.next() >> 40, 0, .max] {
                #expect(cookies.number(of: cookies.cookie(of: number)) == number)
                #expect(cookies.cookie(of: cookies.number(of: number)) == number)
            }
        }
    }

    /// Parts of a cookie of four bytes or more tell requests apart.
    @Test func theFirstAndTheLastFourBytesDiffer() {
        var random = SplitMix64(seed: testSeed("CookiesTests"))
        let cookies = Cookies(secret: random.next())
        let first = random.next() & ~0xffff_ffff
        let all = (0..<100_000).map { cookies.cookie(of: first + $0) }
        #expect(Set(all.map { $0 >> 32 }).count == all.count)
        #expect(Set(all.map { $0 & 0xffff_ffff }).count == all.count)
    }

    /// Another secret gives other cookies, in both halves.
    @Test func theSecretChangesBothHalves() {
        for bit in 0..<64 {
            let (one, other) = (Cookies(secret: 7), Cookies(secret: 7 ^ 1 << UInt64(bit)))
            #expect((0..<100).allSatisfy { one.cookie(of: $0) != other.cookie(of: $0) })
        }
        let found = Set((0..<1000).map { Cookies(secret: $0 << 32 | $0).cookie(of: 1) })
        #expect(found.count == 1000)
    }
}

@Suite struct CommandTests {
    @Test func requestsAreThoseOfTheSpecification() {
        let kinds: [(Command.Kind, UInt16)] = [
            (.read, 0), (.write, 1), (.disconnect, 2), (.flush, 3), (.trim, 4), (.cache, 5), (.writeZeroes, 6),
            (.blockStatus, 7),
        ]
        let flags: CommandFlags = [.forcedAccess, .noHole, .dontFragment, .oneExtent, .fastZero]
        #expect(flags.rawValue == 0b11111)
        for (kind, number) in kinds {
            var bytes = [UInt8](repeating: 0xee, count: 30)
            let command = Command(
                kind, flags: flags, cookie: 0x0102_0304_0506_0708, offset: 1 << 62, length: 0xfffe_fdfc)
            bytes.withUnsafeMutableBytes { unsafe command.encode(to: $0) }
            let expected =
                wire(UInt32(0x2560_9513)) + wire(flags.rawValue) + wire(number) + wire(command.cookie)
                + wire(UInt64(1) << 62) + wire(UInt32(0xfffe_fdfc))
            #expect(bytes == expected + [0xee, 0xee] && expected.count == Command.byteCount)
        }
    }
}
