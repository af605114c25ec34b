// SPDX-License-Identifier: BSD-2-Clause
// What was probably meant by words that xbbctl does not understand.
import ArgumentParser
import Settings

/// Looks for slips in a command line.
enum Suggestion {
    /// Options that stand before a subcommand and have a value; the last one is the parser's own.
    private static let valued = ["--socket", "--loopback", "--generate-completion-script"]

    /// The first word that is neither an option nor the value of one.
    static func command(in words: [String]) -> String? {
        var rest = words[...]
        while let word = rest.popFirst() {
            if valued.contains(word) { rest = rest.dropFirst() }
            if !word.hasPrefix("-") { return word }
        }
        return nil
    }

    /// Why `words` cannot be understood, where their first word is no command; nil where it is one.
    static func unknownCommand(in words: [String], known: [String]) -> String? {
        guard let word = command(in: words), !known.contains(word), word != "help" else { return nil }
        let hint =
            Spelling.nearest(to: word, among: known).map { "did you mean '\($0)'?" }
            ?? "there are \(known.joined(separator: ", "))"
        return "'\(word)' is no command of xbbctl; \(hint)"
    }

    /// What unexpected words of a command were meant for; nil if there is no idea. `help` is the command's help.
    static func unexpected(_ message: String, command: String?, help: String) -> String? {
        let words = message.split(separator: "'").enumerated().compactMap {
            $0.offset % 2 == 1 ? String($0.element) : nil
        }
        let options = Set(
            help.split(whereSeparator: { " \n,[]()<>".contains($0) }).filter { $0.hasPrefix("--") }.map(String.init))
        for word in words {
            let bare = word.drop { $0 == "-" }
            if options.contains("--\(bare)") { return "did you mean '--\(bare)'?" }
            if let near = Spelling.nearest(to: String(bare), among: options.map { String($0.dropFirst(2)) }.sorted()) {
                return "did you mean '--\(near)'?"
            }
        }
        if command == "attach", let path = words.first(where: { $0.hasPrefix("/") }) {
            return "format and path are one word: did you mean 'raw:\(path)'?"
        }
        return nil
    }
}
