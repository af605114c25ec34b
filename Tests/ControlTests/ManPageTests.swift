// SPDX-License-Identifier: BSD-2-Clause
import PluginHost
import Base
import CLinux
import Foundation
import Glibc
import Testing

@testable import XBBControl

@Suite struct ManPageTests {
    /// The folder of the package, from the place of this file.
    private static let package = InstallPaths.folder(of: InstallPaths.folder(of: InstallPaths.folder(of: #filePath)))

    private func page(_ name: String) throws -> String {
        let file = try Descriptor(clinux_open("\(Self.package)/docs/man/\(name).8", O_RDONLY, 0), "open page")
        var bytes: [UInt8] = []
        while case .bytes(let more) = file.readAvailable() { bytes += more }
        return String(decoding: bytes, as: UTF8.self)
    }

    private func help(_ arguments: [String]) throws -> String {
        let program = try Program(
            ["\(DaemonLab.products)/\(arguments[0])"] + arguments.dropFirst() + ["--help"], capture: true)
        let text = program.text()
        #expect(program.wait() == .clean)
        #expect(!text.isEmpty)
        return text
    }

    /// The words of a text that begin with `--`.
    private func longOptions(of help: String) -> Swift.Set<String> {
        var options: Swift.Set<String> = []
        for word in help.split(whereSeparator: { !($0.isLetter || $0.isNumber || $0 == "-") })
        where word.hasPrefix("--") {
            options.insert(String(word))
        }
        return options
    }

    /// Options that a page describes: items of its list.
    private func described(in page: String) -> Swift.Set<String> {
        var options: Swift.Set<String> = []
        for line in page.split(separator: "\n") where line.hasPrefix(".It Fl -") {
            if let name = line.dropFirst(8).split(separator: " ").first { options.insert("--" + name) }
        }
        return options
    }

    /// Options anywhere in a page.
    private func named(in page: String) -> Swift.Set<String> {
        var options: Swift.Set<String> = []
        for line in page.split(separator: "\n") {
            let words = line.split(separator: " ")
            for (index, word) in words.enumerated() where word == "Fl" || word == ".Fl" || word == "|" {
                guard index + 1 < words.count, words[index + 1].hasPrefix("-") else { continue }
                options.insert("-" + words[index + 1])
            }
        }
        return options
    }

    private static let commands: [String] = [
        "list", "show", "stats", "top", "metrics", "events", "wait", "log", "set", "plugins", "probe", "inspect",
        "attach",
        "detach", "pause", "resume", "swap", "insert", "eject", "snapshot", "commit", "rebase", "changed", "resize",
        "upgrade",
    ]

    @Test(
        "every option of --help is described in the page, and no other",
        arguments: [
            ("xbbd", [["xbbd"]]), ("xbb-vbd", [["xbb-vbd"]]), ("xbb-dm", [["xbb-dm"]]),
            ("xbbctl", [["xbbctl"]] + commands.map { ["xbbctl", $0] }),
        ])
    func options(_ name: String, _ calls: [[String]]) throws {
        var options: Swift.Set<String> = []
        for call in calls { options.formUnion(longOptions(of: try help(call))) }
        let page = try page(name)
        #expect(described(in: page) == options)
        #expect(named(in: page) == options)
    }

    @Test("every command of xbbctl is in its page", arguments: commands)
    func command(_ command: String) throws {
        let page = try page("xbbctl")
        #expect(page.contains("\n.It Cm \(command)\n"))
        let options = longOptions(of: try help(["xbbctl", command]))
        // The synopsis of a command has the options that are its own.
        let common: Swift.Set = ["--socket", "--loopback", "--help", "--version"]
        let synopsis = page.split(separator: "\n.Nm\n").first {
            $0 == ".Cm \(command)" || $0.hasPrefix(".Cm \(command) ") || $0.hasPrefix(".Cm \(command)\n")
        }
        #expect(named(in: String(try #require(synopsis))) == options.subtracting(common))
    }

    @Test("the packages have the documents that their pages name") func documents() throws {
        let root = Self.package
        let folder = root + "/debian"
        let shipped = try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.hasSuffix(".docs") }
            .flatMap { try String(contentsOfFile: "\(folder)/\($0)", encoding: .utf8).split(separator: "\n") }
            .map { $0.split(separator: "/").last.map(String.init) ?? "" }
        var texts = try FileManager.default.contentsOfDirectory(atPath: root + "/docs/man").map {
            "\(root)/docs/man/\($0)"
        }
        texts.append(folder + "/xbb.README.Debian")
        for path in texts {
            let words = try String(contentsOfFile: path, encoding: .utf8).split { " \n,;()".contains($0) }
            for word in words where word.hasSuffix(".md") {
                let name = word.split(separator: "/").last.map(String.init) ?? ""
                #expect(shipped.contains(name), "\(path) names \(word)")
            }
        }
    }

    @Test("exit statuses of the page are those of the program") func exitStatuses() throws {
        let page = try page("xbbctl")
        for status in [.failed, .unreachable, .timedOut] as [ControlStatus] {
            #expect(page.contains("\n.It \(status.rawValue)\n"))
        }
    }
}
