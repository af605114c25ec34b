// SPDX-License-Identifier: BSD-2-Clause
// Texts of Ceph's that librados reads when it connects, where a confined process has no files: pure.

/// A keyring: sections `[client.NAME]` with `key = BASE64`.
enum Keyring {
    /// The key of a client; nil if it has none.
    static func key(of client: String, in text: String) -> String? {
        var isSection = false
        for line in text.split(whereSeparator: \.isNewline) {
            let words = line.split(whereSeparator: { $0.isWhitespace || $0 == "=" }).map(String.init)
            let trimmed = line.drop(while: \.isWhitespace)
            if trimmed.hasPrefix("[") {
                isSection = trimmed.dropFirst().prefix { $0 != "]" } == client
            } else if isSection, words.first == "key", let equals = line.firstIndex(of: "=") {
                return line[line.index(after: equals)...].split(whereSeparator: \.isWhitespace).first.map(String.init)
            }
        }
        return nil
    }
}

/// The value of `mon host`.
enum MonitorList {
    /// Its words; what is in brackets is one.
    static func words(_ text: String) -> [String] {
        var words = [""]
        var depth = 0
        for character in text {
            if character == "[" { depth += 1 }
            if character == "]" { depth -= 1 }
            if depth <= 0, ",; \t\n".contains(character) {
                words.append("")
            } else {
                words[words.count - 1].append(character)
            }
        }
        return words.filter { !$0.isEmpty }
    }

    /// A word that names a host, and the rest behind the name (`:PORT` or `:PORT/0`); nil for one that is an address.
    static func name(in word: String) -> (name: String, port: String)? {
        if word.hasPrefix("[") || word.hasPrefix("v1:") || word.hasPrefix("v2:") { return nil }
        let host = word.prefix { $0 != ":" && $0 != "/" }
        let rest = word[host.endIndex...]
        // More than one colon: IPv6 without brackets.
        guard rest.filter({ $0 == ":" }).count <= 1, host.contains(where: { !"0123456789.".contains($0) }) else {
            return nil
        }
        return (String(host), String(rest))
    }
}
