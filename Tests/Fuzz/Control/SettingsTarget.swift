// SPDX-License-Identifier: BSD-2-Clause
// xbb.conf and the options of a disk.
import Base
import Settings
import TestSupport

@testable import XBBControl

/// Any text as a file, and each of its lines as an option.
func readSettings() -> [String] {
    let text = String(decoding: FuzzInput.takeRest(), as: UTF8.self)
    var problems: [String] = []
    do {
        let read = try DaemonConfiguration(parsing: text, file: "xbb.conf")
        for setting in SettingsSchema.all {
            guard let value = read.values[setting] else { continue }
            guard (try? setting.parse(value.description)) == value else {
                problems.append("\(setting.name) is \(value), which is refused")
                continue
            }
        }
        _ = SettingsSchema.queueMemory(read.values)
    } catch {
        // Lines are logged one by one.
        if "\(error)".split(separator: "\n").contains(where: { String($0).hasControlCharacters }) {
            problems.append("an error that cannot be shown: \("\(error)".debugDescription)")
        }
    }
    var options: [String: String] = [:]
    for line in text.split(separator: "\n") {
        let parts = line.split(separator: "=", maxSplits: 1).map(String.init)
        if parts.count == 2 { options[parts[0]] = parts[1] }
    }
    if let values = try? SettingsSchema.settings(among: options) { try? SettingsSchema.checkLimits(values) }
    return problems
}
