// SPDX-License-Identifier: BSD-2-Clause
// Random numbers that can be repeated: every random test prints its seed, and XBB_TEST_SEED brings it back.
import Glibc

/// SplitMix64: small, fast enough without optimisation, and the same everywhere.
struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// A number below `bound`, which is small against 2^64.
    mutating func below(_ bound: Int) -> Int { Int(truncatingIfNeeded: next() % UInt64(bound)) }

    /// A number of the closed range.
    mutating func from(_ low: UInt64, to high: UInt64) -> UInt64 {
        let width = high &- low
        return width == .max ? next() : low &+ next() % (width + 1)
    }

    /// True once in `times`.
    mutating func onceIn(_ times: Int) -> Bool { below(times) == 0 }
}

/// The seed of a random test: of the environment, or new. Says which on standard output.
func testSeed(_ test: String) -> UInt64 {
    let seed =
        getenv("XBB_TEST_SEED").flatMap { UInt64(String(cString: $0)) } ?? UInt64.random(in: 0...UInt64(Int64.max))
    print("\(test): XBB_TEST_SEED=\(seed)")
    return seed
}
