// SPDX-License-Identifier: BSD-2-Clause
// xbbd's options that are settings. Their help and completion come from the schema.
import ArgumentParser
import Settings

extension ArgumentHelp {
    /// The setting's help as a sentence.
    static func setting<Value>(_ setting: Setting<Value>) -> ArgumentHelp {
        let declaration = setting.declaration
        var text = declaration.help.prefix(1).uppercased() + declaration.help.dropFirst()
        if declaration.workerForm != .none, declaration.section != .xbbd { text = "For workers: \(declaration.help)" }
        text = declaration.summary(text, end: ".", otherwise: declaration.usualText)
        let valueName = declaration.placeholder.lowercased()
        return ArgumentHelp("\(text)", valueName: valueName.isEmpty ? nil : valueName)
    }
}

extension CompletionKind {
    /// The completion of the option's value.
    static func setting<Value>(_ setting: Setting<Value>) -> CompletionKind {
        switch setting.declaration.type {
        case .text(let rule), .list(let rule):
            rule.isPath ? (setting.declaration.placeholder == "DIR" ? .directory : .file()) : .list(rule.choices)
        case .flag, .number: .default
        }
    }
}

extension Option where Value == String? {
    /// An optional option.
    init<Kind>(setting: Setting<Kind>) {
        self.init(help: .setting(setting), completion: .setting(setting))
    }
}

extension Option where Value == [String] {
    /// An option that may be given more than once.
    init(wrappedValue: [String], setting: Setting<[String]>) {
        self.init(wrappedValue: wrappedValue, help: .setting(setting), completion: .setting(setting))
    }
}
