// SPDX-License-Identifier: BSD-2-Clause
// What a person meets at xbbctl's command line.
import Base
import PluginHost
import Support
import Testing
import XenBus

@testable import XBBControl

@Suite struct XBBCtlTests {
    /// Runs a command of the shell in which $xbbctl is xbbctl for the lab; what it printed on both outputs.
    private func shell(_ lab: DaemonLab, _ command: String) throws -> (text: String, exit: WorkerExit) {
        let program = try Program(
            [
                "/bin/bash", "-c", "exec 2>&1; xbbctl() { \(DaemonLab.products)/xbbctl \"$@\"; }; \(command)",
            ], capture: true)
        return (program.text(), program.wait())
    }

    @Test(
        "under --json errors are JSON, those of the words too",
        arguments: [
            ("show 1 xvdz", Int32(1), "there is no VBD"), ("show 1", 64, "vdev"),
            ("shwo 1 xvda", 64, "did you mean 'show'?"),
            ("set 1 xvda poll_us=1000000000", 64, "expected a number from 0 to 1000000"),
            ("set 1 xvda disable_flush=2", 64, "expected yes or no"), ("top --interval 0", 64, "expected 0.1 to 3600"),
            ("set 1 xvda no-such=1", 64, "no-such"), ("set 1 xvda =1", 64, "KEY=VALUE"),
            ("attach 1 xvdb raw", 64, "FORMAT:PATH"), ("attach 1 xvdb raw:/a --option b", 64, "KEY=VALUE"),
            ("attach 1 xvdb raw:/a --readonly --shared", 64, "shared anyway"), ("log --lines 0", 64, "1 to 100000"),
            ("show nobody xvda", 1, "there is no domain 'nobody'"), ("list more", 64, "more"),
            ("events --since x", 64, "expected a sequence number"), ("metrics --format xml", 64, "xml"),
        ])
    func errorsAreJSON(_ words: String, _ status: Int32, _ text: String) throws {
        let lab = try DaemonLab()
        try lab.startDaemon()
        let (output, exit) = try lab.control(words.split(separator: " ").map(String.init) + ["--json"])
        let value = try JSON(parsing: output)
        #expect(exit == .failed(status) && value["status"]?.unsigned == UInt64(status), "\(output)")
        #expect(value["error"]?.string?.contains(text) == true, "\(output)")
    }

    @Test(
        "what was meant is said",
        arguments: [
            ("detatch 1 xvda", "did you mean 'detach'?"), ("lst", "did you mean 'list'?"),
            ("frobnicate 1 xvda", "there are list, show"), ("show 1 xvda json", "did you mean '--json'?"),
            ("attach 1 xvda raw /srv/a.img", "did you mean 'raw:/srv/a.img'?"),
            ("set 1 xvda poll_us 5", "with '=' between"), ("set 1 xvda pol-us=5", "did you mean 'poll-us'?"),
        ])
    func suggestions(_ words: String, _ text: String) throws {
        let lab = try DaemonLab()
        let output = try shell(lab, "xbbctl \(words) --loopback \(lab.root)/xen --socket \(lab.socket)").text
        #expect(output.contains(text), "\(output)")
    }

    @Test("a domain is known by its name, with and without xbbd") func names() throws {
        let lab = try DaemonLab()
        for (domain, name) in [("1", "web server"), ("2", "twin"), ("1", "web"), ("0", "twin")] {
            try lab.store.write("/local/domain/\(domain)/name", name)
        }
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        for domain in ["1", "web"] {
            let shown = try lab.control(["show", domain, "xvda", "--json"])
            #expect(shown.exit == .clean && shown.text.contains("ready"), "\(shown)")
        }
        #expect(try lab.ask(.domain("web"))["domid"]?.unsigned == 1)
        let twins = try lab.control(["show", "twin", "xvda", "--json"])
        #expect(twins.exit == .failed(1) && twins.text.contains("more than one domain 'twin': 0, 2"), "\(twins)")
        #expect(try lab.control(["detach", "web", "xvda"]).exit == .clean)
        #expect(try lab.control(["show", "99999", "xvda"]).exit == .failed(64))
    }

    @Test("without xbbd nothing is attached, and no time is spent") func noDaemon() throws {
        let lab = try DaemonLab()
        let image = lab.root + "/a.img"
        lab.put("a.img", "x")
        let (text, exit) = try lab.control(["attach", "1", "xvda", "raw:\(image)", "--json"])
        #expect(exit == .failed(69), "\(text)")
        #expect(text.contains("nobody would serve the disk") && text.contains("systemctl start xbbd"), "\(text)")
        #expect(throws: OperationError.self) { try lab.store.list("/local/domain/0/backend", in: .none) }
    }

    @Test("a name that is not UTF-8 is refused as what it is") func notText() throws {
        let lab = try DaemonLab()
        let output = try shell(lab, "xbbctl attach 1 xvda $'raw:/srv/\\xff.img' --loopback \(lab.root)/xen").text
        #expect(output.contains("is not UTF-8"), "\(output)")
    }

    @Test("what can be no format is a wrong word, what is none here is not") func formats() throws {
        let lab = try DaemonLab()
        for (name, status) in [("no/such", Int32(64)), ("a:b", 64), ("", 64), ("none", 1)] {
            let (text, exit) = try shell(lab, "xbbctl inspect \(lab.root) --format '\(name)'")
            #expect(exit == .failed(status), "\(name): \(text)")
        }
    }

    @Test("top asks all workers at once, and waits for none that is silent") func top() throws {
        let lab = try DaemonLab()
        for device in 0..<12 as Range<UInt32> {
            if device % 2 == 0 { lab.behave("vbd-1-\(51712 + 16 * device)", "mute") }
            _ = try lab.makeNode(1, 51712 + 16 * device)
        }
        try lab.startDaemon()
        try eventually("all are taken") {
            try lab.ask(.list)["vbds"]?.elements.filter { $0["state"]?.string == "initWait" }.count == 12
        }
        let rows = try lab.ask(.top)["vbds"]?.elements ?? []
        #expect(rows.count == 12)
        for (index, row) in rows.enumerated() { #expect((row["stats"] == .null) == (index % 2 == 0), "\(index)") }
    }
}
