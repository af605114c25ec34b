// SPDX-License-Identifier: BSD-2-Clause
// POSIX threads: one that runs a closure, and waiting for another one once.
import CLinux
import Glibc

/// Starts a joinable thread that runs `body` under `name`, of which the first 15 bytes are kept.
///
/// Signals that the process waits for elsewhere are left to the thread that started this one; faults of the thread itself
/// are not blocked. The caller joins or detaches the thread once.
@safe
public func startThread(named name: String, _ body: sending @escaping () -> Void) throws(OperationError) -> pthread_t {
    final class Body {
        let name: String
        let run: () -> Void
        init(_ name: String, _ run: @escaping () -> Void) {
            self.name = name
            self.run = run
        }
    }
    var thread = pthread_t()
    // The new thread takes the reference over.
    let argument = unsafe Unmanaged.passRetained(Body(name, body))
    var blocked = sigset_t()
    var before = sigset_t()
    unsafe sigfillset(&blocked)
    for fault in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS] { unsafe sigdelset(&blocked, fault) }
    unsafe pthread_sigmask(SIG_BLOCK, &blocked, &before)
    let code = unsafe pthread_create(
        &thread, nil,
        { argument in
            guard let argument = unsafe argument else { return nil }
            let body = unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue()
            _ = unsafe pthread_setname_np(
                pthread_self(), String(decoding: body.name.utf8.prefix(15), as: UTF8.self))
            body.run()
            return nil
        }, argument.toOpaque())
    unsafe pthread_sigmask(SIG_SETMASK, &before, nil)
    if code != 0 {
        unsafe argument.release()
        throw OperationError(code, "start thread \(name)")
    }
    return thread
}

/// A counting semaphore of POSIX; any thread.
///
/// `@unchecked`: sem_t is made for several threads, and the pointer never changes.
@safe
public final class Semaphore: @unchecked Sendable {
    private let semaphore: UnsafeMutablePointer<sem_t>

    /// Counts from 0.
    public init() {
        unsafe semaphore = .allocate(capacity: 1)
        unsafe semaphore.initialize(to: sem_t())
        unsafe sem_init(semaphore, 0, 0)
    }

    deinit {
        unsafe sem_destroy(semaphore)
        unsafe semaphore.deallocate()
    }

    /// Counts up.
    public func signal() { unsafe sem_post(semaphore) }

    /// Waits until the count is above 0, and counts down.
    public func wait() { while unsafe sem_wait(semaphore) != 0 && errno == EINTR {} }
}
