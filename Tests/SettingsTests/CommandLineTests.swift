// SPDX-License-Identifier: BSD-2-Clause
// Command lines of declared options.
import Base
import Testing

@testable import Settings

@Suite struct CommandLineTests {
    private static let change = Setting(list: "tunable", "a change", "KEY=VALUE", TextRule(expected: "") { _ in true })
    private let options = CommandLineOptions(
        SettingsSchema.worker + [Self.change.declaration], change: Self.change.declaration, workingDirectory: "/work")

    private func problem(_ words: String...) -> String {
        do throws(OperationError) {
            _ = try options.parse(words)
            return "none"
        } catch {
            return error.description
        }
    }

    @Test("values stand behind an option or its '='") func values() throws {
        let values = try options.parse([
            "--max-queues", "4", "--poll-us=7", "--no-confine", "--plugin-dir", "/a, b", "--plugin-dir=c", "--user=x",
            "--max-queues", "5", "--tunable", "disable_flush=1", "--tunable=flush-interval=3",
        ])
        #expect(values[SettingsSchema.maxQueues] == 5 && values[SettingsSchema.pollMicroseconds] == 7)
        #expect(values[SettingsSchema.confine] == false && values[SettingsSchema.user] == "x")
        #expect(values[SettingsSchema.pluginDirectories] == ["/a, b", "/work/c"])
        #expect(values[SettingsSchema.disableFlush] == true && values[SettingsSchema.flushInterval] == 3)
        #expect(values[Self.change] == nil && values[SettingsSchema.memoryMiB] == nil)
        #expect(try options.parse([]) == SettingValues())
        #expect(try options.parse(["--confine=no"])[SettingsSchema.confine] == false)
        #expect(try options.parse(["--confine"])[SettingsSchema.confine] == true)
    }

    @Test("what is wrong is named") func problems() {
        #expect(problem("--max-queues", "65") == "--max-queues '65': expected a number from 1 to 64")
        #expect(problem("--max-queues") == "--max-queues needs a value")
        #expect(problem("--max-queue", "1") == "unknown option --max-queue; did you mean --max-queues?")
        #expect(problem("--xyzzy") == "unknown option --xyzzy")
        #expect(problem("queues") == "unknown option queues" && problem("") == "unknown option ")
        #expect(problem("--no-max-queues") == "unknown option --no-max-queues")
        #expect(problem("--run-dir", "/x") == "unknown option --run-dir", "it is none of a worker")
        #expect(problem("--plugin-dir", "") == "--plugin-dir '': expected a path that begins with '/'")
        #expect(
            problem("--tunable", "poll-us=-1")
                == "--tunable: poll-us '-1': expected a number from 0 to 1000000, in microseconds")
        #expect(problem("--tunable", "poll-us") == "--tunable 'poll-us': expected KEY=VALUE")
    }

    @Test("the usage text has every option, its range and its usual value, in lines of 120 columns") func usage() {
        let text = options.usage(otherwise: ["state-dir": "nowhere"])
        #expect(text.split(separator: "\n").allSatisfy { $0.count <= 120 })
        for line in [
            "  --max-queues N             the most queues that a frontend may have; 1 to 64 (default: one per processor, at most 4)\n",
            "  --no-confine               keep all rights; to look for faults, not to serve guests\n",
            "  --log-level LEVEL          what is logged; error, warning, info or debug (default: info)\n",
        ] { #expect(text.contains(line)) }
        #expect(text.contains("(default: nowhere)") && !text.contains("/var/lib/xbb"))
    }
}
