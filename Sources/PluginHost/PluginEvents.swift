// SPDX-License-Identifier: BSD-2-Clause
// Watches, timers and posted functions of a plugin, run on the thread of the queue that they belong to.
import PluginPort
import CLinux
import Glibc
import PluginAPI
import Synchronization

/// One file descriptor that a plugin watches (`struct xbb_watch`).
@safe
final class PluginWatch {
    let descriptor: Int32
    let function: xbb_fd_fn
    let argument: UnsafeMutableRawPointer?
    unowned let events: PluginEvents
    var isRemoved = false

    init(
        _ descriptor: Int32, _ function: @escaping xbb_fd_fn, _ argument: UnsafeMutableRawPointer?,
        _ events: PluginEvents
    ) {
        self.descriptor = descriptor
        unsafe self.function = function
        unsafe self.argument = argument
        self.events = events
    }
}

/// One timer of a plugin (`struct xbb_timer`).
@safe
final class PluginTimer {
    let function: xbb_fn
    let argument: UnsafeMutableRawPointer?
    unowned let events: PluginEvents
    /// When it fires, in ns of CLOCK_MONOTONIC; nil while it is not armed.
    var deadline: UInt64?
    var isRemoved = false

    init(_ function: @escaping xbb_fn, _ argument: UnsafeMutableRawPointer?, _ events: PluginEvents) {
        unsafe self.function = function
        unsafe self.argument = argument
        self.events = events
    }
}

/// The event loop of a queue: an epoll descriptor for the host's own descriptors and the plugin's.
///
/// Only the queue's thread may use it, except for ``post(_:_:)``.
///
/// `@unchecked Sendable`: the queue's thread alone uses the registrations; posted functions are under a lock.
///
/// Unsafe code here calls the functions and arguments that the plugin registered, until it removes them.
@safe
package final class PluginEvents: @unchecked Sendable {
    /// The `epoll_event.data` of each descriptor: what a wake-up is about.
    package enum Source: UInt64 {
        /// The completion port's descriptor.
        case wake = 1
        /// The event channel.
        case eventChannel = 2
        /// The first number for a plugin's watches.
        case firstWatch = 16
    }

    let epoll: Int32
    /// Held around each call of the plugin, if it allows one call at a time.
    package var exclusion: PluginExclusion?
    private let port: CompletionPort
    private var watches: [UInt64: PluginWatch] = [:]
    private var timers: [ObjectIdentifier: PluginTimer] = [:]
    private var nextNumber = Source.firstWatch.rawValue
    /// `@unchecked Sendable`: the plugin posts both from any thread, for a call on the queue's thread.
    @safe private struct Posted: @unchecked Sendable {
        let function: xbb_fn
        let argument: UnsafeMutableRawPointer?
    }
    private let posted = Mutex<[Posted]>([])
    /// True if functions may be waiting in `posted`; read without the lock.
    private let hasPosted = Atomic<Bool>(false)

    /// Watches the completion port's descriptor.
    package init?(port: CompletionPort) {
        self.port = port
        epoll = epoll_create1(Int32(EPOLL_CLOEXEC))
        if epoll < 0 { return nil }
        // Told once for each addition to the counter, which so need not be read away: one system call less for each wake-up.
        let mask = UInt32(EPOLLIN.rawValue) | UInt32(EPOLLET.rawValue)
        guard add(port.wakeDescriptor, mask, Source.wake.rawValue) == 0 else { return nil }
    }

    deinit {
        close(epoll)
    }

    /// Adds a descriptor to epoll. Returns 0 or a negative errno.
    package func add(_ descriptor: Int32, _ mask: UInt32, _ number: UInt64) -> Int32 {
        var event = unsafe epoll_event()
        unsafe event.events = mask
        unsafe event.data.u64 = number
        return unsafe epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) == 0 ? 0 : -errno
    }

    /// Removes a descriptor.
    func remove(_ descriptor: Int32) {
        _ = epoll_ctl(epoll, EPOLL_CTL_DEL, descriptor, nil)
    }

    private static func mask(_ events: UInt32) -> UInt32 {
        (events & UInt32(XBB_FD_READ) != 0 ? UInt32(EPOLLIN.rawValue) : 0)
            | (events & UInt32(XBB_FD_WRITE) != 0 ? UInt32(EPOLLOUT.rawValue) : 0)
    }

    // MARK: Services of the plugin ABI

    func watchAdd(
        _ descriptor: Int32, _ events: UInt32, _ function: @escaping xbb_fd_fn, _ argument: UnsafeMutableRawPointer?
    ) -> (PluginWatch?, Int32) {
        let number = nextNumber
        let result = add(descriptor, Self.mask(events), number)
        if result != 0 { return (nil, result) }
        nextNumber += 1
        let watch = unsafe PluginWatch(descriptor, function, argument, self)
        watches[number] = watch
        return (watch, 0)
    }

    func watchSet(_ watch: PluginWatch, _ events: UInt32) {
        guard let number = watches.first(where: { $0.value === watch })?.key else { return }
        var event = unsafe epoll_event()
        unsafe event.events = Self.mask(events)
        unsafe event.data.u64 = number
        _ = unsafe epoll_ctl(epoll, EPOLL_CTL_MOD, watch.descriptor, &event)
    }

    func watchRemove(_ watch: PluginWatch) {
        watch.isRemoved = true
        remove(watch.descriptor)
        if let number = watches.first(where: { $0.value === watch })?.key { watches[number] = nil }
    }

    func timerAdd(_ function: @escaping xbb_fn, _ argument: UnsafeMutableRawPointer?) -> PluginTimer {
        let timer = unsafe PluginTimer(function, argument, self)
        timers[ObjectIdentifier(timer)] = timer
        return timer
    }

    func timerRemove(_ timer: PluginTimer) {
        timer.isRemoved = true
        timers[ObjectIdentifier(timer)] = nil
    }

    /// Runs `function` on the queue's thread soon. Any thread may call this.
    func post(_ function: @escaping xbb_fn, _ argument: UnsafeMutableRawPointer?) {
        let entry = unsafe Posted(function: function, argument: argument)
        posted.withLock { $0.append(entry) }
        hasPosted.store(true, ordering: .releasing)
        port.wake()
    }

    // MARK: The loop's part

    /// Milliseconds until the next timer, rounded up; -1 for never.
    package func timeout(now: UInt64) -> Int32 {
        guard let next = timers.values.compactMap(\.deadline).min() else { return -1 }
        if next <= now { return 0 }
        return Int32(clamping: (next - now + 999_999) / 1_000_000)
    }

    /// Calls the timers that are due and the posted functions. Returns true if there were any.
    package func runDue(now: UInt64) -> Bool {
        var ran = false
        if !timers.isEmpty {
            for timer in Array(timers.values) {
                guard let deadline = timer.deadline, deadline <= now, !timer.isRemoved else { continue }
                timer.deadline = nil
                exclusion?.lock()
                unsafe timer.function(timer.argument)
                exclusion?.unlock()
                ran = true
            }
        }
        if hasPosted.load(ordering: .acquiring) {
            hasPosted.store(false, ordering: .releasing)
            let entries = posted.withLock { list in
                let taken = list
                list = []
                return taken
            }
            for entry in entries {
                exclusion?.lock()
                unsafe entry.function(entry.argument)
                exclusion?.unlock()
            }
            ran = ran || !entries.isEmpty
        }
        return ran
    }

    /// True if there are timers or posted functions.
    package var needsCare: Bool { !timers.isEmpty || hasPosted.load(ordering: .acquiring) }

    /// Waits for events for at most `timeout` ms (-1: without limit) and serves all but the event channel.
    ///
    /// Returns true if the event channel is readable.
    package func wait(timeout: Int32) -> Bool {
        var ready = unsafe InlineArray<16, epoll_event>(repeating: epoll_event())
        let count = unsafe withUnsafeMutableBytes(of: &ready) { bytes -> Int32 in
            unsafe epoll_wait(epoll, bytes.baseAddress?.assumingMemoryBound(to: epoll_event.self), 16, timeout)
        }
        var channel = false
        for position in 0..<max(0, Int(count)) {
            let event = unsafe ready[position]
            switch unsafe event.data.u64 {
            case Source.wake.rawValue: break
            case Source.eventChannel.rawValue:
                channel = true
            case let number:
                guard let watch = watches[number], !watch.isRemoved else { continue }
                let bits = unsafe event.events
                var events: UInt32 = 0
                if bits & ~UInt32(EPOLLOUT.rawValue) != 0 { events |= UInt32(XBB_FD_READ) }
                if bits & ~UInt32(EPOLLIN.rawValue) != 0 { events |= UInt32(XBB_FD_WRITE) }
                exclusion?.lock()
                unsafe watch.function(watch.argument, watch.descriptor, events)
                exclusion?.unlock()
            }
        }
        return channel
    }
}
