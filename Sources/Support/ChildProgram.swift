// SPDX-License-Identifier: BSD-2-Clause
// Runs a program that prints its answer and ends, or is killed.
import CLinux
import Glibc

/// A program that is run for one answer.
public enum ChildProgram {
    /// How it ended and what it printed.
    public struct Result: Sendable {
        /// What it wrote to standard output.
        public let output: [UInt8]
        /// Its exit status; nil if a signal ended it.
        public let status: Int32?
        /// What ended it: "took more than 10 s", "was ended by signal 11"; nil if it ended by itself.
        public let problem: String?
    }

    /// Runs `arguments`, the program's path first, and waits for its end. The program shares the standard error of this
    /// process. It is killed after `seconds`, or when it prints more than `limit` bytes. Throws an errno if it cannot
    /// be started.
    public static func run(_ arguments: [String], seconds: UInt64, limit: Int = 1 << 20) throws(StartError) -> Result {
        var ends: [Int32] = [-1, -1]
        guard let program = arguments.first, unsafe pipe2(&ends, O_CLOEXEC) == 0 else { throw StartError(code: errno) }
        let (code, process) = startProgram(program, arguments, output: ends[1])
        close(ends[1])
        defer { close(ends[0]) }
        if code != 0 { throw StartError(code: code) }
        let (output, problem) = read(ends[0], until: clinux_monotonic_ns() + seconds * 1_000_000_000, seconds, limit)
        if problem != nil { kill(process, SIGKILL) }
        var status: Int32 = 0
        while unsafe waitpid(process, &status, 0) < 0 && errno == EINTR {}
        let signal = status & 0x7f
        if signal != 0 {
            return Result(output: output, status: nil, problem: problem ?? "was ended by \(SignalName.text(signal))")
        }
        return Result(output: output, status: status >> 8 & 0xff, problem: problem)
    }

    /// The program could not be started.
    public struct StartError: Error {
        /// An errno.
        public let code: Int32
    }

    private static func read(
        _ pipe: Int32, until deadline: UInt64, _ seconds: UInt64, _ limit: Int
    ) -> (output: [UInt8], problem: String?) {
        var output: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let now = clinux_monotonic_ns()
            guard now < deadline else { return (output, "took more than \(seconds) s") }
            var entry = pollfd(fd: pipe, events: Int16(POLLIN), revents: 0)
            let ready = unsafe poll(&entry, 1, Int32(clamping: (deadline - now) / 1_000_000 + 1))
            if ready <= 0 { continue }
            let count = unsafe buffer.withUnsafeMutableBytes { unsafe Glibc.read(pipe, $0.baseAddress, $0.count) }
            if count == 0 { return (output, nil) }
            if count < 0 {
                if errno == EINTR { continue }
                return (output, "could not be read from")
            }
            output += buffer[..<count]
            if output.count > limit { return ([], "printed more than \(limit) bytes") }
        }
    }
}
