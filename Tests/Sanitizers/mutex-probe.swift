// SPDX-License-Identifier: BSD-2-Clause
// Threads that meet at a lock. ThreadSanitizer finds nothing here where it sees Swift's Mutex, and without it what the lock
// protects. With an argument nobody locks, which must be found.
import Glibc
import Synchronization

final class Shared: @unchecked Sendable {
    let lock = Mutex(())
    var number = 0
    let isLocked: Bool

    init(isLocked: Bool) { self.isLocked = isLocked }

    func count() {
        for _ in 0..<100_000 {
            if isLocked { lock.withLock { _ in number &+= 1 } } else { number &+= 1 }
        }
    }

    static let only = Shared(isLocked: CommandLine.argc < 2)

    /// A thread that counts.
    static func thread() -> pthread_t {
        var thread = pthread_t()
        pthread_create(
            &thread, nil,
            { _ in
                Shared.only.count()
                return nil
            }, nil)
        return thread
    }
}

let threads = (0..<4).map { _ in Shared.thread() }
for thread in threads { pthread_join(thread, nil) }
