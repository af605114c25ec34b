// SPDX-License-Identifier: BSD-2-Clause
// The same values are taken, and the same is said of all others, wherever a setting is given.
import Base
import Settings
import Testing
import XBBHost

@testable import XBBControl

@Suite struct SettingAgreementTests {
    /// A value, and what is said of it; nil: it is taken.
    private struct Case {
        let text: String
        let said: String?
    }

    /// Values at the ends of what is taken, and beyond.
    private static func cases(_ setting: SettingDeclaration) -> [Case] {
        switch setting.type {
        case .flag:
            return ["yes", "on", "true", "1", "no", "off", "false", "0"].map { Case(text: $0, said: nil) }
                + [Case(text: "2", said: "'2': expected yes or no")]
        case .number(let range, _):
            return [range.lowerBound, range.upperBound].map { Case(text: "\($0)", said: nil) }
                + ["\(range.lowerBound - 1)", "\(range.upperBound + 1)", "many"].map {
                    Case(text: $0, said: "'\($0)': expected a number from \(range.lowerBound) to \(range.upperBound)")
                }
        case .text(let rule) where !rule.choices.isEmpty:
            return rule.choices.map { Case(text: $0, said: nil) }
                + [Case(text: "loud", said: "'loud': expected \(rule.expected)")]
        case .text(let rule), .list(let rule):
            let good = rule.isPath ? "/a" : setting.usual?.description ?? "name"
            let bad = rule.isPath ? "" : "a/b"
            return [Case(text: good, said: nil), Case(text: bad, said: "'\(bad)': expected \(rule.expected)")]
        }
    }

    /// How it may be spelled. Limits are many and alike: one spelling of each is tried.
    private static func names(_ setting: SettingDeclaration) -> [String] {
        needed(setting).isEmpty ? [setting.name, setting.oldName] : [setting.oldName]
    }

    /// What must be set for a setting to have any effect: "total-bytes-sec=1" for its burst.
    private static func needed(_ setting: SettingDeclaration) -> [String] {
        for limit in SettingsSchema.limits {
            guard let place = limit.declarations.firstIndex(where: { $0.name == setting.name }) else { continue }
            return limit.declarations[..<place].map { "\($0.name)=1" }
        }
        return []
    }

    /// Runs a program and gives all that it prints, and its end.
    private func run(_ arguments: [String]) throws -> (text: String, exit: WorkerExit) {
        let program = try Program(["/bin/sh", "-c", "exec \"$0\" \"$@\" 2>&1"] + arguments, capture: true)
        return (program.text(), program.wait())
    }

    private func expect(
        _ entry: Case, _ what: String, _ result: (text: String, exit: WorkerExit), refusal: WorkerExit
    ) {
        #expect(result.exit == (entry.said == nil ? .clean : refusal), "\(what): \(result.text)")
        // What is empty does not come to the schema everywhere.
        if let said = entry.said, !entry.text.isEmpty { #expect(result.text.contains(said), "\(what): \(result.text)") }
    }

    @Test("xbb.conf") func file() {
        for setting in SettingsSchema.all {
            // An empty value of a list is told in other words.
            for entry in Self.cases(setting) where !entry.text.isEmpty {
                var said: String?
                do throws(ControlError) {
                    let text = (Self.needed(setting) + ["\(setting.name) = \(entry.text)"])
                        .reduce("[\(setting.section?.rawValue ?? "")]") { $0 + "\n" + $1 }
                    _ = try DaemonConfiguration(parsing: text, file: "f")
                } catch {
                    said = error.description
                }
                #expect((said == nil) == (entry.said == nil), "\(setting.name) \(entry.text)")
                if let expected = entry.said { #expect(said?.contains("\(setting.name) \(expected)") == true) }
            }
        }
    }

    @Test("xbbd") func daemon() throws {
        let lab = try DaemonLab()
        lab.put("good.conf", "")
        let start = [DaemonLab.products + "/xbbd", "--check-config", "--config", lab.root + "/good.conf"]
        for setting in SettingsSchema.all where setting.section != .tunables && !isFlag(setting) {
            for entry in Self.cases(setting) {
                let word = "--\(setting.daemonOption)=\(entry.text)"
                expect(entry, word, try run(start + [word]), refusal: .failed(64))
            }
        }
        for setting in SettingsSchema.changing {
            for name in Self.names(setting) {
                for entry in Self.cases(setting) {
                    let word = "--tunable=\(name)=\(entry.text)"
                    let others = Self.needed(setting).map { "--tunable=\($0)" }
                    expect(entry, word, try run(start + others + [word]), refusal: .failed(64))
                }
            }
        }
    }

    @Test("xbb-vbd") func worker() throws {
        let start = [DaemonLab.products + "/xbb-vbd", "--version"]
        for setting in SettingsSchema.worker where setting.workerForm == .option {
            for entry in Self.cases(setting) {
                let word = "--\(setting.name)=\(entry.text)"
                expect(entry, word, try run(start + [word]), refusal: .usage)
            }
        }
        for setting in SettingsSchema.changing {
            for name in Self.names(setting) {
                for entry in Self.cases(setting) {
                    let word = "--tunable=\(name)=\(entry.text)"
                    let others = Self.needed(setting).map { "--tunable=\($0)" }
                    expect(entry, word, try run(start + others + [word]), refusal: .usage)
                }
            }
        }
    }

    @Test("xbbctl set, and the worker that it asks") func set() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        let start = [DaemonLab.products + "/xbbctl", "set", "1", "xvda"]
        for setting in SettingsSchema.changing {
            for name in Self.names(setting) {
                for entry in Self.cases(setting) {
                    let result = try run(start + ["\(name)=\(entry.text)", "--socket", lab.socket])
                    expect(entry, "set \(name)=\(entry.text)", result, refusal: .failed(64))
                    // Workers of all versions take the old spelling and numbers.
                    if entry.said == nil, let number = try setting.parse(entry.text).number {
                        #expect(result.text.contains("set \(setting.oldName) \(number)\n"), "\(result.text)")
                    }
                    var tunables = Tunables()
                    for other in Self.needed(setting).map({ $0.split(separator: "=").map(String.init) }) {
                        #expect(tunables.set(other[0], other[1]) == nil)
                    }
                    let said = tunables.set(name, entry.text)
                    #expect((said == nil) == (entry.said == nil), "\(name)=\(entry.text): \(said ?? "taken")")
                    if let expected = entry.said { #expect(said?.contains(expected) == true) }
                }
            }
        }
        #expect(try run(start + ["poll-u=1", "--socket", lab.socket]).text.contains("did you mean 'poll-us'?"))
        #expect(Tunables().said(of: "pol_us", "1").contains("did you mean 'poll-us'?"))
    }

    @Test("several settings are one request, and limits that contradict each other are refused at the start")
    func several() throws {
        let lab = try DaemonLab()
        _ = try lab.makeNode(1, 51712)
        try lab.startDaemon()
        try eventually("it is taken") { try lab.row("vbd/1/51712")?["state"]?.string == "initWait" }
        let start = [DaemonLab.products + "/xbbctl", "set", "1", "xvda"]
        let both = try run(start + ["total_iops_sec=5", "total-bytes-sec=4k", "--socket", lab.socket])
        #expect(
            both.exit == .clean && both.text.contains("set total_iops_sec 5 total_bytes_sec 4096\n"), "\(both.text)")
        for words in [["total_iops_sec=5", "total-iops-sec=6"], ["total_iops_sec=5", "read"], []] {
            #expect(try run(start + words + ["--socket", lab.socket]).exit == .failed(64), "\(words)")
        }
        lab.put("bad.conf", "[tunables]\ntotal-iops-sec = 5\n\nread-iops-sec = 6\n")
        lab.put("good.conf", "[tunables]\ntotal-iops-sec = 5\n")
        let check = [DaemonLab.products + "/xbbd", "--check-config", "--config"]
        let file = try run(check + [lab.root + "/bad.conf"])
        #expect(file.exit == .failed(78) && file.text.contains("bad.conf:4"), "\(file.text)")
        let merged = try run(check + [lab.root + "/good.conf", "--tunable", "read-iops-sec=6"])
        #expect(merged.exit == .failed(64) && merged.text.contains("exclude each other"), "\(merged.text)")
    }

    @Test("what xbbd tells a worker is what a worker takes, in the words of all versions") func handedOn() throws {
        var values = SettingValues()
        for setting in SettingsSchema.all { values[setting] = try setting.parse(setting.shown) }
        values[SettingsSchema.confine] = false
        values[SettingsSchema.disableFlush] = true
        values[SettingsSchema.flushInterval] = 7
        values[SettingsSchema.onNoSpace] = SettingsSchema.stopsWithoutSpace
        values[SettingsSchema.detectZeroes] = SettingsSchema.unmapsZeroes
        let options = WorkerSettings.options(for: values)
        #expect(
            options == [
                "--log-level", "info", "--state-dir", "/var/lib/xbb", "--max-queues", "4", "--max-ring-page-order", "5",
                "--max-indirect-segments", "256", "--persistent-grants", "auto", "--memory-mib", "16", "--poll-us", "0",
                "--backing-dir",
                "/srv/xen/templates", "--user", "xbb",
                "--worker-memory-mib", "512", "--worker-tasks", "1024", "--no-confine", "--stall-time", "10",
                "--tunable",
                "disable_flush=1", "--tunable", "flush_interval=7", "--tunable", "no_coalesce_reqs=0", "--tunable",
                "poll_percent=20", "--tunable", "on_enospc=stop", "--tunable", "detect_zeroes=unmap",
            ] + SettingsSchema.limits.flatMap(\.declarations).flatMap { ["--tunable", "\($0.oldName)=0"] } + [
                "--tunable", "size_iops_sec=0",
            ])
        #expect(try run([DaemonLab.products + "/xbb-vbd", "--version"] + options).exit == .clean)
        let grammar = CommandLineOptions(
            SettingsSchema.worker + [Self.change.declaration], change: Self.change.declaration, workingDirectory: "/")
        let taken = try grammar.parse(options)
        for setting in SettingsSchema.worker where setting.name != "plugin-dir" {
            #expect(taken[setting] == values[setting], "\(setting.name)")
        }
        #expect(WorkerSettings.options(for: SettingValues()).isEmpty)
    }

    @Test("the shell completes what changes while a disk is served", arguments: ["bash", "zsh", "fish"])
    func completion(_ shell: String) throws {
        let script = try run([DaemonLab.products + "/xbbctl", "--generate-completion-script", shell])
        #expect(script.exit == .clean)
        for setting in SettingsSchema.changing { #expect(script.text.contains("\(setting.name)="), "\(setting.name)") }
    }

    private static let change = Setting(list: "tunable", "", "KEY=VALUE", TextRule(expected: "") { _ in true })

    private func isFlag(_ setting: SettingDeclaration) -> Bool {
        if case .flag = setting.type { true } else { false }
    }
}

extension Tunables {
    /// What is said of a change.
    fileprivate func said(of name: String, _ text: String) -> String {
        var copy = self
        return copy.set(name, text) ?? "taken"
    }
}
