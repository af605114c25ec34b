// SPDX-License-Identifier: BSD-2-Clause
// When a freed cluster is nobody's: after all I/O has ended that began before it was freed.
import Synchronization

/// That an I/O has begun; for ``ImageEngine/end(_:)``.
public struct EngineToken: Sendable {
    /// 0 or 1, to be kept beside a request.
    public let phase: UInt8

    /// From a phase that was kept.
    public init(phase: UInt8) { self.phase = phase & 1 }
}

/// Counts I/O in two phases. Those of the phase before end some time; new ones count in the other.
final class Grace: Sendable {
    private let phase = Atomic<UInt8>(0)
    private let even = Atomic<Int>(0)
    private let odd = Atomic<Int>(0)

    /// Before the place of a cluster is looked up.
    @inline(__always)
    func begin() -> EngineToken {
        while true {
            let now = phase.load(ordering: .sequentiallyConsistent)
            add(1, to: now)
            // Who turned the phase meanwhile may have looked at the count before this was in it.
            if phase.load(ordering: .sequentiallyConsistent) == now { return EngineToken(phase: now) }
            add(-1, to: now)
        }
    }

    /// After the I/O has ended.
    @inline(__always)
    func end(_ token: EngineToken) { add(-1, to: token.phase) }

    /// Begins to wait for all that has begun. Not while a wait is going on.
    func turn() { phase.store(1 - phase.load(ordering: .relaxed), ordering: .sequentiallyConsistent) }

    /// What had begun before ``turn()`` has ended.
    var isQuiet: Bool {
        let other =
            phase.load(ordering: .relaxed) == 0
            ? odd.load(ordering: .sequentiallyConsistent)
            : even.load(ordering: .sequentiallyConsistent)
        return other == 0
    }

    @inline(__always)
    private func add(_ amount: Int, to phase: UInt8) {
        if phase == 0 {
            even.wrappingAdd(amount, ordering: .sequentiallyConsistent)
        } else {
            odd.wrappingAdd(amount, ordering: .sequentiallyConsistent)
        }
    }
}
