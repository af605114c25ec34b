// SPDX-License-Identifier: BSD-2-Clause
// xbb-loopback as a program.
import Base
import CLinux
import CXen
import Glibc
import Testing
import Xen
import XenLoopback

@Suite struct DomainProgramTests {
    /// The program lies beside the test's own.
    private static let program: String = {
        var path = [UInt8](repeating: 0, count: 4096)
        let length = readlink("/proc/self/exe", &path, path.count)
        let own = String(decoding: path.prefix(max(length, 0)), as: UTF8.self)
        return own.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/")
            + "/xbb-loopback"
    }()

    /// A process that does not outlive the test, whatever becomes of that.
    private final class Child {
        let pid: pid_t
        let output: Int32
        private var isOver = false

        init(pid: pid_t, output: Int32) {
            self.pid = pid
            self.output = output
        }

        deinit {
            if !isOver {
                kill(pid, SIGKILL)
                _ = try? wait()
            }
            close(output)
        }

        /// The exit code, or the negative number of the signal that ended it.
        func wait() throws -> Int32 {
            var status: Int32 = 0
            try #require(waitpid(pid, &status, 0) == pid)
            isOver = true
            return status & 0x7f == 0 ? (status >> 8) & 0xff : -(status & 0x7f)
        }

        func line() -> String {
            var bytes: [UInt8] = []
            var byte: UInt8 = 0
            while read(output, &byte, 1) == 1 && byte != 10 { bytes.append(byte) }
            return String(decoding: bytes, as: UTF8.self)
        }
    }

    /// Starts a shell command with PROGRAM and DIR set; its output goes to a pipe.
    private func start(_ command: String, _ directory: String) throws -> Child {
        var ends: [Int32] = [0, 0]
        try #require(pipe2(&ends, O_CLOEXEC) == 0)
        defer { close(ends[1]) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 2)
        var arguments: [UnsafeMutablePointer<CChar>?] =
            ["/bin/sh", "-c", command].map { (text: String) in strdup(text) } + [nil]
        var environment: [UnsafeMutablePointer<CChar>?] =
            ["PROGRAM=\(Self.program)", "DIR=\(directory)", "PATH=/usr/bin:/bin"].map { (text: String) in strdup(text) }
            + [nil]
        defer { for string in arguments + environment { free(string) } }
        var pid: pid_t = 0
        try #require(posix_spawn(&pid, "/bin/sh", &actions, nil, &arguments, &environment) == 0)
        return Child(pid: pid, output: ends[0])
    }

    private func run(_ command: String, _ directory: String) throws -> (code: Int32, output: String) {
        let child = try start(command, directory)
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let got = read(child.output, &buffer, buffer.count)
            if got <= 0 { break }
            bytes += buffer.prefix(got)
        }
        return (try child.wait(), String(decoding: bytes, as: UTF8.self))
    }

    @Test func aServerAndItsClients() throws {
        let directory = try temporaryDirectory()
        defer { removeDirectory(directory) }
        let server = try start("exec $PROGRAM run --dir $DIR --pid-file $DIR/pid", directory)
        #expect(server.line() == "xbb-loopback: ready in \(directory)")
        #expect(try run("cat $DIR/pid", directory).output == "\(server.pid)\n")
        #expect(try run("$PROGRAM run --dir $DIR", directory).code == 1)
        #expect(try run("$PROGRAM domain create --dir $DIR", directory).output == "1\n")
        #expect(try run("XBB_LOOPBACK=$DIR $PROGRAM domain create 7 --pages 10", directory).output == "7\n")
        #expect(try run("$PROGRAM domain create --dir $DIR 7", directory).code == 1)
        #expect(try run("$PROGRAM domain destroy --dir $DIR 1", directory).code == 0)
        #expect(try run("$PROGRAM domain destroy --dir $DIR 1", directory).code == 1)
        let list = try run("$PROGRAM domain list --dir $DIR --json", directory).output
        #expect(
            list.contains(
                "{\"domid\": 7, \"state\": \"running\", \"destroy_on_exit\": false, \"pages\": 10, "
                    + "\"grant_entries\": 32768, \"granted\": 0, \"mapped\": 0,"))
        #expect(list.split(separator: "\n").count == 4)
        #expect(try run("$PROGRAM domain --dir $DIR", directory).output.split(separator: "\n").count == 3)
        #expect(
            try run("XENSTORED_PATH=$DIR/xenstored-7.sock xenstore-read domid", directory).output == "7\n")

        // A frontend and a backend in this process, the hypervisor in the other one.
        let guest = try LoopbackDomain(joining: 7, directory: directory)
        let platform = LoopbackPlatform(directory: directory)
        let host = try hostMemory()
        guest.write([3], frame: 0)
        let reference = try guest.grantAccess(to: 0, frame: 0, readOnly: true)
        let copy = Copy(reference: reference, domain: 7, length: 1)
        let table = try platform.openGrants()
        #expect(try XenLoopbackTests.run([copy], on: table, host: host) == [0])
        #expect(host.bytes(at: 0, count: 1) == [3])
        let front = try guest.allocatePort(for: 0)
        let events = try platform.openEvents()
        let port = try events.bind(front.number, of: 7)

        kill(server.pid, SIGTERM)
        #expect(try server.wait() == 0)
        #expect(try run("ls $DIR", directory).output == "lock\n")
        // The domain is gone. What is mapped stays so, and what needs the hypervisor says so.
        try events.notify(port)
        #expect(!guest.isAlive && !front.isBound && !front.isPending)
        #expect(guest.read(frame: 0, count: 1) == [3])
        #expect(try XenLoopbackTests.run([copy], on: table, host: host) == [Int16(GNTST_general_error)])
        #expect(guest.endAccess(reference))
        #expect(throws: OperationError.self) { try guest.allocatePort(for: 0) }
    }

    @Test func aServerOutOfDescriptorsGoesOnWhenClientsLeave() throws {
        let directory = try temporaryDirectory()
        defer { removeDirectory(directory) }
        let server = try start("ulimit -n 40; exec $PROGRAM run --dir $DIR", directory)
        _ = server.line()
        var clients = (0..<100).compactMap { _ in try? LoopbackControl(directory: directory) }
        try #require(clients.count > 5 && clients.count < 40)
        #expect(throws: OperationError.self) { try LoopbackControl(directory: directory) }
        #expect(try clients[0].domains().count == 1)
        #expect(throws: OperationError.self) { try clients[0].createDomain() }
        clients.removeLast(clients.count - 1)
        var made: DomainID?
        for _ in 0..<2000 where made == nil {
            made = try? LoopbackControl(directory: directory).createDomain()
            usleep(5000)
        }
        #expect(made != nil)
        kill(server.pid, SIGKILL)
        #expect(try server.wait() == -SIGKILL)
    }
}
