// SPDX-License-Identifier: BSD-2-Clause
// Threads of the frontend.
import Base
import CLinux

/// A POSIX thread with a name. Must be joined or detached once.
///
/// `@unchecked Sendable`: a thread number is a constant, and any thread may join or detach it.
public final class FrontThread: @unchecked Sendable {
    private final class Body {
        let name: String
        let run: @Sendable () -> Void

        init(_ name: String, _ run: @escaping @Sendable () -> Void) {
            self.name = name
            self.run = run
        }
    }

    private let thread: pthread_t

    /// Starts a thread that runs `body`. The name is cut to 15 bytes.
    public init(name: String, _ body: @escaping @Sendable () -> Void) throws(BlkfrontError) {
        var thread = pthread_t()
        let box = unsafe Unmanaged.passRetained(Body(name, body))
        let result = unsafe pthread_create(
            &thread, nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                let body = unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue()
                _ = unsafe pthread_setname_np(
                    pthread_self(), String(decoding: body.name.utf8.prefix(15), as: UTF8.self))
                body.run()
                return nil
            }, box.toOpaque())
        if result != 0 {
            unsafe box.release()
            throw .domain(OperationError(result, "start thread \(name)"))
        }
        self.thread = thread
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
