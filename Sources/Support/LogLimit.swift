// SPDX-License-Identifier: BSD-2-Clause
// How many lines there are about one disk, whatever its guest, its image or its plugin does (XSA-180).
import CLinux
import Synchronization

/// The lines about one disk: at most ``burst`` at once from each place in the code and one a second after that, and at most
/// ``allBurst`` at once and ``allPerSecond`` in the long run from all places together. Details (``LogLevel/debug``), which
/// an operator has asked for, have a larger budget of their own. Lines beyond it are counted, and the number is told with
/// the next line of the same place, or by ``takeDropped()``. Any thread.
///
/// The number of places is a constant of the program, so no text can make a new budget; and who fills one place with noise
/// does not hide what another one has to say.
public final class LogLimit: Sendable {
    /// Where in the code a line is written.
    struct Place: Hashable, Sendable {
        /// The address of the file's name, which is a constant.
        let file: UInt
        let line: UInt

        init(_ file: StaticString, _ line: UInt) {
            // Only compared.
            self.file = unsafe UInt(bitPattern: file.utf8Start)
            self.line = line
        }
    }

    private struct Bucket {
        let burst: Double
        let perSecond: Double
        var tokens: Double
        var last: UInt64
        var dropped: UInt64 = 0

        init(burst: Double, perSecond: Double, now: UInt64) {
            self.burst = burst
            self.perSecond = perSecond
            tokens = burst
            last = now
        }

        mutating func fill(_ now: UInt64) {
            if now > last { tokens = min(burst, tokens + Double(now &- last) / 1e9 * perSecond) }
            last = max(now, last)
        }
    }

    private struct State {
        var places: [Place: Bucket] = [:]
        var all: Bucket
        var details: Bucket
        /// Lines that were dropped and not told.
        var untold: UInt64 = 0
        /// When ``takeDropped(now:)`` may tell, in ns of the monotonic clock.
        var nextTelling: UInt64
    }
    private let state: Mutex<State>

    /// The most lines of one place at once; one a second comes after that.
    public static let burst = 10.0
    /// The most lines of all places at once, and in a second in the long run.
    public static let allBurst = 60.0
    /// See ``allBurst``.
    public static let allPerSecond = 5.0
    private static let detailFactor = 50.0
    /// How often dropped lines are told that no line of their place follows, in ns.
    private static let tellingInterval: UInt64 = 10_000_000_000

    /// A full budget.
    public convenience init() { self.init(now: clinux_monotonic_ns()) }

    init(now: UInt64) {
        state = Mutex(
            State(
                all: Bucket(burst: Self.allBurst, perSecond: Self.allPerSecond, now: now),
                details: Bucket(
                    burst: Self.allBurst * Self.detailFactor, perSecond: Self.allPerSecond * Self.detailFactor, now: now
                ),
                nextTelling: now &+ Self.tellingInterval))
    }

    /// nil if a line of `place` is to be dropped; otherwise how many of this place were dropped since the last one.
    func admit(_ level: LogLevel, _ place: Place, now: UInt64 = clinux_monotonic_ns()) -> UInt64? {
        let factor = level == .debug ? Self.detailFactor : 1
        return state.withLock { state in
            state.all.fill(now)
            state.details.fill(now)
            var bucket = state.places[place] ?? Bucket(burst: Self.burst * factor, perSecond: factor, now: now)
            bucket.fill(now)
            defer { state.places[place] = bucket }
            guard bucket.tokens >= 1, (level == .debug ? state.details : state.all).tokens >= 1 else {
                bucket.dropped &+= 1
                state.untold &+= 1
                return nil
            }
            bucket.tokens -= 1
            if level == .debug { state.details.tokens -= 1 } else { state.all.tokens -= 1 }
            let dropped = bucket.dropped
            bucket.dropped = 0
            state.untold &-= min(state.untold, dropped)
            return dropped
        }
    }

    /// How many lines were dropped of which nobody was told, once in ten seconds; nil where there is nothing to tell.
    ///
    /// `isLast`: there is no later time to tell it.
    func takeDropped(now: UInt64 = clinux_monotonic_ns(), isLast: Bool = false) -> UInt64? {
        state.withLock { state in
            guard state.untold > 0, isLast || now >= state.nextTelling else { return nil }
            state.nextTelling = now &+ Self.tellingInterval
            for place in state.places.keys { state.places[place]?.dropped = 0 }
            defer { state.untold = 0 }
            return state.untold
        }
    }

    /// When ``takeDropped(now:)`` has something to tell, in ns of the monotonic clock; `UInt64.max` if never.
    public var deadline: UInt64 { state.withLock { $0.untold > 0 ? $0.nextTelling : .max } }
}
