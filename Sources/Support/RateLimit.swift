// SPDX-License-Identifier: BSD-2-Clause
// Limits what is logged about events that a guest, an image or a plugin can cause.
import CLinux
import Synchronization

/// Lets a burst of events through, then about one each second, and counts the others (XSA-180).
public final class RateLimit: Sendable {
    private struct State {
        var tokens: Double
        var last: UInt64
        var suppressed: UInt64 = 0
    }
    private let burst: Double
    private let perSecond: Double
    private let state: Mutex<State>

    /// At most `burst` events at once and `perSecond` in the long run.
    public init(burst: Double = 10, perSecond: Double = 1) {
        self.burst = burst
        self.perSecond = perSecond
        state = Mutex(State(tokens: burst, last: clinux_monotonic_ns()))
    }

    /// nil if the event is to be dropped; otherwise the number of events dropped since the last one that passed.
    public func admit() -> UInt64? {
        let now = clinux_monotonic_ns()
        return state.withLock { state in
            state.tokens = min(burst, state.tokens + Double(now &- state.last) / 1e9 * perSecond)
            state.last = now
            if state.tokens < 1 {
                state.suppressed &+= 1
                return nil
            }
            state.tokens -= 1
            defer { state.suppressed = 0 }
            return state.suppressed
        }
    }
}
