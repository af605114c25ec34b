// SPDX-License-Identifier: BSD-2-Clause
// What a plugin author relies on: a C file, gcc and the installed header are enough to serve a disk.
import Blkfront
import Blkif
import Foundation
import Testing

extension EndToEnd {
    @Suite struct OutsidePluginTests {
        /// The example is copied out of the package and finds nothing there but the header beside it.
        @Test func aSmallPluginFromOutsideServesADisk() throws {
            let lab = try Lab()
            let source = "\(packageDirectory)/examples/c-memory/memory.c"
            let lines = try String(contentsOfFile: source, encoding: .utf8).split(
                separator: "\n", omittingEmptySubsequences: false)
            #expect(lines.count <= 61, "the example says that a plugin of 60 lines is enough")
            try lab.compilePlugin("memory", from: source)

            let disk = try lab.attach(51712, .plugin("memory", "size=32M"))
            let device = try disk.connect { $0.ringPages = 4 }
            #expect(device.info.sectors == 65536)
            let report = try disk.load(device) { $0.count = 2000 }
            #expect(report.isGood && report.verifiedBlocks > 0, "\(report.text)")
            try device.close()

            let bad = try lab.attach(51728, .plugin("memory", "size=1000"))
            try bad.awaitError("size is no multiple of 512 bytes")
            try lab.finish()
        }
    }
}

extension Lab {
    /// Compiles one C file against the header alone, all warnings being errors, and installs it as `xbb-NAME.so`.
    func compilePlugin(
        _ name: String, from source: String, options: [String] = ["-Wpedantic", "-Wl,-z,defs"]
    ) throws {
        try Self.compilePlugin(name, from: source, options: options, below: directory, to: plugins)
    }

    /// The same for other labs: compiles it in a new folder of `directory`.
    static func compilePlugin(
        _ name: String, from source: String, options: [String] = ["-Wpedantic", "-Wl,-z,defs"],
        below directory: String, to plugins: String
    ) throws {
        let folder = "\(directory)/outside-\(name)"
        let files = FileManager.default
        try files.createDirectory(atPath: folder, withIntermediateDirectories: false)
        try files.copyItem(atPath: source, toPath: "\(folder)/\(name).c")
        try files.copyItem(
            atPath: "\(packageDirectory)/Sources/PluginAPI/include/xbb_plugin.h",
            toPath: "\(folder)/xbb_plugin.h")
        let compiler = Process()
        compiler.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        compiler.currentDirectoryURL = URL(fileURLWithPath: folder)
        compiler.arguments =
            ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-I.", "-shared", "-fPIC"] + options
            + ["\(name).c", "-o", "xbb-\(name).so"]
        let messages = Pipe()
        compiler.standardError = messages
        try compiler.run()
        let text = String(decoding: messages.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        compiler.waitUntilExit()
        guard compiler.terminationStatus == 0 else { throw LabError("gcc \(name).c: \(text)") }
        try files.moveItem(atPath: "\(folder)/xbb-\(name).so", toPath: "\(plugins)/xbb-\(name).so")
        chmod("\(plugins)/xbb-\(name).so", 0o755)
    }
}
