// SPDX-License-Identifier: BSD-2-Clause
// Hostile and clumsy clients of xbbd's socket, and the real xbbctl.
import PluginHost
import Base
import CLinux
import Glibc
import Testing
import Xen

@testable import XBBControl
import Support

@Suite struct ControlSocketTests {
    private func connect(_ lab: DaemonLab) throws -> Descriptor {
        try Descriptor(clinux_unix_connect(lab.socket, Int32(SOCK_STREAM.rawValue)), "connect")
    }

    private func send(_ bytes: [UInt8], to socket: Descriptor) {
        var left = bytes[...]
        while !left.isEmpty {
            guard let count = socket.sendAvailable(left) else { return }
            left = left.dropFirst(count)
        }
    }

    /// All lines until the other end closes or `count` have come.
    private func lines(_ socket: Descriptor, _ count: Int = .max) -> [String] {
        var buffer = LineBuffer(limit: 1 << 20)
        var found: [String] = []
        while found.count < count, case .bytes(let bytes) = socket.readAvailable() {
            buffer.append(bytes)
            while let line = buffer.next() { found.append(String(decoding: line, as: UTF8.self)) }
        }
        return found
    }

    @Test("the socket is the administrator's alone") func mode() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        var status = stat()
        #expect(stat(lab.socket, &status) == 0)
        #expect(status.st_mode & 0o777 == 0o600)
    }

    @Test("or that of a group, where one is named", .enabled(if: geteuid() == 0)) func group() throws {
        let lab = try DaemonLab()
        try lab.startDaemon(["--socket-group", "daemon"])
        var status = stat()
        #expect(stat(lab.socket, &status) == 0)
        #expect(status.st_mode & 0o777 == 0o660)
        #expect(try status.st_gid == DaemonProcess.group(named: "daemon"))
        let lost = try Program([
            DaemonLab.products + "/xbbd", "--loopback", lab.root + "/xen", "--run-dir", lab.run, "--socket-group",
            "no-such-group",
        ])
        #expect(lost.wait() == .failed(78))
    }

    @Test("which may look and tune, and not say what guests get", .enabled(if: geteuid() == 0)) func rightsOfTheGroup()
        throws
    {
        let lab = try DaemonLab()
        chmod(lab.root, 0o755)
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon(["--socket-group", "daemon"])
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        func ask(_ line: String) throws -> String {
            let script =
                "my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die; print $s \"$ARGV[1]\\n\"; print scalar <$s>"
            return try Program(
                [
                    "/usr/bin/setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", "/usr/bin/perl",
                    "-MIO::Socket::UNIX", "-e", script, lab.socket, line,
                ], capture: true
            ).text()
        }
        for line in ["show 1/51712", "set 1/51712 poll_us 5", "resume 1/51712"] {
            #expect(try ask(line).contains("\"request\""), "\(line)")
        }
        for line in [
            "pause 1/51712 5", "pause 1/51712 5 release", "swap 1/51712 5 raw - % /etc/shadow", "resize 1/51712 512",
        ] {
            #expect(try ask(line).contains("only root may"), "\(line)")
        }
    }

    @Test("lines in one piece, in many, and without an end") func pieces() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        let many = try connect(lab)
        for byte in Array("list\nping\r\n".utf8) { send([byte], to: many) }
        #expect(lines(many, 2).first == "{\"vbds\":[]}")
        // A client that sends many requests and closes its side gets all answers.
        let burst = try connect(lab)
        send(Array(String(repeating: "list\n", count: 500).utf8), to: burst)
        shutdown(burst.raw, Int32(SHUT_WR))
        #expect(lines(burst) == Array(repeating: "{\"vbds\":[]}", count: 500))
        let open = try connect(lab)
        send(Array("list".utf8), to: open)
        shutdown(open.raw, Int32(SHUT_WR))
        #expect(lines(open).isEmpty)
    }

    @Test("junk is answered with an error, and too much of it with the end") func junk() throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        let client = try connect(lab)
        send(Array("hello\nshow\n\nset 1/2 a b c\n\u{1b}[2J\nping\n".utf8), to: client)
        let answers = lines(client, 6)
        #expect(answers.dropLast().allSatisfy { $0.hasPrefix("{\"error\":\"") })
        #expect(answers.last?.hasPrefix("{\"pid\":") == true)
        send([UInt8](repeating: 0x41, count: 1 << 20), to: client)
        #expect(lines(client).isEmpty)
        #expect((try? lab.ask(.ping)) != nil)
    }

    @Test("clients that never read and never speak are bounded, and keep nobody out") func manyClients()
        throws
    {
        let lab = try DaemonLab()
        try lab.startDaemon()
        var clients: [Descriptor] = []
        for _ in 0..<ControlServer.clientLimit {
            let client = try connect(lab)
            send(Array(String(repeating: "ping\n", count: 3000).utf8), to: client)
            clients.append(client)
        }
        // One that sends half a line, one that says nothing.
        for _ in 0..<ControlServer.clientLimit {
            let client = try connect(lab)
            send(Array("pin".utf8), to: client)
            clients += [client, try connect(lab)]
        }
        for _ in 0..<100 { #expect((try? lab.ask(.ping)) != nil) }
        withExtendedLifetime(clients) {}
    }

    @Test("clients that leave while their worker is asked") func impatient() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "mute")
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        for _ in 0..<200 {
            let client = try connect(lab)
            send(Array("show 1/51712\n".utf8), to: client)
        }
        #expect((try? lab.ask(.ping)) != nil)
    }

    @Test("the program, its output and its exit statuses") func program() throws {
        let lab = try DaemonLab()
        #expect(try lab.control(["list"]).exit == .failed(69))
        try lab.startDaemon()
        #expect(try lab.control(["list", "--json"]).text == "{\"json_version\":1,\"vbds\":[]}\n")
        let (json, exit) = try lab.control(["attach", "1", "xvda", "raw:/disk.img", "--option", "a=b", "--json"])
        #expect(exit == .clean)
        #expect(try JSON(parsing: json)["result"]?.string == "attached")
        #expect(try lab.store.text("/local/domain/0/backend/vbd/1/51712/xbb-options") == "a=b")
        let list = try lab.control(["list"]).text.split(separator: "\n")
        #expect(list.count == 2 && list[1].contains("xvda") && list[1].hasSuffix("raw     /disk.img"))
        #expect(try lab.control(["show", "1", "51712"]).text.hasPrefix("request    show\n"))
        let stats = try lab.control(["stats", "1", "xvda", "--json"]).text
        #expect(stats.hasPrefix("{\"json_version\":1,\"request\":\"stats\""), "\(stats)")
        #expect(try lab.control(["set", "1", "xvda", "poll_us=1"]).text.contains("set poll_us 1"))
        #expect(try lab.control(["set", "1", "xvda", "poll_us"]).exit == .failed(64))
        #expect(try lab.control(["show", "1", "xvdb"]).exit == .failed(1))
        #expect(try lab.control(["show", "1", "xvd"]).exit == .failed(64))
        #expect(try lab.control(["show", "40000", "xvda"]).exit == .failed(64))
        #expect(try lab.control(["attach", "1", "xvda", "raw:/disk.img"]).exit == .failed(1))
        #expect(try lab.control(["attach", "7", "xvda", "raw:/disk.img"]).exit == .failed(1))
        #expect(try lab.control(["attach", "1", "xvdb", "disk.img"]).exit == .failed(64))
        #expect(try lab.control(["detach", "1", "xvda"]).exit == .clean)
        #expect(try lab.control(["detach", "1", "xvda"]).exit == .failed(1))
        // Options before the command, too.
        let before = try Program(
            [DaemonLab.products + "/xbbctl", "--socket", lab.socket, "list", "--json"], capture: true)
        #expect(before.text().hasPrefix("{\"json_version\":1,\"vbds\":["))
    }

    @Test("a guest that keeps its disk is a matter of time") func timedOut() throws {
        let lab = try DaemonLab()
        lab.behave("vbd-1-51712", "stubborn")
        try lab.startDaemon()
        #expect(try lab.control(["attach", "1", "xvda", "null:"]).exit == .clean)
        #expect(try lab.store.text("/local/domain/0/backend/vbd/1/51712/physical-device-path") == "/")
        #expect(try lab.control(["detach", "1", "xvda", "--timeout", "0.1"]).exit == WorkerExit(code: 75, signal: 0))
        #expect(try lab.control(["detach", "1", "xvda", "--timeout", "0.1", "--force"]).exit == .clean)
    }
}
