// SPDX-License-Identifier: BSD-2-Clause
// What every program has: --help, --version, and a status of its own for words that it does not know.
import Base
import Support
import Testing

@testable import XBBControl

@Suite struct ProductTests {
    /// All programs of Package.swift, with the status for wrong usage that their help names.
    static let usageStatus: [String: Int32] = [
        "xbbd": 64, "xbbctl": 64, "xbb-dm": 64, "xbb-loopback": 64, "xbb-blkfront": 64, "xbb-bench": 64, "xbb-vbd": 2,
        "xbb-plugin-check": 2,
    ]

    /// What was printed on both outputs.
    private func run(_ name: String, _ words: [String]) throws -> (text: String, exit: WorkerExit) {
        let program = try Program(
            ["/bin/sh", "-c", "exec 2>&1; exec \"$0\" \"$@\"", "\(DaemonLab.products)/\(name)"] + words, capture: true)
        return (program.text(), program.wait())
    }

    @Test("no program is left out") func complete() throws {
        let bytes = try #require(SmallFile.contents(Self.package + "/Package.swift", limit: 1 << 20))
        let names = String(decoding: bytes, as: UTF8.self).split(separator: "\n").compactMap { line -> String? in
            let parts = line.split(separator: "\"")
            return parts.count > 1 && parts[0].hasSuffix(".executable(name: ") ? String(parts[1]) : nil
        }
        #expect(Set(names) == Set(Self.usageStatus.keys))
    }

    @Test("--help, --version and wrong words", arguments: usageStatus.keys.sorted())
    func words(_ name: String) throws {
        let help = try run(name, ["--help"])
        #expect(help.exit == .clean && help.text.lowercased().contains("usage: \(name)"), "\(help)")
        let text = help.text.split { $0 == " " || $0 == "\n" }.joined(separator: " ")
        #expect(text.contains("Exit status: 0 "), "\(text)")
        let version = try run(name, ["--version"])
        #expect(version.exit == .clean && version.text.contains(xbbVersion), "\(version)")
        #expect(version.text.split(separator: "\n").count == 1, "\(version)")
        let status = try #require(Self.usageStatus[name])
        for words in [["--nonsense"], ["nonsense", "--nonsense"]] {
            let wrong = try run(name, words)
            #expect(wrong.exit == WorkerExit(code: status, signal: 0), "\(words): \(wrong)")
            // What libxl gives to QEMU, xbb-dm passes over.
            #expect(wrong.text.contains(name == "xbb-dm" ? "no -xen-domid" : "nonsense"), "\(wrong)")
        }
    }

    @Test(
        "wrong options of the benchmark are refused, not ignored",
        arguments: [
            "ring --depth 0", "ring --depth many", "ring --repeat", "ring --backend other", "steps --depth=1",
            "ring --option a=b", "",
        ])
    func bench(_ words: String) throws {
        #expect(try run("xbb-bench", words.split(separator: " ").map(String.init)).exit == .failed(64))
    }

    private static let package = InstallPaths.folder(of: InstallPaths.folder(of: InstallPaths.folder(of: #filePath)))
}
