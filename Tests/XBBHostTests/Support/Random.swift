// SPDX-License-Identifier: BSD-2-Clause
// Random numbers that can be repeated: a random test names its seed when it fails, and XBB_TEST_SEED brings it back.
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

    /// True once in `times`.
    mutating func onceIn(_ times: Int) -> Bool { below(times) == 0 }

    /// One of the elements.
    mutating func pick<T>(_ elements: [T]) -> T { elements[below(elements.count)] }
}

/// The seed that the environment asks for, and nothing else; else `standard`, which differs from run to run.
func testSeeds(_ test: String, count: Int) -> [UInt64] {
    if let text = getenv("XBB_TEST_SEED"), let seed = UInt64(String(cString: text)) { return [seed] }
    let first = UInt64.random(in: 0...UInt64(UInt32.max))
    print("\(test): \(count) seeds from XBB_TEST_SEED=\(first)")
    return (0..<UInt64(count)).map { first + $0 }
}
