// SPDX-License-Identifier: BSD-2-Clause
// Calls that may take for ever: into a plugin, and into the file system that an image is on.
import Base
import CLinux
import Glibc

/// Makes calls one after the other, each on a thread of its own, so that the control thread lives on while one hangs.
/// Control thread only.
///
/// The thread of a call has ended when its completion is called: between two calls this process has no thread for them, and
/// confines itself then. The message ``DeviceMessage/callEnded`` tells the end; whoever takes it calls ``ended()``.
final class PluginCalls {
    /// A call that waits for its turn or runs.
    ///
    /// `@unchecked`: `body` is the thread's, all else the control thread's.
    private final class Call: @unchecked Sendable {
        let name: String
        let body: () -> Void
        let completion: () -> Void
        var thread: pthread_t?

        init(_ name: String, _ body: @escaping () -> Void, _ completion: @escaping () -> Void) {
            self.name = name
            self.body = body
            self.completion = completion
        }
    }

    /// What a call returned: written by its thread, read after that thread has ended.
    private final class Outcome<Value>: @unchecked Sendable {
        var result: Result<Value, OperationError>?
    }

    private let mailbox: Mailbox
    private var calls: [Call] = []
    /// When the first of them began, in ns of the monotonic clock.
    private var began: UInt64 = 0

    init(mailbox: Mailbox) {
        self.mailbox = mailbox
    }

    /// The call that runs, for operators, and when it began, in ns of the monotonic clock.
    var running: (name: String, began: UInt64)? { calls.first.map { ($0.name, began) } }

    /// Makes a call when those before it have ended. `completion` gets what it returned or threw, on the control thread.
    func make<Value>(
        _ name: String, _ body: @escaping () throws(OperationError) -> Value,
        _ completion: @escaping (Result<Value, OperationError>) -> Void
    ) {
        let outcome = Outcome<Value>()
        calls.append(
            Call(
                name,
                {
                    do throws(OperationError) {
                        outcome.result = .success(try body())
                    } catch {
                        outcome.result = .failure(error)
                    }
                },
                { completion(outcome.result ?? .failure(OperationError(ENOMEM, "start a thread for \(name)"))) }))
        if calls.count == 1 { begin() }
    }

    private func begin() {
        guard let call = calls.first else { return }
        began = clinux_monotonic_ns()
        let mailbox = mailbox
        do throws(OperationError) {
            call.thread = try startThread(named: "xbb-call") {
                call.body()
                mailbox.post(.callEnded)
            }
        } catch {
            ended()
        }
    }

    /// The call that ran is over.
    func ended() {
        guard let call = calls.first else { return }
        if let thread = call.thread { pthread_join(thread, nil) }
        calls.removeFirst()
        if !calls.isEmpty { begin() }
        call.completion()
    }
}
