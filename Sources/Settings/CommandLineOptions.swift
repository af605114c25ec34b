// SPDX-License-Identifier: BSD-2-Clause
// A command line whose options are declared settings: its parser and its usage text.
public import Base

/// The options of a program.
public struct CommandLineOptions: Sendable {
    /// In the order of the usage text.
    public let options: [SettingDeclaration]
    /// Takes "NAME=VALUE" of a setting that changes while a disk is served; its values go to those settings.
    public let change: SettingDeclaration?
    /// Where relative paths begin, without '/' at its end.
    public let workingDirectory: String

    /// These options.
    public init(_ options: [SettingDeclaration], change: SettingDeclaration? = nil, workingDirectory: String) {
        self.options = options
        self.change = change
        self.workingDirectory = workingDirectory
    }

    /// Reads the words behind the program's name: "--name VALUE", "--name=VALUE", and for flags "--name" and "--no-name".
    /// Of an option that is given again the last one counts, of a list all. Throws what is wrong with the first wrong word.
    public func parse(_ words: some Sequence<String>) throws(OperationError) -> SettingValues {
        var values = SettingValues()
        var left = Array(words)[...]
        while let word = left.popFirst() {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let label = parts.first.map(String.init) ?? word
            guard label.hasPrefix("--") else { throw OperationError(.option, unknown(label)) }
            let name = String(label.dropFirst(2))
            if parts.count == 1, let flag = flag(name) {
                values.add(.flag(flag.value), to: flag.option)
                continue
            }
            guard let option = options.first(where: { $0.name == name }) else {
                throw OperationError(.option, unknown(label))
            }
            guard let text = parts.count == 2 ? String(parts[1]) : left.popFirst() else {
                throw OperationError(.option, "\(label) needs a value")
            }
            if option.name == change?.name {
                try SettingsSchema.take(change: text, label: label, into: &values)
            } else {
                values.add(
                    try option.parse(option: text, label: label, workingDirectory: workingDirectory), to: option)
            }
        }
        return values
    }

    private func flag(_ name: String) -> (option: SettingDeclaration, value: Bool)? {
        for option in options {
            guard case .flag = option.type else { continue }
            if option.name == name { return (option, true) }
            if "no-\(option.name)" == name { return (option, false) }
        }
        return nil
    }

    private func unknown(_ label: String) -> String {
        let names = options.map(Self.name)
        let near = Spelling.nearest(to: label, among: names)
        return "unknown option \(label)" + (near.map { "; did you mean \($0)?" } ?? "")
    }

    /// As it is shown: "--max-queues", "--no-confine" for a flag that is usually on.
    private static func name(_ option: SettingDeclaration) -> String {
        option.usual == .flag(true) ? "--no-\(option.name)" : "--\(option.name)"
    }

    /// One paragraph for each option, of lines that fit 120 columns. `otherwise` says what counts without an option, by its
    /// name, where that is not what is declared.
    public func usage(otherwise: [String: String] = [:]) -> String {
        let column = 29
        var text = ""
        for option in options {
            var line = "  " + Self.name(option) + (option.placeholder.isEmpty ? "" : " \(option.placeholder)")
            line += String(repeating: " ", count: max(column - line.count, 1))
            let help = option.summary(
                option.usual == .flag(true) ? option.offHelp : option.help,
                otherwise: otherwise[option.name] ?? (option.type.isFlag ? "" : option.usualText))
            for word in help.split(separator: " ") {
                if line.count + word.count > 119 {
                    text += line + "\n"
                    line = String(repeating: " ", count: column)
                }
                line += (line.last == " " ? "" : " ") + word
            }
            text += line + "\n"
        }
        return text
    }
}

extension SettingType {
    var isFlag: Bool { if case .flag = self { true } else { false } }
}

extension SettingDeclaration {
    /// A help text with what is to be known of values: "the most queues that a frontend may have; 1 to 64 (default: 1)".
    /// `end` closes the sentence, where it is one; `otherwise` is what counts where no value is given.
    public func summary(_ help: String, end: String = "", otherwise: String) -> String {
        var text = help
        if !type.isFlag, !type.bounds.isEmpty { text += "; \(type.bounds)" }
        if case .list = type { text += "; may be given more than once" }
        text += end
        if !otherwise.isEmpty { text += " (default: \(otherwise))" }
        return text
    }
}
