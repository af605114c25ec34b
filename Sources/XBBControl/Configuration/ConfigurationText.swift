// SPDX-License-Identifier: BSD-2-Clause
// The syntax of xbb.conf: sections, "key = value", comments. Pure.
import Base

/// One "key = value" of a configuration file.
struct ConfigurationEntry: Equatable {
    let section: String
    let key: String
    let value: String
    /// The line number, counted from 1.
    let line: Int
}

/// A problem in a configuration file, with its place.
public struct ConfigurationProblem: Error, Equatable, Sendable, CustomStringConvertible {
    /// The file's name as the user gave it.
    public let file: String
    /// The line number, counted from 1.
    public let line: Int
    /// What is wrong, and what to do about it.
    public let text: String

    /// "FILE:LINE: text", like a compiler's message.
    public var description: String { "\(file):\(line): \(text)" }
}

/// Splits a file into its entries.
///
///     # a comment
///     [section]
///     key = value        the value ends with the line; '#' and ';' in it are part of it
///     key = "value"      the same with spaces at the ends
enum ConfigurationText {
    /// The longest file, in bytes.
    static let byteLimit = 1 << 20

    /// The entries in order, and a problem for every line that is none of the above.
    static func entries(of text: String, file: String) -> ([ConfigurationEntry], [ConfigurationProblem]) {
        var entries: [ConfigurationEntry] = []
        var problems: [ConfigurationProblem] = []
        var section: String?
        // Swift treats "\r\n" as one character.
        let lines = text.split(omittingEmptySubsequences: false) { $0 == "\n" || $0 == "\r\n" }
        for (index, raw) in lines.enumerated() {
            func problem(_ text: String) {
                problems.append(ConfigurationProblem(file: file, line: index + 1, text: TextTable.printable(text)))
            }
            let line = trimmed(raw)
            guard let first = line.first, first != "#", first != ";" else { continue }
            if first == "[" {
                if line.last == "]", isName(line.dropFirst().dropLast()) {
                    section = String(line.dropFirst().dropLast())
                } else {
                    problem("'\(line)' is no section: expected a name in brackets, such as [xbbd]")
                }
                continue
            }
            guard let equals = line.firstIndex(of: "=") else {
                problem("'\(line)': expected 'key = value'; a comment begins with '#'")
                continue
            }
            let key = trimmed(line[..<equals])
            guard isName(key) else {
                problem("'\(key)' is no key: expected small letters, digits and '-'")
                continue
            }
            guard let section else {
                problem("'\(key)' stands before the first section; put [xbbd] or [worker] above it")
                continue
            }
            var value = trimmed(line[line.index(after: equals)...])
            if value.first == "\"" {
                guard value.count >= 2, value.last == "\"", !value.dropFirst().dropLast().contains("\"") else {
                    problem("the value of '\(key)' begins with '\"' and does not end with the next one")
                    continue
                }
                value = value.dropFirst().dropLast()
            }
            guard !String(value).hasControlCharacters else {
                problem("the value of '\(key)' has control characters")
                continue
            }
            entries.append(
                ConfigurationEntry(section: section, key: String(key), value: String(value), line: index + 1))
        }
        return (entries, problems)
    }

    private static func trimmed(_ text: Substring) -> Substring {
        var text = text
        while let first = text.first, first == " " || first == "\t" { text.removeFirst() }
        while let last = text.last, last == " " || last == "\t" || last == "\r" { text.removeLast() }
        return text
    }

    private static func isName(_ text: Substring) -> Bool {
        !text.isEmpty
            && text.utf8.allSatisfy {
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0) || $0 == UInt8(ascii: "-")
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
            }
    }
}
