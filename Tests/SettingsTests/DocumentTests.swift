// SPDX-License-Identifier: BSD-2-Clause
// Manual pages and the file that is shipped say of each setting what its declaration says.
import Foundation
import ProcessConfinement
import Support
import Testing

@testable import Settings

extension SettingDeclaration: CustomTestStringConvertible {
    /// The name of the setting in test reports.
    public var testDescription: String { name }
}

@Suite struct DocumentTests {
    private static let package = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().path

    private static func lines(_ path: String) throws -> [String] {
        try String(contentsOfFile: "\(package)/\(path)", encoding: .utf8).components(separatedBy: "\n")
    }

    /// The text of a manual page's item as a reader sees it, without macros; nil where there is no such item below
    /// `heading`.
    private func item(_ macro: String, _ name: String, in page: String, below heading: String? = nil) throws -> String?
    {
        var lines = try Self.lines("docs/man/\(page)")[...]
        if let heading {
            lines = lines.drop { $0 != heading }.dropFirst().prefix { !$0.hasPrefix(".Sh") && !$0.hasPrefix(".Ss") }
        }
        let start = ".It \(macro)\(name)"
        guard let begin = lines.firstIndex(where: { $0 == start || $0.hasPrefix(start + " ") }) else { return nil }
        let macros = ["Ar", "Cm", "Fl", "Ns", "Pa", "Xr", "Ql", "Sq", "No", "Pq", "Op"]
        var words: [Substring] = []
        // Items that follow each other share the text behind the last one.
        for line in lines[(begin + 1)...].drop(while: { $0.hasPrefix(".It") }) {
            if [".It", ".El", ".Sh", ".Ss"].contains(where: { line.hasPrefix($0) }) { break }
            let isMacro = line.hasPrefix(".")
            words += (isMacro ? line.dropFirst() : line[...]).split(separator: " ").filter {
                !isMacro || !macros.contains(String($0))
            }
        }
        return words.joined(separator: " ").replacingOccurrences(
            of: " ([.,;:])(?= |$)", with: "$1", options: .regularExpression)
    }

    /// Checks an item's text against the declaration.
    private func check(_ setting: SettingDeclaration, _ text: String?, in page: String, hasUsual: Bool = true) throws {
        let text = try #require(text, "\(page) has no item '\(setting.name)'")
        switch setting.type {
        case .number: #expect(text.contains(setting.type.bounds), "\(page), \(setting.name): range")
        case .text(let rule), .list(let rule):
            for choice in rule.choices { #expect(text.contains(choice), "\(page), \(setting.name): \(choice)") }
        case .flag: break
        }
        guard hasUsual else { return }
        let usual = setting.usual.map(\.description) ?? setting.otherwise
        #expect(text.contains("The default is \(usual)"), "\(page), \(setting.name): default \(usual); \(text)")
    }

    @Test("xbb.conf(5)", arguments: SettingsSchema.all) func configuration(_ setting: SettingDeclaration) throws {
        let section = try #require(setting.section)
        let text = try item("Cm ", setting.name, in: "xbb.conf.5", below: ".Ss [\(section.rawValue)]")
        try check(setting, text, in: "xbb.conf(5)")
    }

    @Test("xbb-vbd(8)", arguments: SettingsSchema.worker) func worker(_ setting: SettingDeclaration) throws {
        // The page of xbbctl describes what --tunable takes.
        guard setting.workerForm == .option else { return }
        let isOn = setting.usual == .flag(true)
        let text = try item("Fl -", isOn ? "no-\(setting.name)" : setting.name, in: "xbb-vbd.8")
        let hasUsual = !isOn && setting.name != SettingsSchema.stateDirectory.declaration.name
        try check(setting, text, in: "xbb-vbd(8)", hasUsual: hasUsual)
    }

    @Test("xbbctl(8)", arguments: SettingsSchema.changing) func control(_ setting: SettingDeclaration) throws {
        try check(setting, try item("Cm ", setting.name, in: "xbbctl.8"), in: "xbbctl(8)")
    }

    @Test("xbbd(8)", arguments: SettingsSchema.all.filter { $0.section != .tunables })
    func daemon(_ setting: SettingDeclaration) throws {
        #expect(try item("Fl -", setting.daemonOption, in: "xbbd.8") != nil)
    }

    @Test("pages have no item of a setting that does not exist") func gone() throws {
        let items = try Self.lines("docs/man/xbb.conf.5").filter { $0.hasPrefix(".It Cm ") }.map { $0.dropFirst(7) }
        #expect(
            Set(items.map(String.init)) == Set(SettingsSchema.all.map(\.name))
                && items.count == SettingsSchema.all.count)
    }

    @Test("the file that is shipped names each setting once, in its section, with what is usual") func shipped() throws
    {
        var section = ""
        var found: [String] = []
        for line in try Self.lines("etc/xbb.conf") {
            if line.hasPrefix("[") { section = line }
            guard line.hasPrefix("#"), !line.hasPrefix("# "), line != "#" else { continue }
            found.append("\(section) \(line.dropFirst())")
        }
        let expected = SettingsSchema.all.map { "[\($0.section?.rawValue ?? "")] \($0.name) = \($0.shown)" }
        #expect(found.sorted() == expected.sorted())
    }

    @Test("what modules below know of settings is what is declared") func below() {
        #expect(ConfinementUser.usual == SettingsSchema.usualUser)
        guard case .text(let rule) = SettingsSchema.logLevel.declaration.type else { return }
        #expect(rule.choices == LogLevel.allCases.map(\.word))
    }
}
