// SPDX-License-Identifier: BSD-2-Clause
// Asks a worker program to describe its plugins. xbbd itself never loads a plugin.
import Base
import CLinux
import Glibc
import Support

/// One run of `xbb-vbd --dump-plugins`. The completion is called once, with the value that the program printed.
final class PluginDump {
    /// How long the program may take, in ns.
    static let timeLimit: UInt64 = 10 * RestartPolicy.second
    /// The most output in bytes.
    static let outputLimit = 1 << 20

    /// When the program must have ended, in ns of CLOCK_MONOTONIC.
    let deadline: UInt64
    private let loop: EventLoop
    private let process: WorkerProcess
    private let pipe: Descriptor
    private var output: [UInt8] = []
    private var isPipeOpen = true
    private var problem: String?
    private var completion: ((Result<JSON, ControlError>) -> Void)?

    /// Starts the program.
    init(
        arguments: [String], loop: EventLoop, now: UInt64 = clinux_monotonic_ns(),
        completion: @escaping (Result<JSON, ControlError>) -> Void
    ) throws(OperationError) {
        var ends: [Int32] = [-1, -1]
        if unsafe pipe2(&ends, O_CLOEXEC) != 0 { throw OperationError(errno, "make a pipe") }
        pipe = Descriptor(owning: ends[0])
        let output = Descriptor(owning: ends[1])
        // Each end is an open file of its own, so the program's end stays blocking.
        _ = clinux_fcntl_int(ends[0], F_SETFL, O_NONBLOCK)
        process = try WorkerProcess.spawn(arguments, output: output)
        self.loop = loop
        deadline = now &+ Self.timeLimit
        self.completion = completion
        do throws(OperationError) {
            try loop.add(process.pidfd.raw) { [unowned self] in ended() }
            try loop.add(pipe.raw) { [unowned self] in read() }
        } catch {
            process.send(SIGKILL)
            loop.remove(process.pidfd.raw)
            throw error
        }
    }

    /// Kills a program that takes too long; the completion follows.
    func expire() {
        kill("took more than \(Self.timeLimit / RestartPolicy.second) s")
    }

    private func kill(_ problem: String) {
        if self.problem == nil { self.problem = problem }
        process.send(SIGKILL)
    }

    private func read() {
        while isPipeOpen {
            switch pipe.readAvailable() {
            case .wouldBlock: return
            case .ended: closePipe()
            case .bytes(let bytes):
                output += bytes
                guard output.count <= Self.outputLimit else {
                    output = []
                    closePipe()
                    return kill("printed more than \(Self.outputLimit) bytes")
                }
            }
        }
    }

    private func closePipe() {
        isPipeOpen = false
        loop.remove(pipe.raw)
    }

    private func ended() {
        guard let exit = process.takeExit(), let completion else { return }
        self.completion = nil
        read()
        loop.remove(process.pidfd.raw)
        if isPipeOpen { closePipe() }
        completion(result(exit))
    }

    private func result(_ exit: WorkerExit) -> Result<JSON, ControlError> {
        if let problem { return .failure(ControlError("the worker program \(problem)")) }
        guard exit == .clean else { return .failure(ControlError("the worker program ended with \(exit)")) }
        do throws(JSONError) {
            return .success(try JSON(parsing: output))
        } catch {
            return .failure(ControlError("the worker program's description of plugins is \(error)"))
        }
    }
}
