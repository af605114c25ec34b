// SPDX-License-Identifier: BSD-2-Clause
// Threads of the frontend.
import Base
import CLinux

/// A POSIX thread with a name. Must be joined or detached once.
///
/// `@unchecked Sendable`: a thread number is a constant, and any thread may join or detach it.
public final class FrontThread: @unchecked Sendable {
    private let thread: pthread_t

    /// Starts a thread that runs `body`. The name is cut to 15 bytes.
    public init(name: String, _ body: @escaping @Sendable () -> Void) throws(BlkfrontError) {
        do throws(OperationError) {
            thread = try startThread(named: name, body)
        } catch {
            throw .domain(error)
        }
    }

    /// Waits for the end of the thread.
    public func join() {
        _ = pthread_join(thread, nil)
    }

    /// True on the thread itself.
    public var isCurrent: Bool { pthread_equal(thread, pthread_self()) != 0 }

    /// Lets the thread end by itself, instead of ``join()``.
    public func detach() {
        _ = pthread_detach(thread)
    }
}

/// A non-blocking eventfd with counter 0; -1 if there is none.
func makeEvent() -> Int32 {
    eventfd(0, Int32(EFD_CLOEXEC) | Int32(EFD_NONBLOCK))
}
