// SPDX-License-Identifier: BSD-2-Clause
// The bytes of one run, handed out as the numbers that tests draw by chance elsewhere.
import Glibc

/// The input of the fuzzer. One thread.
public enum FuzzInput {
    private nonisolated(unsafe) static var bytes = UnsafeRawBufferPointer(start: nil, count: 0)
    private nonisolated(unsafe) static var position = 0
    private nonisolated(unsafe) static var isActive = false

    /// True while a run draws its numbers from an input.
    public static var feeds: Bool { isActive }

    /// All of it was drawn: a run does what it needs to come to an end.
    public static var isOver: Bool { position >= bytes.count }

    /// Runs `body` with numbers drawn from `input`.
    public static func run<Result>(_ input: UnsafeRawBufferPointer, _ body: () throws -> Result) rethrows -> Result {
        (bytes, position, isActive) = (input, 0, true)
        defer { (bytes, position, isActive) = (UnsafeRawBufferPointer(start: nil, count: 0), 0, false) }
        return try body()
    }

    /// A little-endian number of so many bytes; nil where the input has no more of them.
    public static func take(_ count: Int) -> UInt64? {
        guard position + count <= bytes.count else {
            position = bytes.count
            return nil
        }
        var number: UInt64 = 0
        for index in 0..<count { number |= UInt64(bytes[position + index]) << (8 * UInt64(index)) }
        position += count
        return number
    }

    /// The next bytes, at most `count`, as a length in the input says.
    public static func takeBytes(atMost count: Int) -> [UInt8] {
        guard let length = take(count > 255 ? 2 : 1) else { return [] }
        return takeBytes(exactly: min(Int(length) % (count + 1), bytes.count - position))
    }

    /// All that is left.
    public static func takeRest() -> [UInt8] { takeBytes(exactly: bytes.count - position) }

    private static func takeBytes(exactly count: Int) -> [UInt8] {
        defer { position += count }
        return Array(bytes[position..<position + count])
    }
}

/// The generator of the tests with another source: in a run the input, and a fixed sequence behind its end; else its seed.
public struct SplitMix64: Sendable {
    private var state: UInt64
    private let isFed: Bool

    /// The generator of a seed, or in a run of the input.
    public init(seed: UInt64) {
        isFed = FuzzInput.feeds
        state = isFed ? 1 : seed
    }

    private mutating func generate() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }

    private mutating func draw(_ bytes: Int) -> UInt64 { (isFed ? FuzzInput.take(bytes) : nil) ?? generate() }

    /// Any number.
    public mutating func next() -> UInt64 { draw(8) }

    /// As few bytes of the input as the bound needs, so that changing one of them changes one decision.
    public mutating func below(_ bound: Int) -> Int {
        let bound = max(bound, 1)
        if bound == 1 { return 0 }
        let bytes = bound <= 1 << 8 ? 1 : bound <= 1 << 16 ? 2 : 8
        return Int(truncatingIfNeeded: draw(bytes) % UInt64(bound))
    }

    /// A number of the closed range.
    public mutating func from(_ low: UInt64, to high: UInt64) -> UInt64 {
        let width = high &- low
        if width < 1 << 16 { return low &+ UInt64(below(Int(width) + 1)) }
        return width == .max ? next() : low &+ next() % (width + 1)
    }

    /// True once in `times`.
    public mutating func onceIn(_ times: Int) -> Bool { below(times) == 0 }
    /// True in `percent` of all cases.
    public mutating func chance(_ percent: UInt64) -> Bool { below(100) < Int(percent) }
    /// One of the elements.
    public mutating func pick<T>(_ elements: [T]) -> T { elements[below(elements.count)] }
}
