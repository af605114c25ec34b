// SPDX-License-Identifier: BSD-2-Clause
// xbb-plugin-check finds the one fault of a plugin and names it, and finds none in good plugins.
import Glibc
import Support
import Testing

/// xbb-plugin-check, run on a plugin of the build folder.
private struct Checker {
    let folder = TemporaryFolder()

    /// The plugin under the name by which hosts know it.
    func plugin(_ name: String, from file: String? = nil) -> String {
        let path = "\(folder.path)/xbb-\(name).so"
        #expect(shell("cp \(file ?? library(name)) \(path)").status == 0)
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
        let result = checker.run("--quick \(name == "null" ? "--skip data,crash" : "") \(checker.plugin(name))")
        #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
    }

    @Test func thePluginOfTheTutorialPasses() {
        let checker = Checker()
        let sources = #filePath.replacing("Tests/PluginTests/CheckerTests.swift", with: "")
        let path = "\(checker.folder.path)/xbb-memory.so"
        let built = shell(
            "gcc -std=c11 -shared -fPIC -Wl,-z,defs -I\(sources)Sources/PluginAPI/include "
                + "\(sources)examples/c-memory/memory.c -o \(path)")
        #expect(built.status == 0, "\(built.output)")
        let result = checker.run("--quick \(path)")
        #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
    }

    /// The plugin that has all the faults has none unless it is asked to.
    @Test func theFaultyPluginWithoutAFaultPasses() {
        let checker = Checker()
        let result = checker.run("--quick \(checker.plugin("faulty", from: faulty))")
        #expect(result.status == 0 && result.failures.isEmpty, "\(result.failures)")
    }

    private let faulty = "\(buildFolder)/libfaulty-test-plugin.so"

    static let faults: [(fault: String, check: String, words: String)] = [
        ("accepts-nothing", "operations.batches", "accepts nothing with nothing in flight"),
        ("accepts-too-many", "operations.batches", "was given 1 requests and accepted 2"),
        ("closes-descriptor", "open.descriptor-kept", "closed the host's descriptor"),
        ("closes-the-report", "open.good", "closes no descriptor that is not its own"),
        ("completes-after-close", "open.leaks", "complete() after queue_close()"),
        ("completes-twice", "operations.shapes", "twice"),
        ("completes-unaccepted", "operations.batches", "did not accept"),
        ("crashes", "operations.shapes", "SIGSEGV at address 0x8"),
        ("exits", "operations.shapes", "never calls exit()"),
        ("leaks-descriptors", "open.leaks", "50 descriptors"),
        ("leaks-memory", "open.leaks", "50 allocations"),
        ("leaks-threads", "open.leaks", "50 threads"),
        ("leaves-watches", "open.leaks", "queue_close() left a watch"),
        ("loses-requests", "operations.shapes", "never completed"),
        ("no-message", "open.hostile", "without a message"),
        ("overruns-ctx", "operations.shapes", "behind ctx"),
        ("positive-error", "open.hostile", "negative errno"),
        ("positive-status", "operations.shapes", "status 512"),
        ("reads-past-iov", "operations.shapes", "ran over the end of the buffer of a WRITE"),
        ("size-odd", "open.good", "not whole blocks"),
        ("size-too-large", "operations.shapes", "at 17825280 gave -5"),
        ("takes-unknown", "operations.unknown", "-EOPNOTSUPP"),
        ("touches-buffer-late", "operations.shapes", "after its complete()"),
        ("touches-request-late", "operations.shapes", "touched the struct xbb_req"),
        ("writes-iovec", "operations.shapes", "iovec array"),
        ("writes-past-iov", "operations.shapes", "ran over the end of the buffer of a READ"),
        ("writes-read-only", "open.read-only", "XBB_OPEN_RDONLY"),
        ("writes-request", "operations.shapes", "changed the struct xbb_req"),
        ("wrong-thread", "operations.shapes", "from another thread"),
    ]

    @Test(arguments: faults)
    func eachFaultIsNamed(fault: String, check: String, words: String) {
        let checker = Checker()
        let plugin = checker.plugin("faulty", from: faulty)
        let result = checker.run("--quick --time-limit 30 --only \(check) \(plugin) -- fault=\(fault)")
        #expect(result.status == 1 && result.failures[check]?.contains(words) == true, "\(result.failures)")
    }

    /// What is wrong before open() is chosen by the environment.
    static let early = [
        ("load-fails", "table.accepted", "load() failed"),
        ("probe-changes-its-mind", "probe.pure", "for the same bytes"),
        ("probe-opens-files", "probe.pure", "system call 257 openat"),
        ("probe-reads-too-far", "probe.fuzz", "SIGSEGV"),
        ("probe-score", "probe.fuzz", "gave 101"),
        ("probe-takes-all", "probe.recognises", "a disk of zeroes"),
    ]

    @Test(arguments: early)
    func eachEarlyFaultIsNamed(fault: String, check: String, words: String) {
        let checker = Checker()
        let plugin = checker.plugin("faulty", from: faulty)
        let result = checker.run("--quick --only \(check) \(plugin)", environment: "XBB_FAULT=\(fault)")
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
}
