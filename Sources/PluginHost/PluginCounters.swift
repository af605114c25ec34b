// SPDX-License-Identifier: BSD-2-Clause
// What a plugin counts by itself, told by its stats(): it is not trusted to be right, brief or quick.
import Base
import Glibc
import PluginAPI
import Synchronization

/// Names and values, in the plugin's order.
package typealias PluginCounters = [(name: String, value: UInt64)]

/// Takes what calls of stats() report. Any thread.
///
/// The plugin may keep what it was given and use it when the call is over. So it is given a number in place of a pointer,
/// and a number that is none of a call which is going on changes nothing.
enum PluginCounterCalls {
    /// More counters, and longer names, are left out and cut off.
    static let mostCounters = 64
    static let longestName = 64

    private struct State {
        var last: UInt = 0
        var open: [UInt: PluginCounters] = [:]
    }

    private static let state = Mutex(State())

    /// The number of a call that begins.
    static func begin() -> UInt {
        state.withLock { state in
            state.last += 1
            state.open[state.last] = []
            return state.last
        }
    }

    /// What was told in a call that is over.
    static func end(_ call: UInt) -> PluginCounters {
        state.withLock { $0.open.removeValue(forKey: call) ?? [] }
    }

    /// `name` is asked for only where there is room: a plugin that reports without end is not to cost more than that.
    private static func add(_ value: UInt64, to call: UInt, _ name: () -> String?) {
        state.withLock { state in
            guard let counters = state.open[call], counters.count < mostCounters, let name = name(),
                !counters.contains(where: { $0.name == name })
            else { return }
            state.open[call]?.append((name, value))
        }
    }

    /// The plugin's `arg` for a call.
    @unsafe static func argument(_ call: UInt) -> UnsafeMutableRawPointer? {
        unsafe UnsafeMutableRawPointer(bitPattern: call)
    }

    /// The plugin's `fn`.
    ///
    /// Unsafe because C passes pointers: `argument` is never followed, and `name` is read up to its end or the longest name.
    static let report: xbb_stat_fn = { argument, name, value in
        guard let name = unsafe name else { return }
        add(value, to: UInt(bitPattern: argument)) {
            let length = unsafe strnlen(name, longestName)
            let bytes = unsafe UnsafeBufferPointer(start: name, count: length)
            let text = unsafe bytes.map { UInt8(bitPattern: $0) }.map {
                (0x21...0x7e).contains($0) ? $0 : UInt8(ascii: "?")
            }
            return text.isEmpty ? nil : String(decoding: text, as: UTF8.self)
        }
    }
}
