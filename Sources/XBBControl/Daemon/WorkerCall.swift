// SPDX-License-Identifier: BSD-2-Clause
// One request to a worker: connect, send a line, receive a line, with a time limit.
import Base
import CLinux
import Glibc
import Support

/// A call in progress. Its completion is called once.
final class WorkerCall {
    /// The longest answer, in bytes.
    static let answerLimit = 1 << 20
    /// The longest answer to a question that many workers are asked, or that one is asked again and again, in bytes.
    static let shortAnswerLimit = 64 << 10
    /// How long a worker has for its answer, in ns.
    static let timeLimit: UInt64 = 2 * RestartPolicy.second

    /// When the worker must have answered, in ns of CLOCK_MONOTONIC.
    let deadline: UInt64
    private let loop: EventLoop
    private let socket: Descriptor
    private var output: ArraySlice<UInt8>
    private var input: LineBuffer
    private var completion: ((Result<[UInt8], ControlError>) -> Void)?

    /// Connects to the worker's socket and sends `line`. The worker has `limit` ns for its answer of at most
    /// `answerLimit` bytes; nil: any time. Throws if nobody listens there.
    init(
        path: String, line: String, loop: EventLoop, now: UInt64 = clinux_monotonic_ns(),
        limit: UInt64? = WorkerCall.timeLimit, answerLimit: Int = WorkerCall.answerLimit,
        completion: @escaping (Result<[UInt8], ControlError>) -> Void
    ) throws(ControlError) {
        let raw = unsafe clinux_unix_connect(path, Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue))
        guard raw >= 0 else {
            // It is about to begin, or has ended.
            throw ControlError("the worker does not listen at \(path): \(errnoText(errno))", status: .timedOut)
        }
        socket = Descriptor(owning: raw)
        self.loop = loop
        input = LineBuffer(limit: answerLimit)
        output = [UInt8]((line + "\n").utf8)[...]
        deadline = limit.map { now &+ $0 } ?? .max
        self.completion = completion
        // A line is less than what the kernel takes at once.
        try send()
        do throws(OperationError) {
            let events = EventLoop.readable | (output.isEmpty ? 0 : EventLoop.writable)
            try loop.add(raw, events) { [unowned self] in ready() }
        } catch {
            throw ControlError("call the worker: \(error)")
        }
    }

    /// Ends the call with an error, because the time is over.
    func expire() {
        finish(.failure(ControlError("the worker does not answer", status: .timedOut)))
    }

    /// Ends the call without an answer.
    func abandon() { hungUp() }

    private func ready() {
        if !output.isEmpty {
            do throws(ControlError) { try send() } catch { return finish(.failure(error)) }
            if output.isEmpty { loop.change(socket.raw, EventLoop.readable) }
        }
        switch socket.readAvailable() {
        case .bytes(let bytes): input.append(bytes)
        case .wouldBlock: return
        case .ended: return hungUp()
        }
        if let line = input.next() { return finish(Self.checked(line)) }
        if input.isOverlong { finish(.failure(ControlError("the worker's answer is too long"))) }
    }

    private func send() throws(ControlError) {
        guard let count = socket.sendAvailable(output) else { throw Self.closed }
        output = output.dropFirst(count)
    }

    private func hungUp() { finish(.failure(Self.closed)) }

    /// It has ended, and another one can be asked soon.
    private static var closed: ControlError { ControlError("the worker closed the connection", status: .timedOut) }

    private func finish(_ result: Result<[UInt8], ControlError>) {
        guard let completion else { return }
        self.completion = nil
        loop.remove(socket.raw)
        completion(result)
    }

    /// A worker opens images that guests write, so its answer is untrusted and passed on only if it is JSON.
    private static func checked(_ line: [UInt8]) -> Result<[UInt8], ControlError> {
        do throws(JSONError) {
            try JSON.check(line)
            return .success(line)
        } catch {
            return .failure(ControlError("the worker's answer is \(error)"))
        }
    }
}
