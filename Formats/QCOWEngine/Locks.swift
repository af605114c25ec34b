// SPDX-License-Identifier: BSD-2-Clause
// The engine's locks: short ones that a queue's thread tries and never waits for.
import Glibc

/// One mutex.
final class Lock: Sendable {
    private let mutex = LockTable(count: 1)

    func tryLock() -> Bool { mutex.tryLock(0) }
    func unlock() { mutex.unlock(0) }

    func locked<Result, Failure>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
        mutex.lock(0)
        defer { mutex.unlock(0) }
        return try body()
    }
}

/// Many mutexes in one piece of memory, by number.
///
/// `@unchecked Sendable`: what pthread_mutex_* do is for all threads.
@safe
struct LockTable: ~Copyable, @unchecked Sendable {
    private let mutexes: UnsafeMutablePointer<pthread_mutex_t>
    /// A power of two.
    private let count: Int

    init(count: Int) {
        self.count = count
        unsafe mutexes = .allocate(capacity: count)
        unsafe mutexes.initialize(repeating: pthread_mutex_t(), count: count)
        for index in 0..<count { unsafe pthread_mutex_init(mutexes + index, nil) }
    }

    deinit {
        for index in 0..<count { unsafe pthread_mutex_destroy(mutexes + index) }
        unsafe mutexes.deallocate()
    }

    func lock(_ number: Int) { unsafe pthread_mutex_lock(mutexes + number & (count - 1)) }
    func tryLock(_ number: Int) -> Bool { unsafe pthread_mutex_trylock(mutexes + number & (count - 1)) == 0 }
    func unlock(_ number: Int) { unsafe pthread_mutex_unlock(mutexes + number & (count - 1)) }
}
