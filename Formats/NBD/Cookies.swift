// SPDX-License-Identifier: BSD-2-Clause
// Numbers of requests as a guest cannot guess them.
//
// A guest has bytes of its own in the stream: the data that it reads. Whoever looks for answers in bytes without knowing where a
// message begins (AnswerScan) must not take such data for one. So a cookie is its number mixed with a secret of the connection.
// Each half of the cookie is a bijection of the number's low half, with a key of 32 bits of its own; the second half also depends
// on the number's high half. So all 2^64 cookies of a connection differ, those of 2^32 successive numbers differ in the first
// four bytes and, without a carry into the high half, in the last four, and a guest that knows the number but not the secret finds
// each of the 2^64 values equally likely. It never sees a cookie that it could learn from. This is no cipher: the server, which
// sees them all, can invent answers anyway.

/// The cookies of one connection.
public struct Cookies: BitwiseCopyable, Sendable {
    @usableFromInline let first: UInt32
    @usableFromInline let second: UInt32

    /// Cookies with a secret, 64 bits by chance.
    public init(secret: UInt64) {
        first = UInt32(truncatingIfNeeded: secret >> 32)
        second = UInt32(truncatingIfNeeded: secret)
    }

    /// The cookie of a number: no two numbers have the same.
    @inlinable
    public func cookie(of number: UInt64) -> UInt64 {
        let (high, low) = (UInt32(truncatingIfNeeded: number >> 32), UInt32(truncatingIfNeeded: number))
        return UInt64(Self.mix(low ^ first)) << 32 | UInt64(Self.mix(low ^ second ^ Self.mix(high)))
    }

    /// The number that has this cookie.
    @inlinable
    public func number(of cookie: UInt64) -> UInt64 {
        let low = Self.unmix(UInt32(truncatingIfNeeded: cookie >> 32)) ^ first
        let high = Self.unmix(Self.unmix(UInt32(truncatingIfNeeded: cookie)) ^ second ^ low)
        return UInt64(high) << 32 | UInt64(low)
    }

    /// MurmurHash3's finalizer, a bijection in which each bit of the input changes about half of the bits.
    @inlinable
    static func mix(_ value: UInt32) -> UInt32 {
        var value = value
        value = (value ^ value >> 16) &* 0x85eb_ca6b
        value = (value ^ value >> 13) &* 0xc2b2_ae35
        return value ^ value >> 16
    }

    /// Its inverse: the factors are the inverses of those above modulo 2^32.
    @inlinable
    static func unmix(_ value: UInt32) -> UInt32 {
        var value = (value ^ value >> 16) &* 0x7ed1_b41d
        value = (value ^ value >> 13 ^ value >> 26) &* 0xa5cb_9243
        value ^= value >> 16
        return value
    }
}
