// SPDX-License-Identifier: BSD-2-Clause
// The content of xbb.conf.
import Base
public import Settings

/// The values of a configuration file.
public struct DaemonConfiguration: Equatable, Sendable {
    /// The default path of the file.
    public static let usualPath = "/etc/xbb/xbb.conf"

    /// The values that are set in the file.
    public private(set) var values = SettingValues()

    /// A configuration without a file.
    public init() {}

    /// Parses a file's text. Throws all problems at once, one line each.
    public init(parsing text: String, file: String) throws(ControlError) {
        self.init()
        guard text.utf8.count <= ConfigurationText.byteLimit else {
            throw ControlError("\(file): has more than \(ConfigurationText.byteLimit) bytes", status: .configuration)
        }
        var (entries, problems) = ConfigurationText.entries(of: text, file: file)
        var seen: [String: Int] = [:]
        for entry in entries {
            let name = "[\(entry.section)] \(entry.key)"
            if let earlier = seen[name] {
                problems.append(
                    ConfigurationProblem(
                        file: file, line: entry.line, text: "'\(entry.key)' stands in line \(earlier) already"))
                continue
            }
            seen[name] = entry.line
            do throws(OperationError) {
                let setting = try Self.setting(of: entry)
                values[setting] = try setting.parse(entry.value)
            } catch {
                problems.append(ConfigurationProblem(file: file, line: entry.line, text: error.description))
            }
        }
        if problems.isEmpty {
            do throws(OperationError) {
                try SettingsSchema.checkLimits(values)
            } catch {
                // Two lines contradict each other: it is told at the last of all limits.
                let names = SettingsSchema.limits.flatMap(\.declarations).map(\.name)
                let line = entries.last { names.contains($0.key) }?.line ?? 1
                problems.append(ConfigurationProblem(file: file, line: line, text: error.description))
            }
        }
        if problems.isEmpty { return }
        problems.sort { $0.line < $1.line }
        throw ControlError(problems.map(\.description).joined(separator: "\n"), status: .configuration)
    }

    /// The setting that an entry sets.
    private static func setting(of entry: ConfigurationEntry) throws(OperationError) -> SettingDeclaration {
        guard let section = ConfigurationSection(rawValue: entry.section) else {
            let names = ConfigurationSection.allCases.map(\.rawValue)
            let near = Spelling.nearest(to: entry.section, among: names).map { "did you mean [\($0)]?" }
            throw OperationError(
                .option,
                "there is no section [\(entry.section)]; "
                    + (near ?? "there are " + names.map { "[\($0)]" }.joined(separator: ", ")))
        }
        let settings = SettingsSchema.all.filter { $0.section == section }
        if let setting = settings.first(where: { $0.name == entry.key }) { return setting }
        let elsewhere = SettingsSchema.all.first { $0.name == entry.key }?.section
        let hint = elsewhere.map { "it belongs below [\($0.rawValue)]" } ?? settings.hint(for: entry.key)
        throw OperationError(.option, "there is no key '\(entry.key)' in [\(entry.section)]; \(hint)")
    }
}
