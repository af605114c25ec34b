// SPDX-License-Identifier: BSD-2-Clause
// xbb.conf: what it means, and what is said about mistakes.
import PluginHost
import Base
import CLinux
import Glibc
import Settings
import Support
import Testing

@testable import XBBControl

@Suite struct ConfigurationTests {
    private func parse(_ text: String) throws(ControlError) -> DaemonConfiguration {
        try DaemonConfiguration(parsing: text, file: "xbb.conf")
    }

    private func problem(_ text: String) -> String {
        do throws(ControlError) {
            _ = try parse(text)
            return "none"
        } catch {
            #expect(error.status == .configuration)
            return error.description
        }
    }

    @Test("every key has its meaning") func everyKey() throws {
        let file = try parse(
            """
            # comment
            ; comment
            [xbbd]
            run-dir = /run/other
            socket-group=disk
              backend = vbd, qdisk vbd3
            any-script = yes
            stop-workers = yes\r
            standby = no
            restart-limit = 3
            restart-window = 60
            log-level = debug

            [worker]
            program = "/opt/xbb vbd"
            plugin-dir = /a /b,/c
            backing-dir = /t
            user = nobody
            confine = no
            max-queues = 4
            max-ring-page-order = 0
            memory-mib = 1024
            poll-us = 50
            [tunables]
            disable-flush = no
            flush-interval = 7
            no-coalesce-reqs = yes
            """)
        let values = file.values
        #expect(values[SettingsSchema.runDirectory] == "/run/other" && values[SettingsSchema.socketGroup] == "disk")
        #expect(values[SettingsSchema.stopWorkers] == true && values[SettingsSchema.standby] == false)
        #expect(values[SettingsSchema.anyScript] == true && values[SettingsSchema.restartLimit] == 3)
        #expect(values[SettingsSchema.restartWindow] == 60)
        #expect(values[SettingsSchema.backends] == ["vbd", "qdisk", "vbd3"])
        #expect(values[SettingsSchema.logLevel] == "debug" && values[SettingsSchema.program] == "/opt/xbb vbd")
        #expect(values[SettingsSchema.pluginDirectories] == ["/a", "/b", "/c"])
        #expect(values[SettingsSchema.backingDirectories] == ["/t"])
        #expect(values[SettingsSchema.user] == "nobody" && values[SettingsSchema.confine] == false)
        #expect(values[SettingsSchema.maxQueues] == 4 && values[SettingsSchema.maxRingPageOrder] == 0)
        #expect(values[SettingsSchema.memoryMiB] == 1024 && values[SettingsSchema.pollMicroseconds] == 50)
        #expect(values[SettingsSchema.disableFlush] == false && values[SettingsSchema.flushInterval] == 7)
        #expect(values[SettingsSchema.noCoalesce] == true)
    }

    @Test("what cannot be read as a file is refused with its reason, by --check-config and at the start")
    func noFile() throws {
        let lab = try DaemonLab()
        mkdir(lab.root + "/folder", 0o755)
        mkfifo(lab.root + "/pipe", 0o600)
        symlink("loop", lab.root + "/loop")
        symlink("folder", lab.root + "/link")
        // Beyond the limit, whatever the last byte is: here one within a character.
        lab.put("huge", String(repeating: "#", count: (1 << 20) - 1) + "\nä" + String(repeating: "ä", count: 1 << 20))
        lab.put("bytes", "x")
        #expect(truncate(lab.root + "/bytes", 4096) == 0)
        let files = [
            ("folder", "is no file but a directory"), ("link", "is no file but a directory"),
            ("pipe", "is no file but a pipe"), ("loop", "Too many levels"), ("missing", "No such file"),
            ("huge", "has more than 1048576 bytes"), ("bytes", ":1: "), ("xbb.conf/under", "No such file"),
            ("bytes/under", "Not a directory"),
        ].map { (lab.root + "/" + $0.0, $0.1) }
        for (path, reason) in files + [("/dev/zero", "is no file but a device"), ("/proc/self/mem", "cannot be read")] {
            for words in [["--check-config"], ["--loopback", lab.root + "/xen", "--run-dir", lab.run]] {
                let program = try Program(
                    ["/bin/sh", "-c", "exec 2>&1; exec \"$0\" \"$@\"", DaemonLab.products + "/xbbd", "--config", path]
                        + words, capture: true)
                let text = program.text()
                #expect(program.wait() == .failed(78) && text.contains(reason), "\(path): \(text)")
                #expect(text.contains(path), "\(text)")
            }
        }
        let program = try Program(
            [DaemonLab.products + "/xbbd", "--config", "/dev/null/x", "--check-config"], capture: true)
        #expect(program.wait() == .failed(78))
    }

    @Test("an empty file says nothing") func empty() throws {
        for text in ["", "\n\n", "[xbbd]\n[worker]\n", "# only this"] { #expect(try parse(text) == .init()) }
    }

    @Test(
        "a mistake is named with its line and what to do",
        arguments: [
            ("max-queues = 1", "xbb.conf:1: 'max-queues' stands before the first section; put [xbbd] or [worker]"),
            ("[xbbd", "xbb.conf:1: '[xbbd' is no section: expected a name in brackets, such as [xbbd]"),
            ("[worker]\nmax-queues", "xbb.conf:2: 'max-queues': expected 'key = value'; a comment begins with '#'"),
            ("[worker]\n\nmax-queues = 65", "xbb.conf:3: max-queues '65': expected a number from 1 to 64"),
            ("[worker]\nmax-queues = 4 # four", "xbb.conf:2: max-queues '4 # four': expected a number from 1 to 64"),
            ("[worker]\nmax_queues = 4", "xbb.conf:2: 'max_queues' is no key: expected small letters, digits and '-'"),
            ("[xbbd]\nmax-queues = 4", "xbb.conf:2: there is no key 'max-queues' in [xbbd]; it belongs below [worker]"),
            ("[xbbd]\nqueues = 4", "xbb.conf:2: there is no key 'queues' in [xbbd]; there are run-dir, state-dir"),
            (
                "[worker]\nmax-queue = 4",
                "xbb.conf:2: there is no key 'max-queue' in [worker]; did you mean 'max-queues'?"
            ),
            ("[tunable]\nflush-interval = 4", "xbb.conf:2: there is no section [tunable]; did you mean [tunables]?"),
            ("[disk]\nqueues = 4", "xbb.conf:2: there is no section [disk]; there are [xbbd], [worker], [tunables]"),
            ("[xbbd]\nbackend = vbd vbd", "xbb.conf:2: backend 'vbd vbd': something is named twice"),
            ("[xbbd]\nbackend = v/d", "xbb.conf:2: backend 'v/d': expected a name such as vbd, qdisk or vbd3"),
            ("[xbbd]\nbackend =", "xbb.conf:2: backend: expected at least one: a name such as vbd, qdisk or vbd3"),
            ("[xbbd]\nrun-dir = run", "xbb.conf:2: run-dir 'run': expected a path that begins with '/'"),
            ("[xbbd]\nstop-workers = 2", "xbb.conf:2: stop-workers '2': expected yes or no"),
            ("[xbbd]\nlog-level = 3", "xbb.conf:2: log-level '3': expected error, warning, info or debug"),
            ("[worker]\nuser = a b", "xbb.conf:2: user 'a b': expected a name as in /etc/passwd or /etc/group"),
            ("[worker]\nuser = \"xbb", "xbb.conf:2: the value of 'user' begins with '\"' and does not end with"),
            ("[worker]\nuser = a\u{1}b", "xbb.conf:2: the value of 'user' has control characters"),
            ("[worker]\nuser = a\u{9b}2J", "xbb.conf:2: the value of 'user' has control characters"),
            ("[work\u{7f}\u{1b}er", "xbb.conf:1: '[work\\u{7f}\\u{1b}er' is no section"),
            ("a\u{9b}2J", "xbb.conf:1: 'a\\u{9b}2J': expected 'key = value'"),
            ("a\u{2028}b = c", "xbb.conf:1: 'a\\u{2028}b' is no key"),
            (
                "[tunables]\nflush-interval = -1",
                "xbb.conf:2: flush-interval '-1': expected a number from 0 to 1000000000"
            ),
            ("[worker]\nuser = a\n[xbbd]\n[worker]\nuser = b", "xbb.conf:5: 'user' stands in line 2 already"),
        ])
    func mistakes(_ text: String, _ expected: String) {
        #expect(problem(text).hasPrefix(expected))
    }

    @Test("all mistakes are told at once, in their order") func all() {
        let lines = problem("nonsense\n[xbbd]\nlog-level = x\n[nowhere]\na = b\n").split(separator: "\n")
        #expect(lines.map { $0.prefix(11) } == ["xbb.conf:1:", "xbb.conf:3:", "xbb.conf:5:"])
    }

    @Test("whatever the bytes are, it is an answer and not a crash") func anything() {
        var generator = SplitMix64(seed: 7)
        let pieces = ["[xbbd]", "[", "]", "=", "\n", "\"", " ", "backend", "max-queues", "9", "#", "\u{0}", "ü", "\r"]
        for _ in 0..<2000 {
            let text = (0..<Int.random(in: 0..<24, using: &generator)).map { _ in
                pieces.randomElement(using: &generator) ?? ""
            }.joined()
            _ = problem(text)
        }
    }

    /// The folder of the package, from the place of this file.
    private static let package = InstallPaths.folder(of: InstallPaths.folder(of: InstallPaths.folder(of: #filePath)))

    @Test("the file that is shipped names every key with its usual value") func shipped() throws {
        let file = try DaemonConfiguration.read("\(Self.package)/etc/xbb.conf", isOptional: false)
        #expect(file == .init(), "everything in it is a comment")
        let raw = try Descriptor(clinux_open("\(Self.package)/etc/xbb.conf", O_RDONLY, 0), "open xbb.conf")
        guard case .bytes(let bytes) = raw.readAvailable() else { return }
        // Comments that are entries begin without a space.
        let entries = String(decoding: bytes, as: UTF8.self).split(separator: "\n", omittingEmptySubsequences: false)
            .map { $0.hasPrefix("#") && !$0.hasPrefix("# ") ? $0.dropFirst() : $0 }.joined(separator: "\n")
        let whole = try parse(entries)
        for setting in SettingsSchema.all { #expect(whole.values[setting] != nil, "\(setting.name)") }
        for setting in SettingsSchema.all where setting.usual != nil {
            #expect(whole.values[setting] == setting.usual, "\(setting.name)")
        }
        #expect(whole.values[SettingsSchema.user] == "xbb")
        let policy = RestartPolicy()
        #expect(whole.values[SettingsSchema.restartLimit] == policy.failureLimit)
        #expect(whole.values[SettingsSchema.restartWindow] == Int(policy.windowSeconds))
    }

    @Test("xbbd takes the file, and options win") func daemon() throws {
        let lab = try DaemonLab()
        lab.put(
            "xbb.conf",
            """
            [xbbd]
            backend = qdisk
            state-dir = \(lab.root)/state
            log-level = warning
            [worker]
            max-queues = 4
            poll-us = 20
            user = nobody
            plugin-dir = /p1 /p2
            [tunables]
            flush-interval = 3
            """)
        _ = try lab.makeNode(1, 51712, kind: "qdisk")
        try lab.startDaemon(["--config", lab.root + "/xbb.conf", "--poll-us", "30", "--no-confine"])
        try eventually("it is taken") { try lab.row("qdisk/1/51712")?["state"]?.string == "initWait" }
        let shown = try lab.ask(.show(try #require(VBDReference(parsing: "1/51712"))))
        let arguments = (shown["arguments"]?.elements ?? []).compactMap(\.string).joined(separator: " ")
        #expect(
            arguments.hasSuffix(
                "--log-level warning --state-dir \(lab.root)/state --max-queues 4 --poll-us 30 --user nobody --no-confine "
                    + "--tunable flush_interval=3"))
        #expect(arguments.contains("--plugin-dir /p1 --plugin-dir /p2"))
    }

    @Test("--check-config says what is wrong and ends with 78") func check() throws {
        let lab = try DaemonLab()
        lab.put("good.conf", "[worker]\nmax-queues = 2\n")
        lab.put("bad.conf", "[worker]\nmax-queues = many\n")
        func check(_ path: String) throws -> (String, WorkerExit) {
            let program = try Program(
                [DaemonLab.products + "/xbbd", "--check-config", "--config", path], capture: true)
            return (program.text(), program.wait())
        }
        let good = try check(lab.root + "/good.conf")
        #expect(good.1 == .clean && good.0 == "\(lab.root)/good.conf: no problem found\n")
        #expect(try check(lab.root + "/bad.conf").1 == .failed(78))
        #expect(try check(lab.root + "/none.conf").1 == .failed(78))
        // The daemon itself does not start with it either.
        let daemon = try Program([
            DaemonLab.products + "/xbbd", "--loopback", lab.root + "/xen", "--run-dir", lab.run, "--config",
            lab.root + "/bad.conf",
        ])
        #expect(daemon.wait() == .failed(78))
    }
}
