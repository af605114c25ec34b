// SPDX-License-Identifier: BSD-2-Clause
// The process xbb-vbd under test: starts, asks, signals and buries it.
import CLinux
import Foundation
import Testing

/// How a process ended.
enum ExitStatus: Equatable {
    case exited(Int32)
    case signalled(Int32)
}

/// One run of xbb-vbd.
final class Worker {
    let generation: Int
    private let loopback: String
    let logPath: String
    let socketPath: String
    private(set) var process: pid_t = 0
    private var status: ExitStatus?

    init(lab: Lab, number: UInt32, generation: Int) {
        self.generation = generation
        loopback = lab.xen.directory
        logPath = "\(lab.directory)/\(number)-\(generation).log"
        socketPath = "\(lab.directory)/\(number)-\(generation).sock"
    }

    var hasStarted: Bool { process != 0 }
    var log: String { (try? String(contentsOfFile: logPath, encoding: .utf8)) ?? "" }

    /// `descriptors` become its 3, 4 and so on. Without `awaitsSocket` it returns before the worker has come to anything.
    func start(
        backend: String, plugins: String, _ arguments: [String], environment extra: [String] = [],
        descriptors: [Int32] = [], awaitsSocket: Bool = true
    ) throws {
        let words =
            [
                "\(buildDirectory)/xbb-vbd", "--backend-path", backend, "--loopback", loopback, "--plugin-dir", plugins,
                "--control", socketPath,
            ] + arguments
        var pointers = words.map { strdup($0) } + [nil]
        // A crash must be an exit status, not a backtrace that takes seconds.
        let usual = extra.contains { $0.hasPrefix("SWIFT_BACKTRACE=") } ? [] : ["SWIFT_BACKTRACE=enable=no"]
        var environment = (usual + extra).map { strdup($0) } + [nil]
        defer { (pointers + environment).forEach { free($0) } }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 2, logPath, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        // One that a failed test leaves must not keep the output of the tests open: whoever reads it would wait for its end.
        posix_spawn_file_actions_adddup2(&actions, 2, 1)
        for (index, descriptor) in descriptors.enumerated() {
            posix_spawn_file_actions_adddup2(&actions, descriptor, Int32(3 + index))
        }
        let result = posix_spawn(&process, words[0], &actions, nil, &pointers, &environment)
        guard result == 0 else { throw LabError("spawn \(words[0]): error \(result)") }
        if !awaitsSocket { return }
        try eventually("the control socket of \(backend); log: \(log)") { !isRunning || hasSocket }
    }

    /// It serves, or is about to.
    var hasSocket: Bool { FileManager.default.fileExists(atPath: socketPath) }

    var isRunning: Bool {
        if process == 0 || status != nil { return false }
        var code: Int32 = 0
        guard waitpid(process, &code, WNOHANG) == process else { return true }
        status = code & 0x7f == 0 ? .exited(code >> 8 & 0xff) : .signalled(code & 0x7f)
        return false
    }

    func signal(_ number: Int32) {
        if isRunning { Foundation.kill(process, number) }
    }

    func awaitExit(seconds: Double = 30) throws -> ExitStatus {
        try eventually("the end of the worker; log: \(log.suffix(2000))", seconds: seconds) { !isRunning }
        return try #require(status)
    }

    /// Ends it at once, whatever it is doing.
    func kill() {
        signal(SIGKILL)
        if status == nil, process != 0 { _ = try? awaitExit() }
    }

    // MARK: Control socket

    /// A connection to its control socket.
    func call() throws -> Int32 {
        var descriptor = clinux_unix_connect(socketPath, Int32(SOCK_STREAM.rawValue))
        // A worker that takes over makes the name when it has the lock, and it is there a moment before somebody listens.
        for _ in 0..<10_000 where descriptor < 0 && (errno == ECONNREFUSED || errno == ENOENT) && isRunning {
            usleep(1000)
            descriptor = clinux_unix_connect(socketPath, Int32(SOCK_STREAM.rawValue))
        }
        guard descriptor >= 0 else { throw LabError("connect to \(socketPath): \(errno); log: \(log.suffix(1000))") }
        return descriptor
    }

    /// One command and its answer. An answer is the proof that the control thread lives.
    func ask(_ command: String) throws -> [String: Any] {
        let descriptor = try call()
        defer { close(descriptor) }
        var limit = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        let line = Array("\(command)\n".utf8)
        guard write(descriptor, line, line.count) == line.count else { throw LabError("ask \(command)") }
        var answer: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while !answer.contains(UInt8(ascii: "\n")) {
            let count = read(descriptor, &buffer, buffer.count)
            if count <= 0 { throw LabError("no answer to \(command); log: \(log.suffix(1000))") }
            answer += buffer.prefix(count)
        }
        return try #require(try JSONSerialization.jsonObject(with: Data(answer)) as? [String: Any])
    }

    /// One of the totals of `stats`.
    func total(_ name: String) throws -> Int {
        let totals = try #require(try ask("stats")["totals"] as? [String: Any])
        return try #require(totals[name] as? Int, "no counter \(name)")
    }

    /// A field of `show`.
    func show(_ name: String) throws -> String {
        let value = try ask("show")[name]
        return value.map { "\($0)" } ?? "none"
    }

    /// Sets a tunable.
    func set(_ name: String, _ value: Int) throws {
        let answer = try ask("set \(name) \(value)")
        #expect(answer["error"] == nil, "\(answer)")
    }

    // MARK: /proc

    /// Processor time that it has used, in seconds.
    func processorSeconds() throws -> Double {
        let text = try String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)
        let fields = text[(text.lastIndex(of: ")") ?? text.startIndex)...].split(separator: " ")
        let ticks = (Double(fields[12]) ?? 0) + (Double(fields[13]) ?? 0)
        return ticks / Double(sysconf(Int32(_SC_CLK_TCK)))
    }

    /// A field of /proc/PID/task/TID/status of each thread.
    func status(_ name: String) throws -> [String] {
        let threads = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/task")
        return try threads.map { thread in
            let text = try String(contentsOfFile: "/proc/\(process)/task/\(thread)/status", encoding: .utf8)
            let line = text.split(separator: "\n").first { $0.hasPrefix("\(name):") } ?? ""
            return line.dropFirst(name.count + 1).split { " \t".contains($0) }.joined(separator: " ")
        }
    }

    /// A file of /proc/PID.
    func processFile(_ name: String) throws -> String {
        try String(contentsOfFile: "/proc/\(process)/\(name)", encoding: .utf8)
    }

    /// Its root directory.
    func root() throws -> String { try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(process)/root") }

    /// Open descriptors.
    func descriptors() throws -> Int {
        try FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/fd").count
    }
}
