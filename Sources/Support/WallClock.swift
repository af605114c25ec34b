// SPDX-License-Identifier: BSD-2-Clause
// The time of day, for what people and other machines read; never for measuring.
import Glibc

/// Seconds since 1970, as CLOCK_REALTIME has them.
public func wallClockSeconds() -> Double {
    var now = timespec()
    // The kernel fills the structure, which is ours.
    unsafe clock_gettime(CLOCK_REALTIME, &now)
    return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
}
