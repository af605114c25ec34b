// SPDX-License-Identifier: BSD-2-Clause
// xbb-plugin-check finds the one fault of a plugin and names it, and finds none in good plugins.
import Glibc
import Support
import Testing

/// xbb-plugin-check, run on a plugin of the build folder.
private struct Checker {
    /// The folder of the project, with '/' at its end.
    static let sources = #filePath.replacing("Tests/PluginTests/CheckerTests.swift", with: "")

    let folder = TemporaryFolder()

    /// The plugin under the name by which hosts know it.
    func plugin(_ name: String, from file: String? = nil) -> String {
        let path = "\(folder.path)/xbb-\(name).so"
        #expect(shell("cp \(file ?? library(name)) \(path)").status == 0)
        return path
    }

    /// The plugin, built from a C source as the documentation for authors does it.
    func build(_ name: String, from source: String, _ options: String = "-Wl,-z,defs") -> String {
        let path = "\(folder.path)/xbb-\(name).so"
        let built = shell(
            "gcc -std=c11 -shared -fPIC \(options) -I\(Self.sources)Sources/PluginAPI/include \(source) -o \(path)")
        #expect(built.status == 0, "\(built.output)")
        return path
    }

    /// Exit status, and why each check that failed did.
    func run(_ arguments: String, environment: String = "") -> (status: Int32, failures: [String: String]) {
        let result = shell("\(environment) \(buildFolder)/xbb-plugin-check --json \(arguments)")
        guard let json = try? JSON(parsing: result.output.utf8) else { return (result.status, ["": result.output]) }
        var failures: [String: String] = [:]
        for check in json["checks"]?.elements ?? [] where check["outcome"]?.string == "failed" {
            failures[check["check"]?.string ?? ""] = check["why"]?.string ?? ""
        }
        return (result.status, failures)
    }
}

@Suite struct CheckerTests {
    @Test(arguments: ["null", "error", "delay", "file"])
    func goodPluginsPass(name: String) {
        let checker = Checker()
        let result = checker.run(
            "--quick \(name == "null" ? "--skip data,mutation,crash,concurrency" : "") \(checker.plugin(name))")
        #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
    }

    @Test func thePluginOfTheTutorialPasses() {
        let checker = Checker()
        let plugin = checker.build("memory", from: "\(Checker.sources)examples/c-memory/memory.c")
        let result = checker.run("--quick \(plugin)")
        #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
    }

    /// The example of a network plugin, and the same without its wait for what the dead process had sent, with a server that does
    /// what the dead process wrote, which begins with four times 255, some time later.
    @Test(arguments: [true, false]) func aSuccessorThatDoesNotWaitIsFound(waits: Bool) throws {
        let checker = Checker()
        let (folder, socket) = (checker.folder.path, "\(checker.folder.path)/server.sock")
        let written = shell(
            "sed 's/if (before >= 0) settle(before);/if (\(waits ? "before >= 0" : "0")) settle(before);/' "
                + "\(Checker.sources)examples/c-nbd/nbd.c >\(folder)/nbd.c && "
                + "grep -q 'if (\(waits ? "before" : "0")' \(folder)/nbd.c")
        #expect(written.status == 0, "\(written.output)")
        let plugin = checker.build("c-nbd", from: "\(folder)/nbd.c")
        let server = shell(
            """
            cd \(folder) && truncate -s 16M disk && cat >write <<'END'
            cat >data.$$
            case $(od -An -tx1 -N4 data.$$) in *"ff ff ff ff"*) sleep $(shuf -n 1 -e 0 0 0 0.3 0.7 1.5) ;; esac
            dd if=data.$$ of=disk oflag=seek_bytes conv=notrunc seek=$4 bs=64k status=none; rm data.$$
            END
            nbdkit -P \(folder)/server.pid -U \(socket) eval get_size='echo 16M' thread_model='echo parallel' can_flush='exit 0' flush='exit 0' \
                pread="dd if=\(folder)/disk iflag=skip_bytes,count_bytes skip=\\$4 count=\\$3 bs=64k status=none" \
                pwrite="cd \(folder); $(cat write)" </dev/null >/dev/null 2>&1
            """)
        #expect(server.status == 0, "\(server.output)")
        defer { shell("kill -9 $(cat \(folder)/server.pid)") }
        let result = checker.run(
            "--only crash.successor \(waits ? "--quick" : "") \(plugin) -- socket=\(socket)")
        #expect(result.status == (waits ? 0 : 1), "\(result.failures)")
        let isAccused = result.failures.contains { $0.value.contains("came behind one of its successor") }
        #expect(waits != isAccused, "\(result.failures)")
    }

    /// The plugin that has all the faults has none unless it is asked to.
    @Test func theFaultyPluginWithoutAFaultPasses() {
        let checker = Checker()
        let plugin = checker.plugin("faulty", from: faulty)
        // At once, and later from the queue's own thread.
        for mode in ["none", "holds"] {
            let result = checker.run("--quick \(plugin) -- fault=\(mode)")
            #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
        }
    }

    @Test func theRawDiskPluginPassesOnABlockDevice() throws {
        let checker = Checker()
        let loop = try LoopDevice(size: 8 << 20)
        defer { shell("losetup -d \(loop.path)") }
        let plugin = checker.plugin("rawdisk")
        #expect(checker.run("--quick --image \(loop.path) \(plugin)").status == 2, "it is written over unasked")
        let result = checker.run("--quick --overwrite --image \(loop.path) \(plugin)")
        #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
    }

    /// The first of them in make test, all with XBB_LONG.
    static let images: [String] = {
        let all = [
            "", "cluster_size=512", "SNAPSHOT", "cluster_size=4k,refcount_bits=64", "cluster_size=2M", "compat=0.10",
            "preallocation=metadata", "extended_l2=on", "DEFLATED",
        ]
        return getenv("XBB_LONG") == nil ? Array(all.prefix(3)) : all
    }()

    /// The same promises for images: also that a completed write is there after SIGKILL, before any flush.
    @Test(arguments: images)
    func theQCOWPluginPasses(kind: String) {
        let checker = Checker()
        let image = "\(checker.folder.path)/image"
        let made =
            switch kind {
            case "DEFLATED":
                shell(
                    "head -c 17M /dev/zero | tr '\\0' a > \(image).raw && qemu-img convert -c -O qcow2 \(image).raw \(image)"
                )
            case "SNAPSHOT":
                shell(
                    "qemu-img create -q -f qcow2 \(image) 17M && qemu-io -f qcow2 -c 'write 0 4M' \(image) && "
                        + "qemu-img snapshot -c one \(image)")
            default: shell("qemu-img create -q -f qcow2 \(kind.isEmpty ? "" : "-o " + kind) \(image) 17M")
            }
        #expect(made.status == 0, "\(made.output)")
        let result = checker.run("--quick --image \(image) \(checker.plugin("qcow"))")
        #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
    }

    @Test(arguments: ["dynamic", "fixed"])
    func theVHDPluginPasses(kind: String) {
        let checker = Checker()
        let image = "\(checker.folder.path)/image"
        let made = shell("qemu-img create -q -f vpc -o subformat=\(kind),force_size=on \(image) 17M")
        #expect(made.status == 0, "\(made.output)")
        let result = checker.run("--quick --image \(image) \(checker.plugin("vhd"))")
        #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
    }

    private let faulty = "\(buildFolder)/libfaulty-test-plugin.so"

    static let faults: [(fault: String, check: String, words: String)] = [
        ("accepts-nothing", "operations.batches", "accepts nothing with nothing in flight"),
        ("accepts-too-many", "operations.batches", "was given 1 requests and accepted 2"),
        ("changes-directory", "phases.process", "the working directory"),
        ("changes-limits", "phases.process", "resource limit 7"),
        ("changes-locale", "phases.process", "the locale"),
        ("changes-umask", "phases.process", "the umask"),
        ("closes-descriptor", "open.descriptor-kept", "closed the host's descriptor"),
        ("closes-the-report", "open.good", "closes no descriptor that is not its own"),
        ("completes-after-close", "open.leaks", "complete() after queue_close()"),
        ("completes-twice", "operations.shapes", "twice"),
        ("completes-unaccepted", "operations.batches", "did not accept"),
        ("corrupts", "data.model", "from byte 12345 on"),
        ("crashes", "operations.shapes", "SIGSEGV at address 0x8"),
        ("discards-nothing", "data.model", "wrong data"),
        ("drops-on-cancel", "cancel.all", "a hint drops nothing"),
        ("exits", "operations.shapes", "never calls exit()"),
        ("forgets-flushed", "crash.flush", "gone after SIGKILL"),
        ("forgets-unflushed", "crash.replay", "was completed and is gone after SIGKILL"),
        ("forks", "phases.process", "child processes"),
        ("handles-signals", "phases.process", "the handler of SIGUSR1"),
        ("ignores-fua", "crash.fua", "a WRITE with FUA"),
        ("keeps-later", "operations.shapes", "called host->keep() outside open()"),
        ("keeps-too-much", "open.good", "called host->keep() with key 32"),
        ("leaks-descriptors", "open.leaks", "50 descriptors"),
        ("leaks-memory", "open.leaks", "50 allocations"),
        ("leaks-threads", "open.leaks", "50 threads"),
        ("leaves-watches", "open.leaks", "queue_close() left a watch"),
        ("logs-after-close", "ownership.late", "host->log() after close()"),
        ("loses-requests", "operations.shapes", "never completed"),
        ("no-message", "open.hostile", "without a message"),
        ("opens-later", "phases.files", "/etc/hostname"),
        ("overruns-ctx", "operations.shapes", "behind ctx"),
        ("positive-error", "open.hostile", "negative errno"),
        ("positive-status", "operations.shapes", "status 512"),
        ("reads-past-iov", "operations.shapes", "ran over the end of the buffer of a WRITE"),
        ("reads-twice", "mutation.writes", "stored as 238"),
        ("refuses-after-death", "crash.replay", "the disk was not closed"),
        ("shares-state", "concurrency.queues", "wrong data"),
        ("size-odd", "open.good", "not whole blocks"),
        ("size-too-large", "operations.shapes", "at 17825280 gave -5"),
        ("socket-later", "phases.sockets", "not XBB_PLUGIN_NETWORK"),
        ("socketpair-later", "phases.sockets", "family 1 was made after open()"),
        ("takes-unknown", "operations.unknown", "-EOPNOTSUPP"),
        ("thread-in-open", "phases.threads", "open() starts a thread"),
        ("touches-buffer-late", "operations.shapes", "after its complete()"),
        ("touches-request-late", "operations.shapes", "touched the struct xbb_req"),
        ("writes-short", "data.model", "wrong data"),
        ("writes-iovec", "operations.shapes", "iovec array"),
        ("writes-past-iov", "operations.shapes", "ran over the end of the buffer of a READ"),
        ("writes-read-only", "open.read-only", "XBB_OPEN_RDONLY"),
        ("writes-request", "operations.shapes", "changed the struct xbb_req"),
        ("writes-once", "crash.replay", "when the next process did it again it gave -17"),
        ("wrong-thread", "operations.shapes", "from another thread"),
        ("zeroes-nothing", "data.model", "wrong data"),
    ]

    @Test(arguments: faults)
    func eachFaultIsNamed(fault: String, check: String, words: String) {
        expectNamed(check, words, "--time-limit 30", fault: "fault=\(fault)")
    }

    /// What is wrong before open() is chosen by the environment.
    static let early = [
        ("load-fails", "table.accepted", "load() failed"),
        ("probe-changes-its-mind", "probe.pure", "for the same bytes"),
        ("probe-opens-files", "probe.pure", "system call 257 openat"),
        ("probe-reads-too-far", "probe.fuzz", "SIGSEGV"),
        ("probe-score", "probe.fuzz", "gave 101"),
        ("thread-in-load", "phases.threads", "load() starts a thread"),
        ("probe-takes-all", "probe.recognises", "a disk of zeroes"),
    ]

    @Test(arguments: early)
    func eachEarlyFaultIsNamed(fault: String, check: String, words: String) {
        expectNamed(check, words, environment: "XBB_FAULT=\(fault)")
    }

    /// The check alone fails, and says it in these words.
    private func expectNamed(
        _ check: String, _ words: String, _ options: String = "", fault: String = "", environment: String = ""
    ) {
        let checker = Checker()
        let plugin = checker.plugin("faulty", from: faulty)
        let result = checker.run("--quick \(options) --only \(check) \(plugin) -- \(fault)", environment: environment)
        #expect(result.status == 1 && result.failures[check]?.contains(words) == true, "\(result.failures)")
    }

    @Test func aPluginThatHangsCostsItsCheckOnly() {
        let checker = Checker()
        let plugin = checker.plugin("faulty", from: faulty)
        let result = checker.run(
            "--quick --time-limit 3 --only operations.commands,operations.unknown \(plugin) -- fault=hangs")
        #expect(result.status == 1 && result.failures.keys.sorted() == ["operations.commands"], "\(result.failures)")
        #expect(result.failures["operations.commands"]?.contains("during a FLUSH") == true, "\(result.failures)")
    }

    @Test func theFileItselfIsChecked() {
        let checker = Checker()
        let folder = checker.folder.path
        for (flags, check, words) in [
            ("", "linkage.exports", "xbb_plugin_v1() is not exported"),
            ("-DUNDEFINED", "linkage.imports", "no_such_function"),
            ("-Wl,-z,execstack", "linkage.stack", "noexecstack"),
            ("-DCHANGE='table->open=0'", "table.accepted", "it has no open()"),
        ] {
            let entry = check == "linkage.exports" ? "-DENTRY=other_function" : ""
            let plugin = checker.build(
                "broken", from: "\(Checker.sources)Tests/BrokenPlugin/broken.c", "-DNAME=broken \(flags) \(entry)")
            let result = checker.run("--quick --only \(check) \(plugin)")
            #expect(result.status == 1 && result.failures[check]?.contains(words) == true, "\(result.failures)")
        }
        #expect(checker.run("--only linkage.file-name \(checker.plugin("null"))").status == 0)
        shell("mv \(folder)/xbb-null.so \(folder)/null.so")
        #expect(checker.run("--only linkage.file-name \(folder)/null.so").status == 1)
    }

    /// Each with the name of its level, and a level that the ABI does not know without one.
    @Test func verboseNamesTheLevelsOfLogLines() {
        let checker = Checker()
        let plugin = checker.plugin("faulty", from: faulty)
        let result = shell("\(buildFolder)/xbb-plugin-check --verbose --only open.good \(plugin) -- fault=logs")
        let logged = result.output.split(separator: "\n").filter { $0.contains(": at level ") }
        let levels = ["log", "error", "warning", "info", "debug", "log"]
        let expected = levels.enumerated().map { "\($1): at level \($0)"[...] }
        #expect(result.status == 0 && logged.starts(with: expected), "\(result.output)")
    }

    @Test func reportsAreForMachinesToo() {
        let checker = Checker()
        let plugin = checker.plugin("faulty", from: faulty)
        let program = "\(buildFolder)/xbb-plugin-check --quick"
        let junit = "\(checker.folder.path)/report.xml"
        let tap = shell(
            "\(program) --tap --junit \(junit) --only linkage,operations.unknown \(plugin) -- fault=takes-unknown")
        let lines = tap.output.split(separator: "\n").map(String.init)
        #expect(tap.status == 1 && lines.prefix(2) == ["TAP version 13", "1..6"], "\(tap.output)")
        #expect(lines.count { $0.hasPrefix("ok ") } == 5 && lines.count { $0.hasPrefix("not ok 6 - ") } == 1)
        let read = "import sys, xml.etree.ElementTree as x; r = x.parse(sys.argv[1]).getroot(); print(r.get('tests'), "
        let parsed = shell("python3 -c \"\(read)r.get('failures'), len(r.findall('testcase/failure')))\" \(junit)")
        #expect(parsed.output == "6 1 1\n", "\(parsed.output)")
        #expect(shell("\(program) --only resize \(plugin)").status == 77)
        for wrong in [
            "", "--only nothing \(plugin)", "/nonexistent/xbb-a.so", "--frob \(plugin)", "\(plugin) -- fault",
        ] {
            #expect(shell("\(program) \(wrong)").status == 2, "\(wrong)")
        }
    }

    /// Options that a person finds in one of them are in the other.
    @Test func theManPageHasTheOptionsOfHelp() throws {
        let page = "\(Checker.sources)docs/man/xbb-plugin-check.1"
        let described = Set(
            shell("grep -oE '(It|,) Fl -[a-z-]+' \(page) | sed 's/.*Fl -/--/'").output.split(separator: "\n"))
        let helped = Set(
            shell("\(buildFolder)/xbb-plugin-check --help | grep -oE '^  +--[a-z-]+' | tr -d ' '").output
                .split(separator: "\n"))
        #expect(described == helped && helped.count > 10, "\(described.symmetricDifference(helped))")
    }
}
