// SPDX-License-Identifier: BSD-2-Clause
// Another thread that does what it is given.
import Base
import Glibc
import Synchronization

@testable import BlockQueue

/// One thread that runs closures in their order.
final class Worker {
    private struct Job: @unchecked Sendable {
        let body: () -> Void
    }
    private final class Inbox: Sendable {
        let jobs = Mutex<[Job]>([])
        let wakeUp = Semaphore()
        let done = Semaphore()
    }
    private let inbox = Inbox()
    private var posted = 0
    private let thread: pthread_t?

    init() {
        let inbox = inbox
        thread = try? startThread(named: "worker") {
            while true {
                inbox.wakeUp.wait()
                guard let job = inbox.jobs.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) else { return }
                job.body()
                inbox.done.signal()
            }
        }
    }

    deinit {
        inbox.wakeUp.signal()
        if let thread { pthread_join(thread, nil) }
    }

    /// Runs `body` soon.
    func run(_ body: @escaping () -> Void) {
        let job = Job(body: body)
        inbox.jobs.withLock { $0.append(job) }
        posted += 1
        inbox.wakeUp.signal()
    }

    /// Waits until all was done.
    func wait() {
        while posted > 0 {
            inbox.done.wait()
            posted -= 1
        }
    }
}
