// SPDX-License-Identifier: BSD-2-Clause
// A time limit.
import CLinux
import Glibc

/// A point of CLOCK_MONOTONIC.
struct Deadline: Sendable {
    private let end: UInt64

    /// The point this many milliseconds from now.
    init(milliseconds: Int) {
        end = clinux_monotonic_ns() &+ UInt64(max(milliseconds, 0)) &* 1_000_000
    }

    /// Milliseconds left; 0 when it has passed.
    var left: Int32 {
        let now = clinux_monotonic_ns()
        return now >= end ? 0 : Int32(clamping: (end - now + 999_999) / 1_000_000)
    }

    /// Waits until the descriptor is readable; false when the deadline has passed.
    func wait(for descriptor: Int32) -> Bool {
        while true {
            let left = left
            if left == 0 { return false }
            var item = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            let result = unsafe poll(&item, 1, left)
            if result > 0 { return true }
            if result < 0 && errno != EINTR { return false }
        }
    }
}
