// SPDX-License-Identifier: BSD-2-Clause
// An event loop on one epoll instance.
import Base
import CLinux
import Glibc

/// Calls a handler for each descriptor that is ready. One thread; level-triggered.
///
/// A handler may be called once more if its descriptor was removed and the number reused within the same turn. Handlers
/// must therefore never block, and must accept that nothing is there.
///
/// Unsafe code here passes epoll its events; the kernel fills at most as many as there is room for.
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

    /// Waits for other events of a descriptor from now on; 0 for hang-ups only.
    func change(_ descriptor: Int32, _ events: UInt32) {
        var event = unsafe epoll_event(events: events, data: epoll_data_t(fd: descriptor))
        _ = unsafe epoll_ctl(epoll.raw, EPOLL_CTL_MOD, descriptor, &event)
    }

    /// Forgets a descriptor. Must be called before it is closed.
    func remove(_ descriptor: Int32) {
        handlers[descriptor] = nil
        _ = epoll_ctl(epoll.raw, EPOLL_CTL_DEL, descriptor, nil)
    }

    /// Sleeps until a descriptor is ready or `deadline` (ns of CLOCK_MONOTONIC) has come, then calls the handlers.
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

    /// Milliseconds from now to `deadline`, rounded up; -1 for no deadline.
    static func milliseconds(until deadline: UInt64?, now: UInt64 = clinux_monotonic_ns()) -> Int32 {
        guard let deadline else { return -1 }
        if deadline <= now { return 0 }
        return Int32(clamping: (deadline - now) / 1_000_000 + 1)
    }
}
