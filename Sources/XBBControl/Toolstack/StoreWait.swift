// SPDX-License-Identifier: BSD-2-Clause
// Waiting for what another domain or process writes.
import Base
import CLinux
import Glibc
import Xen

extension XenStore {
    /// Asks `check` now and after each change of `path` until it gives a value; nil when that takes longer than
    /// `seconds`. No other watch may be set on this connection.
    func wait<Value>(
        for path: String, seconds: Double, until check: () throws(OperationError) -> Value?
    ) throws(OperationError) -> Value? {
        let deadline = clinux_monotonic_ns() &+ UInt64(max(seconds, 0) * 1e9)
        try watch(path, token: "wait")
        let result: Value?
        do throws(OperationError) {
            result = try poll(deadline, check)
        } catch {
            do throws(OperationError) { try unwatch(path, token: "wait") } catch {}
            throw error
        }
        try unwatch(path, token: "wait")
        return result
    }

    private func poll<Value>(_ deadline: UInt64, _ check: () throws(OperationError) -> Value?) throws(OperationError)
        -> Value?
    {
        while true {
            while try nextWatchEvent() != nil {}
            if let value = try check() { return value }
            if clinux_monotonic_ns() >= deadline { return nil }
            var entry = pollfd(fd: watchFileDescriptor, events: Int16(POLLIN), revents: 0)
            let count = unsafe Glibc.poll(&entry, 1, EventLoop.milliseconds(until: deadline))
            if count < 0 && errno != EINTR { throw OperationError(errno, "wait for XenStore") }
        }
    }
}
