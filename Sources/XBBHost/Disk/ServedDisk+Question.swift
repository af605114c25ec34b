// SPDX-License-Identifier: BSD-2-Clause
// Asking the plugin what it counted, on a thread of its own: it may take its time, or all time.
import Base
import CLinux
import Glibc
import PluginHost
import Support
import Synchronization
import Xen

/// One call of the plugin's stats(). Control thread only, but for the call itself and ``awaitEnd()``.
///
/// Not one of ``PluginCalls``: a stats() that hangs would keep the disk from being connected.
final class PluginQuestion {
    /// Whoever asked waits that long, in ns: much less than `xbbctl` waits for the worker.
    static var patience: UInt64 { 500_000_000 }

    private final class Answer: Sendable {
        let counters = Mutex<PluginCounters?>(nil)
        let isDone = Atomic<Bool>(false)
    }

    private let answer = Answer()
    private let thread: pthread_t
    private let name: String
    private let began = clinux_monotonic_ns()
    private var waiting: [(JSON) -> Void] = []
    /// The size is to be asked for when the call is over.
    var isResizeWanted = false

    /// Begins the call; `mailbox` gets `.pluginCounted` when it is over.
    init(_ device: PluginDevice, _ mailbox: Mailbox) throws(OperationError) {
        name = device.library.name
        thread = try startThread(named: "xbb-stats") { [answer] in
            let counters = device.readStatistics()
            answer.counters.withLock { $0 = counters }
            answer.isDone.store(true, ordering: .releasing)
            mailbox.post(.pluginCounted)
        }
    }

    /// The plugin has returned.
    var isDone: Bool { answer.isDone.load(ordering: .acquiring) }

    /// When those who wait are answered without it, in ns of the monotonic clock.
    var deadline: UInt64 { waiting.isEmpty ? .max : began &+ Self.patience }

    /// Calls `reply` when the plugin has answered, or when nobody waits for it any more.
    func ask(_ reply: @escaping (JSON) -> Void) {
        waiting.append(reply)
        expire()
    }

    /// Answers those who have waited long enough.
    func expire() {
        let seconds = (clinux_monotonic_ns() &- began) / 1_000_000_000
        if clinux_monotonic_ns() &- began < Self.patience { return }
        reply(Self.json(name, nil, error: "its stats() has not returned for \(seconds) s"))
    }

    /// Ends the thread of a call that ``isDone``, and answers those who wait.
    func finish() {
        pthread_join(thread, nil)
        let counters = answer.counters.withLock { $0 }
        reply(Self.json(name, counters, error: counters == nil ? "its stats() failed" : nil))
    }

    /// The plugin is not waited for any more; those who asked are told so.
    func abandon() {
        pthread_detach(thread)
        reply(Self.json(name, nil, error: "its stats() does not return"))
    }

    /// Waits a moment for the plugin, on any thread; false if it hangs.
    func awaitEnd() -> Bool {
        for _ in 0..<200 where !isDone { usleep(5000) }
        return isDone
    }

    private func reply(_ value: JSON) {
        let replies = waiting
        waiting = []
        for reply in replies { reply(value) }
    }

    private static func json(_ name: String, _ counters: PluginCounters?, error: String?) -> JSON {
        .object([
            ("name", .string(name)),
            ("counters", counters.map { .object($0.map { ($0.name, .integer($0.value)) }) } ?? .null),
            ("error", .text(error)),
        ])
    }
}

extension ServedDisk {
    /// Asks the plugin what it counts; `reply` gets null where it counts nothing, or its name with counters or an error.
    func askPlugin(_ reply: @escaping (JSON) -> Void) {
        guard let device, device.counts, !isEnding, calls.running == nil || question != nil else { return reply(.null) }
        do throws(OperationError) {
            if let question { return question.ask(reply) }
            let asked = try PluginQuestion(device, mailbox)
            question = asked
            asked.ask(reply)
        } catch {
            reply(.object([("name", .string(device.library.name)), ("error", .string(error.description))]))
        }
    }

    /// Answers those who have waited long enough for the plugin.
    func expireQuestion() {
        if let question, question.deadline <= clinux_monotonic_ns() { question.expire() }
    }

    /// The plugin has answered; true if its size is to be asked for now.
    func finishQuestion() -> Bool {
        guard let question, question.isDone else { return false }
        self.question = nil
        question.finish()
        return question.isResizeWanted
    }
}
