// SPDX-License-Identifier: BSD-2-Clause
// Which limits go together.
import Base
import Testing

@testable import Settings

extension SettingsSchema {
    /// `settings` without limits.
    static func withoutLimits(_ settings: [SettingDeclaration]) -> [SettingDeclaration] {
        settings.filter { setting in !limitDeclarations.contains { $0.name == setting.name } }
    }
}

@Suite struct LimitSettingTests {
    private func values(_ texts: String...) throws -> SettingValues {
        var values = SettingValues()
        for text in texts { try SettingsSchema.take(change: text, label: "t", into: &values) }
        return values
    }

    /// What is wrong with values; nil: nothing.
    private func problem(_ values: SettingValues) -> String? {
        do throws(OperationError) {
            try SettingsSchema.checkLimits(values)
            return nil
        } catch {
            return error.description
        }
    }

    @Test("names are libvirt's, in both spellings") func names() throws {
        // virsh(1), blkdeviotune; without group_name.
        let libvirt = ["total", "read", "write"].flatMap { what in
            ["bytes", "iops"].flatMap { unit in
                ["", "_max", "_max_length"].map { "\(what)_\(unit)_sec\($0)" }
            }
        }
        #expect(Set(libvirt + ["size_iops_sec"]) == Set(SettingsSchema.limitDeclarations.map(\.oldName)))
        for name in libvirt { #expect(try SettingsSchema.changing(name).oldName == name) }
    }

    @Test(
        "what goes together",
        arguments: [
            ["total-bytes-sec=5"], ["read-iops-sec=1", "write-iops-sec=2"],
            ["total-bytes-sec=5", "read-iops-sec=1"], ["total-bytes-sec=5", "read-bytes-sec=0"],
            ["write-bytes-sec=1000", "write-bytes-sec-max=1000", "write-bytes-sec-max-length=86400"],
            ["total-iops-sec-max-length=1"], ["size-iops-sec=4k"],
        ])
    func good(_ texts: [String]) throws {
        var values = SettingValues()
        for text in texts { try SettingsSchema.take(change: text, label: "t", into: &values) }
        #expect(problem(values) == nil)
    }

    @Test("total excludes read and write, of bytes and of requests") func exclusion() throws {
        for unit in ["bytes", "iops"] {
            for part in ["read", "write"] {
                let said = try #require(problem(try values("total-\(unit)-sec=5", "\(part)-\(unit)-sec=7")))
                #expect(
                    said.hasPrefix("total-\(unit)-sec=5 and \(part)-\(unit)-sec=7 exclude each other: set "), "\(said)")
            }
        }
    }

    @Test("a burst needs a limit that it exceeds, and its length a burst") func bursts() throws {
        let cases = [
            (try values("total-bytes-sec-max=5"), "total-bytes-sec-max=5 needs total-bytes-sec: "),
            (
                try values("read-iops-sec=6", "read-iops-sec-max=5"),
                "read-iops-sec-max=5 is less than read-iops-sec=6: "
            ),
            (
                try values("read-iops-sec=6", "read-iops-sec-max-length=2"),
                "read-iops-sec-max-length=2 needs read-iops-sec-max: "
            ),
        ]
        for (values, expected) in cases { #expect(problem(values)?.hasPrefix(expected) == true, "\(expected)") }
    }

    @Test("limits of a disk take the place of those of all disks, of the same kind") func layers() throws {
        let all = try values("total-bytes-sec=100", "total-bytes-sec-max=200", "total-iops-sec=9", "poll-us=3")
        let merged = SettingsSchema.layered(try values("read-bytes-sec=5", "poll-us=4"), over: all)
        #expect(merged == (try values("read-bytes-sec=5", "total-iops-sec=9", "poll-us=4")))
        let none = SettingsSchema.layered(try values("total-bytes-sec=0"), over: all)
        #expect(none == (try values("total-bytes-sec=0", "total-iops-sec=9", "poll-us=3")))
        #expect(SettingsSchema.layered(SettingValues(), over: all) == all)
    }

    @Test("all that can be changed fits where it is kept for a successor") func room() {
        let text = SettingsSchema.changing.reduce(0) { sum, setting in
            let longest: Int
            switch setting.type {
            case .number(let range, _): longest = "\(range.upperBound)".count
            case .text(let rule), .list(let rule): longest = rule.choices.map(\.count).max() ?? 0
            case .flag: longest = 3
            }
            return sum + setting.name.utf8.count + longest + 2
        }
        // StatisticsLayout.changesSize, with the text's length in front.
        #expect(text <= 1024 - 4, "\(text)")
    }
}
