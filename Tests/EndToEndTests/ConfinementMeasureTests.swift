// SPDX-License-Identifier: BSD-2-Clause
// Each measure of confinement for itself.
import Foundation
import Testing

extension EndToEnd {
    /// Each measure of confinement alone, in a process that takes no other.
    @Suite struct ConfinementMeasureTests {
        private func probe(_ words: String...) throws -> String {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: "\(buildDirectory)/confine-probe")
            process.arguments = words
            let pipe = Pipe()
            process.standardOutput = pipe
            process.standardError = FileHandle.nullDevice
            try process.run()
            let output = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            process.waitUntilExit()
            return process.terminationReason == .uncaughtSignal
                ? "signal \(process.terminationStatus)"
                : "status \(process.terminationStatus) \(output.trimmingCharacters(in: .whitespacesAndNewlines))"
        }

        @Test func nothingIsRefusedWithoutAMeasure() throws {
            for attempt in ["open", "stat", "fstat", "socket", "unix-socket"] {
                #expect(try probe("none", attempt) == "status 0 0")
            }
        }

        @Test(arguments: ["open", "create", "execve"])
        func landlockAloneRefuses(attempt: String) throws {
            let result = try probe("landlock", attempt, "/tmp/xbb-probe-\(getpid())")
            // 77: this kernel has no Landlock; the worker says so in its log and goes on.
            #expect(result == "status 0 \(EACCES)" || result == "status 77 ")
        }

        @Test func theFilterAloneRefusesAlsoThreadsThatWereThereBefore() throws {
            #expect(try probe("filter", "open") == "status 0 \(EACCES)")
            #expect(try probe("filter", "thread-open") == "status 0 \(EACCES)")
            #expect(try probe("filter", "fstat") == "status 0 0")
            #expect(try probe("filter", "socket") == "signal \(SIGSYS)")
            #expect(try probe("filter", "thread-socket") == "signal \(SIGSYS)")
            #expect(try probe("filter", "execve") == "signal \(SIGSYS)")
        }

        @Test func aNetworkPluginMayUseTheInternetAndNothingElse() throws {
            #expect(try probe("filter-network", "socket") == "status 0 0")
            #expect(try probe("filter-network", "unix-socket") == "status 0 \(EAFNOSUPPORT)")
            #expect(try probe("filter-network", "open") == "status 0 \(EACCES)")
            #expect(try probe("filter-network", "execve") == "signal \(SIGSYS)")
        }

        @Test(.enabled(if: geteuid() == 0)) func rootAndUserAndCapabilitiesAloneRefuse() throws {
            #expect(try probe("user", "setuid") == "status 0 \(EPERM)")
            #expect(try probe("user", "thread-setuid") == "status 0 \(EPERM)")
            #expect(try probe("capabilities", "chown", "/tmp") == "status 0 \(EPERM)")
            let empty = try makeTemporaryDirectory("empty")
            #expect(try probe("root", "stat", empty) == "status 0 \(ENOENT)")
            #expect(try probe("root", "thread-open", empty) == "status 0 \(ENOENT)")
            rmdir(empty)
        }
    }
}
