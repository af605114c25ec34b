// SPDX-License-Identifier: BSD-2-Clause
// One question to many workers, asked by a thread of its own: all are asked at the same time, one that does not answer holds up
// nobody, and whatever they answer costs the supervisor's thread no time.
import Base
import CLinux
import Glibc
import Synchronization

/// Asks workers. ``begin(_:)``, ``forget(_:)`` and ``take()`` on one thread.
final class WorkerGathering {
    /// Those who are asked, and what.
    struct Question: Sendable {
        let line: String
        /// The longest answer in bytes.
        let answerLimit: Int
        let workers: [Worker]
    }

    /// A worker by its socket.
    struct Worker: Sendable {
        let address: VBDAddress
        let socket: String
        let process: Int32
    }

    /// The answers of those that have answered in time: each is one line of JSON.
    typealias Answers = [VBDAddress: [UInt8]]

    /// How long workers have, in ns: somebody looks at the screen.
    private static let timeLimit: UInt64 = 500 * RestartPolicy.millisecond
    /// Those that have not answered after so long are looked at, in ns: one that is stopped is not waited for.
    private static let lookAfter: UInt64 = 100 * RestartPolicy.millisecond
    /// The most questions that are asked at the same time; others wait for their turn.
    private static let mostThreads = 4

    private struct Asked: Sendable {
        let number: UInt64
        let question: Question
    }

    /// A question that is answered.
    struct Answered: Sendable {
        let number: UInt64
        let answers: Answers
    }

    private struct Work: Sendable {
        var waiting: [Asked] = []
        var threads = 0
        var done: [Answered] = []
    }

    /// What all threads know.
    private final class Shared: Sendable {
        let work = Mutex(Work())
        let done: Descriptor
        init(_ done: Descriptor) { self.done = done }
    }

    private let shared: Shared
    private var last: UInt64 = 0

    init() throws(OperationError) {
        shared = Shared(try Descriptor.event())
    }

    /// Readable when there is something to take.
    var descriptor: Int32 { shared.done.raw }

    /// Begins to ask; the question's number. Throws if no thread can be started.
    func begin(_ question: Question) throws(OperationError) -> UInt64 {
        last += 1
        let number = last
        let asked = Asked(number: number, question: question)
        let needsThread = shared.work.withLock { work -> Bool in
            work.waiting.append(asked)
            if work.threads == Self.mostThreads { return false }
            work.threads += 1
            return true
        }
        if !needsThread { return number }
        do throws(OperationError) {
            try Self.start(shared)
        } catch {
            shared.work.withLock { work in
                work.threads -= 1
                work.waiting.removeAll { $0.number == number }
            }
            throw error
        }
        return number
    }

    /// Nobody wants the answers any more: it is not asked, unless that has begun.
    func forget(_ number: UInt64) {
        shared.work.withLock { $0.waiting.removeAll { $0.number == number } }
    }

    /// The questions that are answered.
    func take() -> [Answered] {
        shared.done.drain()
        return shared.work.withLock { work -> [Answered] in
            let done = work.done
            work.done = []
            return done
        }
    }

    private static func start(_ shared: Shared) throws(OperationError) {
        pthread_detach(try startThread(named: "gathering") { WorkerGathering.run(shared) })
    }

    /// A thread ends when no question waits.
    private static func run(_ shared: Shared) {
        while true {
            let next = shared.work.withLock { work -> Asked? in
                if work.waiting.isEmpty {
                    work.threads -= 1
                    return nil
                }
                return work.waiting.removeFirst()
            }
            guard let next else { return }
            let answered = Answered(number: next.number, answers: ask(next.question))
            shared.work.withLock { $0.done.append(answered) }
            shared.done.signal()
        }
    }

    /// Asks all workers of a question, and waits for them.
    private static func ask(_ question: Question) -> Answers {
        var answers: Answers = [:]
        let loop: EventLoop
        do throws(OperationError) { loop = try EventLoop() } catch { return answers }
        let began = clinux_monotonic_ns()
        var calls: [VBDAddress: (call: WorkerCall, process: Int32)] = [:]
        for worker in question.workers {
            let address = worker.address
            do throws(ControlError) {
                let call = try WorkerCall(
                    path: worker.socket, line: question.line, loop: loop, now: began, limit: timeLimit,
                    answerLimit: question.answerLimit
                ) { result in
                    calls[address] = nil
                    if case .success(let text) = result { answers[address] = text }
                }
                calls[address] = (call, worker.process)
            } catch {
                // It says nothing, as one that does not answer.
            }
        }
        var lookAt = began &+ lookAfter
        while !calls.isEmpty {
            let now = clinux_monotonic_ns()
            if now &- began >= timeLimit { break }
            if lookAt <= now {
                lookAt = .max
                for (call, process) in calls.values where ProcessState(of: process)?.isStopped == true {
                    call.abandon()
                }
            }
            do throws(OperationError) { try loop.turn(until: min(lookAt, began &+ timeLimit)) } catch { break }
        }
        for (call, _) in calls.values { call.abandon() }
        return answers
    }
}
