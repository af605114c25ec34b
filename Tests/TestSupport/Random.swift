// SPDX-License-Identifier: BSD-2-Clause
// Random tests can be repeated: each names its seed, and XBB_TEST_SEED brings it back.
import Glibc
@_exported import struct Support.SplitMix64

extension SplitMix64 {
    /// A number below `bound`, which is at least 1 and small against 2^64.
    public mutating func below(_ bound: Int) -> Int { Int(truncatingIfNeeded: next() % UInt64(max(bound, 1))) }

    /// A number of the closed range.
    public mutating func from(_ low: UInt64, to high: UInt64) -> UInt64 {
        let width = high &- low
        return width == .max ? next() : low &+ next() % (width + 1)
    }

    /// True once in `times`.
    public mutating func onceIn(_ times: Int) -> Bool { below(times) == 0 }

    /// True in `percent` of all cases.
    public mutating func chance(_ percent: UInt64) -> Bool { next() % 100 < percent }

    /// One of the elements.
    public mutating func pick<T>(_ elements: [T]) -> T { elements[below(elements.count)] }
}

/// The seed of a random test: of the environment, or new. Says which on standard output.
public func testSeed(_ test: String) -> UInt64 {
    let seed = environmentSeed ?? UInt64.random(in: 0...UInt64(Int64.max))
    print("\(test): XBB_TEST_SEED=\(seed)")
    return seed
}

/// `count` seeds that differ from run to run, or the one that the environment asks for.
public func testSeeds(_ test: String, count: Int) -> [UInt64] {
    if let seed = environmentSeed { return [seed] }
    let first = UInt64.random(in: 0...UInt64(UInt32.max))
    print("\(test): \(count) seeds from XBB_TEST_SEED=\(first)")
    return (0..<UInt64(count)).map { first + $0 }
}

private let environmentSeed = getenv("XBB_TEST_SEED").flatMap { UInt64(String(cString: $0)) }
