// SPDX-License-Identifier: BSD-2-Clause
// When a freed cluster is nobody's: after all I/O has ended that began before it was freed.
import Glibc
import Synchronization

/// That an I/O has begun; for ``ImageEngine/end(_:)``.
public struct EngineToken: Sendable, Equatable {
    /// The counter that it is in, to be kept beside a request: a place, and in the lowest bit a phase.
    public let number: UInt8

    /// From a number that was kept.
    public init(number: UInt8) { self.number = number }
}

/// Counts I/O in two phases. Those of the phase before end some time; new ones count in the other.
///
/// Each queue counts at a place of its own, in cache lines that no other one writes; helper threads share the first place.
///
/// A fence for unsafe memory: a counter's number is below `2 * places`.
@safe
final class Grace: Sendable {
    /// Places: a power of two, so that any number is one of them.
    static let places: UInt8 = 32
    /// Counters from one to the next that is used: two cache lines, as processors fetch them in pairs.
    private static let stride = 128 / MemoryLayout<Atomic<Int>>.stride

    private let phase = Atomic<UInt8>(0)
    // Never written after init; what it points to is atomic.
    nonisolated(unsafe) private let counters: UnsafeMutablePointer<Atomic<Int>>

    init() {
        let count = 2 * Int(Self.places) * Self.stride
        let memory = UnsafeMutableRawPointer.allocate(
            byteCount: count * MemoryLayout<Atomic<Int>>.stride, alignment: 128)
        unsafe counters = memory.bindMemory(to: Atomic<Int>.self, capacity: count)
        for index in 0..<count { unsafe (counters + index).initialize(to: Atomic(0)) }
    }

    deinit { unsafe counters.deallocate() }

    /// Before the place of a cluster is looked up; `place`: whose I/O it is.
    @inline(__always)
    func begin(_ place: UInt8) -> EngineToken {
        let first = place & (Self.places - 1) * 2
        while true {
            let now = phase.load(ordering: .sequentiallyConsistent)
            let token = EngineToken(number: first | now)
            add(1, to: token)
            // Who turned the phase meanwhile may have looked at the count before this was in it.
            if phase.load(ordering: .sequentiallyConsistent) == now { return token }
            add(-1, to: token)
        }
    }

    /// After the I/O has ended.
    @inline(__always)
    func end(_ token: EngineToken) { add(-1, to: token) }

    /// Begins to wait for all that has begun. Not while a wait is going on.
    func turn() { phase.store(1 - phase.load(ordering: .relaxed), ordering: .sequentiallyConsistent) }

    /// What had begun before ``turn()`` has ended. Each counter of that phase is only counted down since, but for those who are
    /// about to notice that it is over, so they may be looked at one after the other.
    var isQuiet: Bool {
        let other = 1 - phase.load(ordering: .relaxed)
        for place in 0..<Self.places where counter(EngineToken(number: place * 2 | other)) != 0 { return false }
        return true
    }

    /// The place of a counter in memory, bytes.
    func address(of token: EngineToken) -> UInt { UInt(bitPattern: unsafe counters + Self.index(token)) }

    @inline(__always)
    private static func index(_ token: EngineToken) -> Int { Int(token.number & (2 * places - 1)) * stride }

    private func counter(_ token: EngineToken) -> Int {
        unsafe counters[Self.index(token)].load(ordering: .sequentiallyConsistent)
    }

    @inline(__always)
    private func add(_ amount: Int, to token: EngineToken) {
        unsafe counters[Self.index(token)].wrappingAdd(amount, ordering: .sequentiallyConsistent)
    }
}
