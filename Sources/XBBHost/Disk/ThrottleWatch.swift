// SPDX-License-Identifier: BSD-2-Clause
// When a limit of a disk begins to hold requests back.

/// Looks at the counter of throttled requests now and then, so that a disk at its limit is told once and not for each request.
struct ThrottleWatch {
    private var seen: UInt64?
    private var isThrottled = false

    /// Takes the counter as it is now; true where it has grown since the last look, and had not before that.
    mutating func begins(with count: UInt64) -> Bool {
        guard let before = seen else {
            seen = count
            return false
        }
        seen = count
        let was = isThrottled
        isThrottled = count != before
        return isThrottled && !was
    }
}
