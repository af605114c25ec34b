// SPDX-License-Identifier: BSD-2-Clause
// What a shell offers for a word of a command line. Runs xbbctl with the rights of the user who types: what that user may
// not see is not offered.
import ArgumentParser
import Base
import Support
import XBBControl
import Xen

/// Candidates for words that only the machine knows.
enum Completions {
    /// Numbers and names of domains: of all, or of those with disks where XenStore cannot be read.
    static let domains = CompletionKind.custom { words, _, _ in
        if let all = store(words).flatMap({ try? DomainName.all(in: $0) }) {
            return all.flatMap { ["\($0.domain)", $0.name] }.filter { !$0.isEmpty }
        }
        return unique(rows(words).compactMap { $0["domid"]?.unsigned.map { "\($0)" } })
    }

    /// The disks of the domain in the word before.
    static let devices = CompletionKind.custom { words, index, _ in
        guard let domain = domain(words, before: index) else { return [] }
        return unique(rows(words).filter { $0["domid"]?.unsigned == domain }.compactMap { $0["device"]?.string })
    }

    /// Names for a new disk of the domain in the word before.
    static let newDevices = CompletionKind.custom { words, index, _ in
        let domain = domain(words, before: index)
        let taken = rows(words).filter { $0["domid"]?.unsigned == domain }.compactMap { $0["device"]?.string }
        return "abcdefghijklmnop".map { "xvd\($0)" }.filter { !taken.contains($0) }
    }

    /// A format, or the files behind it.
    static let images = CompletionKind.custom { words, _, prefix in
        let parts = prefix.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        // bash takes ':' for the end of a word, so that only the path may be here.
        let (front, path) = parts.count == 2 ? ("\(parts[0]):", String(parts[1])) : ("", prefix)
        if parts.count < 2, !path.hasPrefix("/") {
            let plugins = (try? ControlClient(path: connection(words).socketPath).call(.plugins))?.value["plugins"]
            let formats = (plugins?.elements ?? []).flatMap { $0["formats"]?.elements ?? [] }.compactMap(\.string)
            return escaped(unique((formats + ["raw"]).sorted()).map { "\($0):" })
        }
        let folder = path.lastIndex(of: "/").map { String(path[...$0]) } ?? ""
        return escaped(
            DirectoryListing.names(in: folder.isEmpty ? "." : folder).sorted().map { name in
                let full = folder + name
                return front + full + (DirectoryListing.names(in: full).isEmpty ? "" : "/")
            })
    }

    /// zsh takes what stands behind a ':' for a description.
    private static func escaped(_ words: [String]) -> [String] {
        guard CompletionShell.requesting == .zsh else { return words }
        return words.map { $0.split(separator: ":", omittingEmptySubsequences: false).joined(separator: "\\:") }
    }

    private static func unique(_ words: [String]) -> [String] {
        var seen: Set<String> = []
        return words.filter { seen.insert($0).inserted }
    }

    private static func connection(_ words: [String]) -> Connection {
        var connection = Connection()
        func value(_ option: String) -> String? {
            guard let index = words.firstIndex(of: option), index + 1 < words.count else { return nil }
            return words[index + 1]
        }
        connection.socket = value("--socket")
        connection.loopback = value("--loopback")
        return connection
    }

    private static func store(_ words: [String]) -> (any XenStore)? {
        (try? StoreAccess.open(loopback: connection(words).loopback))
    }

    private static func rows(_ words: [String]) -> [JSON] {
        let client = try? ControlClient(path: connection(words).socketPath, timeoutSeconds: 2)
        return (try? client?.call(.list))?.value["vbds"]?.elements ?? []
    }

    private static func domain(_ words: [String], before index: Int) -> UInt64? {
        guard index > 0, index <= words.count else { return nil }
        let word = words[index - 1]
        return (DomainName.number(word) ?? store(words).flatMap { try? DomainName.find(word, in: $0) }).map(UInt64.init)
    }
}
