// SPDX-License-Identifier: BSD-2-Clause
// The frontend's event channel.
import Base
import CLinux
import Glibc
public import Xen

/// A port of a ``LoopbackDomain``, unbound until the remote domain binds it.
///
/// ``notify()`` may be called from one thread and the other methods from another.
///
///     let port = try domain.allocatePort(for: 0)      // write port.number to XenStore as "event-channel"
///     try port.notify()                               // after the ring says that the backend wants an event
///     if port.wait(milliseconds: 1000) { ... }        // or poll(port.fileDescriptor), then takePending()
///
/// `@unchecked Sendable`: each of the two threads has its own part of the state; the channel's bits, which they share,
/// are atomic, and close() comes after all other calls.
@safe
public final class LoopbackPort: @unchecked Sendable {
    private let end: EventEnd
    private let event: Descriptor
    private let connection: HypervisorConnection
    /// The channel's link when events were taken whose signal is still in the eventfd; nil if there is none.
    private var undrained: UInt32?
    private var closed = false

    init(end: EventEnd, event: Descriptor, connection: HypervisorConnection) {
        self.end = end
        self.event = event
        self.connection = connection
    }

    deinit {
        close()
    }

    /// The number in its domain, the value of the key "event-channel".
    public var number: EventPort { end.port }

    /// Readable while an event is pending and not masked; may be readable once more without one.
    public var fileDescriptor: Int32 { event.raw }

    /// True while the remote domain has bound the port.
    public var isBound: Bool { end.link & 1 == 1 }

    /// True while an event is pending and not masked. One load; for loops that poll.
    public var isPending: Bool { end.isPending }

    /// Sends an event to the other end; dropped without an error while there is none.
    ///
    /// A system call only if the other end was neither pending nor masked.
    public func notify() throws(OperationError) {
        if closed { throw OperationError(ENOTCONN, "notify event channel \(end.port)") }
        try end.notify()
    }

    /// Clears the pending event; false if there is none, or if the port is masked. Never blocks.
    public func takePending() -> Bool {
        if take() { return true }
        event.drain()
        // The wake-up of an event that came before the drain is gone with it: unmask() must not count on it.
        defer { undrained = nil }
        return take()
    }

    private func take() -> Bool {
        let link = end.link
        if !end.take(masking: false) { return false }
        undrained = link
        return true
    }

    /// Keeps events from waking anybody until ``unmask()``.
    public func mask() {
        end.mask()
    }

    /// Lets events wake again; one that arrived meanwhile wakes at once.
    public func unmask() {
        if end.unmask() && undrained != end.link { event.signal() }
    }

    /// Waits for an event and clears it; false if none arrived in time. -1 waits without limit.
    public func wait(milliseconds: Int32) -> Bool {
        let deadline = clinux_monotonic_ns() + UInt64(max(milliseconds, 0)) * 1_000_000
        while !takePending() {
            var remaining: Int32 = -1
            if milliseconds >= 0 {
                let now = clinux_monotonic_ns()
                if now >= deadline { return false }
                remaining = Int32(clamping: (deadline - now + 999_999) / 1_000_000)
            }
            var entry = pollfd(fd: event.raw, events: Int16(POLLIN), revents: 0)
            if unsafe poll(&entry, 1, remaining) < 0 && errno != EINTR { return false }
        }
        return true
    }

    /// Closes the port; the other end becomes unbound. Called automatically when the last reference is gone.
    public func close() {
        if closed { return }
        closed = true
        _ = try? connection.call(.closePort, [end.port], for: "close event channel \(end.port)")
    }
}
