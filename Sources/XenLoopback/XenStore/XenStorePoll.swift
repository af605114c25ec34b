// SPDX-License-Identifier: BSD-2-Clause
// epoll(7) with tokens, and a way to wake it.
import Base
import CLinux
import Glibc
import Xen

/// Waits for sockets; level-triggered.
final class XenStorePoll: Sendable {
    /// What a socket became, or what to wait for.
    struct Interest: OptionSet, Sendable {
        let rawValue: UInt32
        static let input = Interest(rawValue: EPOLLIN.rawValue)
        static let output = Interest(rawValue: EPOLLOUT.rawValue)
        /// The other side is gone; always waited for.
        static let ended = Interest(rawValue: EPOLLHUP.rawValue | EPOLLERR.rawValue)
    }

    struct Event: Sendable {
        let token: UInt64
        let ready: Interest
    }

    /// The token of ``wake()``.
    static let wakeToken = UInt64.max

    private let poll: Int32
    private let bell: Int32

    init() throws(OperationError) {
        poll = epoll_create1(Int32(EPOLL_CLOEXEC))
        guard poll >= 0 else { throw OperationError(errno, "make epoll") }
        bell = eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
        guard bell >= 0, control(EPOLL_CTL_ADD, bell, Self.wakeToken, .input) else {
            let code = errno
            close(poll)
            if bell >= 0 { close(bell) }
            throw OperationError(code, "make epoll")
        }
    }

    deinit {
        close(poll)
        close(bell)
    }

    /// Waits for `interest` in a socket from now on. Throws the error of epoll_ctl(2).
    func add(_ socket: XenStoreSocket, _ token: UInt64, _ interest: Interest) throws(OperationError) {
        guard control(EPOLL_CTL_ADD, socket.descriptor, token, interest) else {
            throw OperationError(errno, "wait for XenStore client")
        }
    }

    /// Waits for something else than before.
    func change(_ socket: XenStoreSocket, _ token: UInt64, _ interest: Interest) {
        _ = control(EPOLL_CTL_MOD, socket.descriptor, token, interest)
    }

    /// The events, after at most `milliseconds`; -1 waits without limit. nil if waiting is impossible.
    func wait(milliseconds: Int32) -> [Event]? {
        var events = unsafe [epoll_event](repeating: epoll_event(), count: 64)
        let count = unsafe epoll_wait(poll, &events, Int32(events.count), milliseconds)
        if count < 0 { return errno == EINTR ? [] : nil }
        return unsafe events.prefix(Int(count)).map { event in
            unsafe Event(token: event.data.u64, ready: Interest(rawValue: event.events))
        }
    }

    /// Makes ``wait(milliseconds:)`` return with ``wakeToken`` from now on.
    func wake() {
        _ = eventfd_write(bell, 1)
    }

    private func control(_ operation: Int32, _ descriptor: Int32, _ token: UInt64, _ interest: Interest) -> Bool {
        var event = unsafe epoll_event(events: interest.rawValue, data: epoll_data_t(u64: token))
        return unsafe epoll_ctl(poll, operation, descriptor, &event) == 0
    }
}
