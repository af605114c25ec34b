// SPDX-License-Identifier: BSD-2-Clause
// One epoll instance: who waits for which descriptor.
import Base
import CLinux
import Glibc

/// Calls a function for each descriptor that is ready. One thread; level-triggered.
///
/// A handler may be called once more for a descriptor that was removed and whose number was given out again within the
/// same turn; handlers therefore never block and take "nothing there" for an answer.
final class EventLoop {
    static let readable = UInt32(EPOLLIN.rawValue)
    static let writable = UInt32(EPOLLOUT.rawValue)

    private let epoll: Descriptor
    private var handlers: [Int32: () -> Void] = [:]

    init() throws(OperationError) {
        epoll = try Descriptor(epoll_create1(Int32(EPOLL_CLOEXEC)), "epoll_create1")
    }

    /// Calls `handler` while `descriptor` is ready for `events`, has hung up or failed.
    func add(
        _ descriptor: Int32, _ events: UInt32 = EventLoop.readable, _ handler: @escaping () -> Void
    ) throws(OperationError) {
        var event = unsafe epoll_event(events: events, data: epoll_data_t(fd: descriptor))
        if unsafe epoll_ctl(epoll.raw, EPOLL_CTL_ADD, descriptor, &event) != 0 {
            throw OperationError(errno, "wait for descriptor \(descriptor)")
        }
        handlers[descriptor] = handler
    }

    /// Waits for other events of a descriptor from now on; 0 for hang-ups alone.
    func change(_ descriptor: Int32, _ events: UInt32) {
        var event = unsafe epoll_event(events: events, data: epoll_data_t(fd: descriptor))
        _ = unsafe epoll_ctl(epoll.raw, EPOLL_CTL_MOD, descriptor, &event)
    }

    /// Forgets a descriptor; to be called before it is closed.
    func remove(_ descriptor: Int32) {
        handlers[descriptor] = nil
        _ = epoll_ctl(epoll.raw, EPOLL_CTL_DEL, descriptor, nil)
    }

    /// Sleeps until something is ready or `deadline` (ns of CLOCK_MONOTONIC) has come, and calls the handlers.
    func turn(until deadline: UInt64?) throws(OperationError) {
        var ready = unsafe [epoll_event](repeating: epoll_event(), count: 64)
        let count = unsafe epoll_wait(
            epoll.raw, &ready, Int32(ready.count), Self.milliseconds(until: deadline))
        if count < 0 {
            if errno == EINTR { return }
            throw OperationError(errno, "epoll_wait")
        }
        for index in unsafe 0..<min(max(Int(count), 0), ready.count) {
            let event = unsafe ready[index]
            let descriptor = unsafe event.data.fd
            handlers[descriptor]?()
        }
    }

    /// Milliseconds from now to `deadline`, rounded up; -1 for ever.
    static func milliseconds(until deadline: UInt64?, now: UInt64 = clinux_monotonic_ns()) -> Int32 {
        guard let deadline else { return -1 }
        if deadline <= now { return 0 }
        return Int32(clamping: (deadline - now) / 1_000_000 + 1)
    }
}
