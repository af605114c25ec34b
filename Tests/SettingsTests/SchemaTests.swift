// SPDX-License-Identifier: BSD-2-Clause
// What holds for every setting, and what is said of values that are none.
import Base
import Testing

@testable import Settings

@Suite struct SchemaTests {
    /// What is wrong with a value; nil: nothing.
    private func problem(_ setting: SettingDeclaration, _ text: String) -> String? {
        do throws(OperationError) {
            _ = try setting.parse(text)
            return nil
        } catch {
            return error.description
        }
    }

    @Test("names are unique, and of small letters, digits and '-'") func names() {
        let names = SettingsSchema.all.map(\.name)
        #expect(Set(names).count == names.count)
        for setting in SettingsSchema.all {
            #expect(setting.name.allSatisfy { "abcdefghijklmnopqrstuvwxyz0123456789-".contains($0) }, "\(setting.name)")
            #expect(!setting.help.isEmpty && !setting.help.hasSuffix("."), "\(setting.name)")
            #expect(setting.placeholder.isEmpty == setting.type.isFlag, "\(setting.name)")
        }
    }

    @Test("lists are parts of the whole") func lists() {
        #expect(
            Set(SettingsSchema.worker.map(\.name))
                == Set(SettingsSchema.all.filter { $0.workerForm != .none }.map(\.name)))
        #expect(SettingsSchema.worker.count == Set(SettingsSchema.worker.map(\.name)).count)
        for setting in SettingsSchema.all {
            #expect(setting.section != nil && setting.scope != .invocation, "\(setting.name) is a setting of xbb.conf")
            if setting.changesWhileServed { #expect(setting.scope == .disk && setting.workerForm != .none) }
            // What workers are told as a number, and "xbbctl set" takes.
            if setting.workerForm == .tunable { #expect(setting.changesWhileServed && setting.usual != nil) }
            if setting.scope == .daemon { #expect(setting.workerForm == .none) }
        }
    }

    @Test("what is usual is a value, and is said", arguments: SettingsSchema.all)
    func usual(_ setting: SettingDeclaration) throws {
        #expect(!setting.usualText.isEmpty && !setting.shown.isEmpty)
        #expect(problem(setting, setting.shown) == nil)
        if let usual = setting.usual {
            #expect(try setting.parse(usual.description) == usual)
        } else {
            #expect(!setting.otherwise.isEmpty && !setting.example.isEmpty)
        }
    }

    @Test("a value that is printed is read again", arguments: SettingsSchema.all)
    func printed(_ setting: SettingDeclaration) throws {
        let values: [SettingValue]
        switch setting.type {
        case .flag: values = [.flag(true), .flag(false)]
        case .number(let range, _):
            values = [range.lowerBound, (range.lowerBound + range.upperBound) / 2, range.upperBound].map { .number($0) }
        case .text(let rule) where rule.isPath: values = [.text("/a"), .text("/a b/c,d")]
        case .text(let rule):
            values = (rule.choices.isEmpty ? [setting.usual?.description ?? "name"] : rule.choices).map { .text($0) }
        case .list(let rule): values = [.list(rule.isPath ? ["/a", "/b"] : ["vbd", "qdisk"])]
        }
        for value in values { #expect(try setting.parse(value.description) == value) }
    }

    @Test("both ends of a range are values, and what is beyond is none", arguments: SettingsSchema.all)
    func ranges(_ setting: SettingDeclaration) throws {
        guard case .number(let range, let unit) = setting.type else { return }
        if let usual = setting.usual?.number { #expect(range.contains(usual)) }
        #expect(try setting.parse("\(range.lowerBound)") == .number(range.lowerBound))
        #expect(try setting.parse("\(range.upperBound)") == .number(range.upperBound))
        for text in [
            "\(range.lowerBound - 1)", "\(range.upperBound + 1)", "", " 1", "1 ", "1x", "0x1", "1.0", "1e3", "--1",
            "99999999999999999999", "-9223372036854775808", "yes", "\u{661}",
        ] {
            let said = try #require(problem(setting, text), "\(setting.name) '\(text)'")
            #expect(
                said == "\(setting.name) '\(text)': expected a number from \(range.lowerBound) to \(range.upperBound)"
                    + (unit == .none ? "" : ", in \(unit.rawValue)"))
        }
    }

    @Test("flags are said in four ways, and in no other", arguments: SettingsSchema.all.filter(\.type.isFlag))
    func flags(_ setting: SettingDeclaration) throws {
        for text in ["yes", "on", "true", "1"] { #expect(try setting.parse(text) == .flag(true)) }
        for text in ["no", "off", "false", "0"] { #expect(try setting.parse(text) == .flag(false)) }
        for text in ["2", "-1", "Yes", "ON", "", "y", "yes ", "00"] {
            #expect(problem(setting, text) == "\(setting.name) '\(text)': expected yes or no")
        }
    }

    @Test("refusals name setting, value and what is expected") func refusals() {
        let cases: [(SettingDeclaration, String, String)] = [
            (
                SettingsSchema.pollMicroseconds.declaration, "1000000000",
                "poll-us '1000000000': expected a number from 0 to 1000000, in microseconds"
            ),
            (SettingsSchema.memoryMiB.declaration, "0", "memory-mib '0': expected a number from 1 to 1024, in MiB"),
            (SettingsSchema.logLevel.declaration, "Info", "log-level 'Info': expected error, warning, info or debug"),
            (SettingsSchema.runDirectory.declaration, "run", "run-dir 'run': expected a path that begins with '/'"),
            (SettingsSchema.runDirectory.declaration, "", "run-dir '': expected a path that begins with '/'"),
            (
                SettingsSchema.backends.declaration, "vbd v/d",
                "backend 'v/d': expected a name such as vbd, qdisk or vbd3"
            ),
            (
                SettingsSchema.backends.declaration, " ",
                "backend: expected at least one: a name such as vbd, qdisk or vbd3"
            ),
            (SettingsSchema.backends.declaration, "vbd,vbd", "backend 'vbd,vbd': something is named twice"),
            (SettingsSchema.user.declaration, "a:b", "user 'a:b': expected a name as in /etc/passwd or /etc/group"),
        ]
        for (setting, text, expected) in cases { #expect(problem(setting, text) == expected) }
    }

    @Test("what changes while a disk is served is found in both spellings") func changing() throws {
        #expect(
            SettingsSchema.withoutLimits(SettingsSchema.changing).map(\.name) == [
                "detect-zeroes", "disable-flush", "flush-interval", "no-coalesce-reqs", "on-enospc", "poll-percent",
                "poll-us",
            ])
        #expect(
            SettingsSchema.withoutLimits(SettingsSchema.changing).map(\.oldName) == [
                "detect_zeroes", "disable_flush", "flush_interval", "no_coalesce_reqs", "on_enospc", "poll_percent",
                "poll_us",
            ])
        for setting in SettingsSchema.changing {
            #expect(try SettingsSchema.changing(setting.name).name == setting.name)
            #expect(try SettingsSchema.changing(setting.oldName).name == setting.name)
        }
        func said(_ name: String) -> String {
            do throws(OperationError) { return try SettingsSchema.changing(name).name } catch {
                return error.description
            }
        }
        #expect(said("poll_uss").hasSuffix("did you mean 'poll-us'?"))
        #expect(said("disable_flsuh").hasSuffix("did you mean 'disable-flush'?"))
        #expect(
            said("none").contains(
                "served; there are detect-zeroes, disable-flush, flush-interval, no-coalesce-reqs, on-enospc, poll-percent, poll-us,"
            ))
        #expect(
            said("max_queues")
                == "'max-queues' does not change while a disk is served: the disk's target, or xbb.conf, says what workers begin with"
        )
        #expect(said("user").hasSuffix("is served: xbb.conf says what workers begin with"))
        #expect(said("").hasPrefix("no setting ''"))
    }

    @Test("a disk's target says what is the disk's, and the rest is its plugin's") func target() throws {
        let offers = ["max-indirect-segments", "max-queues", "max-ring-page-order", "memory-mib", "persistent-grants"]
        #expect(
            SettingsSchema.ofDisk.map(\.name) == (SettingsSchema.changing.map(\.name) + offers).sorted())
        let values = try SettingsSchema.settings(among: [
            "max_queues": "2", "persistent-grants": "auto", "poll-us": "5", "size": "1G", "user": "x", "confine": "no",
        ])
        #expect(values[SettingsSchema.maxQueues] == 2 && values[SettingsSchema.persistentGrants] == "auto")
        #expect(values[SettingsSchema.pollMicroseconds] == 5)
        // Whom a worker becomes, and whether it is confined, no disk says.
        #expect(values[SettingsSchema.user] == nil && values[SettingsSchema.confine] == nil)
        #expect(throws: OperationError.self) { try SettingsSchema.settings(among: ["max-queues": "on"]) }
    }

    @Test("bytes may be said in K, M, G and T") func suffixes() throws {
        let bytes = SettingsSchema.limits[0].rate.declaration
        for (text, number) in [
            ("0", 0), ("1", 1), ("4k", 4096), ("10M", 10 << 20), ("2G", 2 << 30), ("1T", 1 << 40), ("+5", 5),
        ] { #expect(try bytes.parse(text) == .number(number), "\(text)") }
        for text in ["k", "1kk", "1 k", "-1k", "1.5M", "1P", "9223372036854775808", "9007199254740993k", "1MB", "ten"] {
            #expect(
                problem(bytes, text)
                    == "total-bytes-sec '\(text)': expected a number from 0 to 1000000000000000, in bytes/s")
        }
        let requests = SettingsSchema.limits[3].rate.declaration
        #expect(
            problem(requests, "4k")
                == "total-iops-sec '4k': expected a number from 0 to 1000000000000000, in requests/s")
    }

    @Test("NAME=VALUE") func changes() throws {
        var values = SettingValues()
        for text in ["disable_flush=1", "poll-us=20", "poll_us=30", "no-coalesce-reqs=off"] {
            try SettingsSchema.take(change: text, label: "--tunable", into: &values)
        }
        #expect(values[SettingsSchema.disableFlush] == true && values[SettingsSchema.pollMicroseconds] == 30)
        #expect(values[SettingsSchema.noCoalesce] == false && values[SettingsSchema.flushInterval] == nil)
        for text in ["", "=", "poll-us", "poll-us=", "=1", "poll-us=1=2", "max-queues=1"] {
            #expect(throws: OperationError.self, "\(text)") {
                try SettingsSchema.take(change: text, label: "--tunable", into: &values)
            }
        }
    }

    @Test(
        "the name that was nearly meant",
        arguments: [
            ("max-queue", "max-queues"), ("mx-queues", "max-queues"), ("max-quesues", "max-queues"),
            ("amx-queues", "max-queues"), ("poll", nil), ("queues", nil), ("max", nil), ("", nil), ("x", nil),
        ] as [(String, String?)])
    func nearest(_ word: String, _ expected: String?) {
        #expect(Spelling.nearest(to: word, among: SettingsSchema.all.map(\.name)) == expected)
    }

    @Test("values of a command line win over those of a file, and those over what is usual") func layers() {
        var file = SettingValues()
        var options = SettingValues()
        file[SettingsSchema.maxQueues] = 4
        file[SettingsSchema.confine] = false
        options[SettingsSchema.maxQueues] = 2
        let values = options.over(file)
        #expect(values.value(of: SettingsSchema.maxQueues) == 2 && !values.value(of: SettingsSchema.confine))
        #expect(values.value(of: SettingsSchema.memoryMiB) == 16 && values[SettingsSchema.memoryMiB] == nil)
        #expect(values.value(of: SettingsSchema.backends) == ["vbd"])
    }
}
