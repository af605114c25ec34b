// SPDX-License-Identifier: BSD-2-Clause
// The host's event loop of one queue: watched descriptors, timers, and calls from other threads.
import Glibc
import PluginAPI
import Synchronization

/// What happens on a watched descriptor; `XBB_FD_*`.
public struct FileEvents: OptionSet, Sendable {
    /// `XBB_FD_*`
    public let rawValue: UInt32
    /// From `XBB_FD_*`.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// There is something to read. Errors and hang-ups are told as both, asked for or not.
    public static let read = FileEvents(rawValue: UInt32(XBB_FD_READ))
    /// There is room to write.
    public static let write = FileEvents(rawValue: UInt32(XBB_FD_WRITE))
}

/// The host's side of an open queue. All but ``post(_:)`` is for the thread of the queue, `openQueue()` and `queueClosed()`
/// among it; what a closure is called for runs there too. When the queue is closed, all of it ends.
///
/// `@unchecked Sendable`: that thread alone touches the registrations, and posted calls are under a lock.
@safe
public final class HostQueue: @unchecked Sendable {
    /// `xbb_hqueue`, for those who complete requests by themselves.
    public let handle: OpaquePointer
    /// `xbb_host.complete`, likewise: any thread, exactly once per accepted request, 0 or a negative errno.
    public let complete: HostComplete
    fileprivate let host: PluginHost
    private var registrations: [Registration] = []
    private let posted = Mutex<[Handler]>([])

    init(_ handle: OpaquePointer, of host: PluginHost) {
        unsafe self.handle = unsafe handle
        unsafe complete = host.complete
        self.host = host
    }

    /// Calls `body` while one of `events` is there on `descriptor`: level-triggered, one watch for each descriptor.
    /// ``Watch/remove()`` comes before close(2).
    public func watch(
        _ descriptor: Int32, for events: FileEvents = .read, _ body: @escaping (FileEvents) -> Void
    ) throws(PluginError) -> Watch {
        let handler = unsafe Unmanaged.passRetained(Handler(body))
        var watch: OpaquePointer?
        let code =
            unsafe host.table.pointee.watch_add?(
                handle, descriptor, events.rawValue,
                { argument, _, events in unsafe Handler.run(argument, FileEvents(rawValue: events)) },
                handler.toOpaque(), &watch) ?? -ENOSYS
        guard code == 0 else {
            unsafe handler.release()
            throw PluginError(system: "the host cannot watch a descriptor", -code)
        }
        let registration = unsafe Watch(self, watch, handler)
        registrations.append(registration)
        return registration
    }

    /// A timer that calls `body`, once after each ``QueueTimer/fire(after:)``.
    public func timer(_ body: @escaping () -> Void) throws(PluginError) -> QueueTimer {
        let handler = unsafe Unmanaged.passRetained(Handler { _ in body() })
        var timer: OpaquePointer?
        let code =
            unsafe host.table.pointee.timer_add?(
                handle, { argument in unsafe Handler.run(argument, []) }, handler.toOpaque(), &timer) ?? -ENOSYS
        guard code == 0 else {
            unsafe handler.release()
            throw PluginError(system: "the host has no timer", -code)
        }
        let registration = unsafe QueueTimer(self, timer, handler)
        registrations.append(registration)
        return registration
    }

    /// Runs `body` on the queue's thread, soon and in the order of the calls. Any thread. What was not run before the queue
    /// closes is dropped.
    public func post(_ body: @escaping @Sendable () -> Void) {
        posted.withLock { $0.append(Handler { _ in body() }) }
        // Nothing of it runs once the queue closes, and until then this object is there.
        unsafe host.table.pointee.post?(
            handle,
            { argument in
                guard let queue = unsafe unboxed(argument, as: HostQueue.self) else { return }
                queue.posted.withLock { $0.isEmpty ? nil : $0.removeFirst() }?.body([])
            }, Unmanaged.passUnretained(self).toOpaque())
    }

    /// Ends all that is registered.
    func end() {
        for registration in registrations { registration.remove() }
        registrations = []
    }

    fileprivate func forget(_ registration: Registration) { registrations.removeAll { $0 === registration } }
}

/// A closure that the host calls. It lives from its registration to its removal, and while it runs.
///
/// `@unchecked Sendable`: it runs and ends on the thread of its queue.
private final class Handler: @unchecked Sendable {
    let body: (FileEvents) -> Void
    private var isRunning = false
    private var isRemoved = false

    init(_ body: @escaping (FileEvents) -> Void) { self.body = body }

    static func run(_ argument: UnsafeMutableRawPointer?, _ events: FileEvents) {
        guard let argument = unsafe argument else { return }
        let handler = unsafe Unmanaged<Handler>.fromOpaque(argument)
        // The reference of the registration holds: what is removed while it runs is released below.
        let isRemoved = unsafe handler._withUnsafeGuaranteedRef { handler in
            handler.isRunning = true
            handler.body(events)
            handler.isRunning = false
            return handler.isRemoved
        }
        if isRemoved { unsafe handler.release() }
    }

    static func remove(_ handler: Unmanaged<Handler>) {
        if unsafe handler._withUnsafeGuaranteedRef({ $0.isRunning }) {
            unsafe handler._withUnsafeGuaranteedRef { $0.isRemoved = true }
        } else {
            unsafe handler.release()
        }
    }
}

/// What watches and timers have in common: they end once.
///
/// `@unchecked Sendable`, as all of it is for the thread of the queue.
@safe
public class Registration: @unchecked Sendable {
    fileprivate unowned let queue: HostQueue
    /// `xbb_watch` or `xbb_timer`; nil: removed.
    fileprivate var object: OpaquePointer?
    private let handler: Unmanaged<Handler>

    fileprivate init(_ queue: HostQueue, _ object: OpaquePointer?, _ handler: Unmanaged<Handler>) {
        self.queue = queue
        unsafe self.object = unsafe object
        unsafe self.handler = unsafe handler
    }

    fileprivate func delete(_ object: OpaquePointer) {}

    /// Ends it, also from within its own closure. Done by itself when the queue closes.
    public final func remove() {
        guard let object = unsafe object else { return }
        unsafe self.object = nil
        unsafe delete(object)
        unsafe Handler.remove(handler)
        queue.forget(self)
    }
}

/// A watched descriptor.
public final class Watch: Registration, @unchecked Sendable {
    override fileprivate func delete(_ object: OpaquePointer) {
        unsafe queue.host.table.pointee.watch_del?(object)
    }

    /// Changes what is watched for.
    public func listen(for events: FileEvents) {
        guard let object = unsafe object else { return }
        unsafe queue.host.table.pointee.watch_set?(object, events.rawValue)
    }
}

/// A timer of a queue.
public final class QueueTimer: Registration, @unchecked Sendable {
    override fileprivate func delete(_ object: OpaquePointer) {
        unsafe queue.host.table.pointee.timer_del?(object)
    }

    /// Calls once after so many nanoseconds: never early, some milliseconds late. 0: not any more.
    public func fire(after nanoseconds: UInt64) {
        guard let object = unsafe object else { return }
        unsafe queue.host.table.pointee.timer_set?(object, nanoseconds)
    }
}
