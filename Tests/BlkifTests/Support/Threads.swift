// SPDX-License-Identifier: BSD-2-Clause
// Real threads for tests, and an event channel between two of them.
import CBlkifOracle
import Glibc

/// A thread that runs `body` once.
final class TestThread {
    private final class Body {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    private var thread = pthread_t()
    private let started: Bool

    init(_ run: @escaping @Sendable () -> Void) {
        let body = Unmanaged.passRetained(Body(run))
        started =
            pthread_create(
                &thread, nil,
                { argument in
                    if let argument { Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run() }
                    return nil
                }, body.toOpaque()) == 0
        precondition(started, "no thread")
    }

    /// Waits until the body has returned; once.
    func join() { pthread_join(thread, nil) }
}

/// Like an event channel: it is pending or not, and who sends twice before the other side looks sends one.
final class TestEvent: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var pending = false
    private var sendCount = 0

    init() {
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(condition, nil)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// How often it was sent.
    var sent: Int {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return sendCount
    }

    func send() {
        pthread_mutex_lock(mutex)
        pending = true
        sendCount += 1
        pthread_cond_signal(condition)
        pthread_mutex_unlock(mutex)
    }

    /// Sleeps until it is pending and clears it; false if nothing came for so long that nothing will.
    func wait(seconds: Int = 30) -> Bool {
        var end = timespec()
        clock_gettime(CLOCK_REALTIME, &end)
        end.tv_sec += seconds
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while !pending {
            if pthread_cond_timedwait(condition, mutex, &end) == ETIMEDOUT { return false }
        }
        pending = false
        return true
    }
}

/// A word that tells a thread in C to stop.
final class StopFlag: @unchecked Sendable {
    let word = UnsafeMutablePointer<Int32>.allocate(capacity: 1)

    init() { word.initialize(to: 0) }
    deinit { word.deallocate() }
    func stop() { oracle_stop(word) }
}
