// SPDX-License-Identifier: BSD-2-Clause
// A mutex with a condition, and threads that take no signals: what the plugins' own threads are made of.
import Glibc

/// A lock to wait under.  The corresponding C functions are `pthread_mutex_*` and `pthread_cond_*`.
@safe
public final class Monitor {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>

    /// An unlocked monitor.
    public init() {
        unsafe mutex = .allocate(capacity: 1)
        unsafe condition = .allocate(capacity: 1)
        unsafe mutex.initialize(to: pthread_mutex_t())
        unsafe condition.initialize(to: pthread_cond_t())
        var attributes = pthread_condattr_t()
        unsafe pthread_condattr_init(&attributes)
        unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        unsafe pthread_mutex_init(mutex, nil)
        unsafe pthread_cond_init(condition, &attributes)
        unsafe pthread_condattr_destroy(&attributes)
    }

    deinit {
        unsafe pthread_cond_destroy(condition)
        unsafe pthread_mutex_destroy(mutex)
        unsafe condition.deallocate()
        unsafe mutex.deallocate()
    }

    /// Takes the lock.
    public func lock() { unsafe pthread_mutex_lock(mutex) }
    /// Gives the lock back.
    public func unlock() { unsafe pthread_mutex_unlock(mutex) }
    /// Gives the lock back until a signal; may return without one.
    public func wait() { unsafe pthread_cond_wait(condition, mutex) }

    /// Nanoseconds of CLOCK_MONOTONIC, for ``wait(until:)``.
    public static var now: UInt64 {
        var time = timespec()
        // A variable that outlives the call.
        unsafe clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
    }

    /// Like `wait()`, at most until `deadline` in nanoseconds of CLOCK_MONOTONIC.
    public func wait(until deadline: UInt64) {
        var time = timespec(
            tv_sec: Int(truncatingIfNeeded: deadline / 1_000_000_000),
            tv_nsec: Int(truncatingIfNeeded: deadline % 1_000_000_000))
        unsafe pthread_cond_timedwait(condition, mutex, &time)
    }

    /// Wakes one waiter.
    public func signal() { unsafe pthread_cond_signal(condition) }
    /// Wakes all waiters.
    public func broadcast() { unsafe pthread_cond_broadcast(condition) }

    /// Runs `body` under the lock.
    public func locked<Result>(_ body: () -> Result) -> Result {
        lock()
        defer { unlock() }
        return body()
    }
}

/// A thread that runs a method of an object.
public protocol ThreadBody: AnyObject {
    /// What the thread does; it ends when this returns.
    func run()
}

/// A running thread, to be joined once.
public struct PluginThread: Sendable {
    private let thread: pthread_t

    /// Starts a thread that keeps `body` alive while it runs.  Not before the plugin's `start()`.
    public init(_ body: any ThreadBody) throws(PluginError) {
        var thread = pthread_t()
        let carrier = unsafe box(Carrier(body))
        // Signals are for the host's threads; a thread inherits the mask of the one that makes it.
        var (all, before) = (sigset_t(), sigset_t())
        unsafe sigfillset(&all)
        unsafe pthread_sigmask(SIG_SETMASK, &all, &before)
        let code = unsafe pthread_create(
            &thread, nil,
            { argument in
                unsafe unboxed(argument, as: Carrier.self)?.body.run()
                unsafe releaseBox(argument, as: Carrier.self)
                return nil
            }, carrier)
        unsafe pthread_sigmask(SIG_SETMASK, &before, nil)
        guard code == 0 else {
            unsafe releaseBox(carrier, as: Carrier.self)
            throw PluginError(system: "cannot start a thread", code)
        }
        self.thread = thread
    }

    /// Starts a thread that runs `body`.  Not before the plugin's `start()`.
    public init(_ body: @escaping @Sendable () -> Void) throws(PluginError) { try self.init(Closure(body)) }

    /// Waits for the end of the thread.
    public func join() { pthread_join(thread, nil) }

    private final class Closure: ThreadBody {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
        func run() { body() }
    }

    private final class Carrier {
        let body: any ThreadBody
        init(_ body: any ThreadBody) { self.body = body }
    }
}
