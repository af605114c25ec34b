// SPDX-License-Identifier: BSD-2-Clause
// A plugin is chosen by the description files beside the libraries, and none is loaded for that.
import Base
import Foundation
import Support
import TestSupport
import Testing
@testable import PluginHost

extension EndToEnd {
    @Suite struct PluginCatalogTests {
        /// A folder with the names of plugins whose libraries are no libraries at all: whoever loads one fails.
        private func folder(_ descriptions: [String: [String]?]) throws -> String {
            let folder = try makeTemporaryDirectory("catalog")
            for (name, formats) in descriptions {
                try Data("not a library".utf8).write(to: URL(fileURLWithPath: "\(folder)/xbb-\(name).so"))
                guard let formats else { continue }
                let list = formats.map { "\"\($0)\"" }.joined(separator: ",")
                try Data("{\"name\":\"\(name)\",\"formats\":[\(list)]}".utf8)
                    .write(to: URL(fileURLWithPath: "\(folder)/xbb-\(name).plugin"))
            }
            return folder
        }

        private func chosen(_ format: String, _ folders: [String]) -> String {
            do throws(OperationError) {
                return try PluginCatalog(directories: folders).plugin(serving: format)
            } catch {
                return error.description
            }
        }

        @Test func thePluginThatNamesTheFormatServesIt() throws {
            let folder = try folder(["image": ["qcow2", "qcow"], "null": ["null"], "plain": nil])
            #expect(chosen("qcow2", [folder]) == "image")
            #expect(chosen("qcow", [folder]) == "image")
            #expect(chosen("null", [folder]) == "null")
            // Without a description it is what it is called; a described one is what it says.
            #expect(chosen("plain", [folder]) == "plain")
            #expect(chosen("image", [folder]).has("no plugin serves format 'image'"))
            #expect(chosen("vhd", [folder]).has("serve null, plain, qcow, qcow2;"))
            #expect(chosen("vhd", ["/nonexistent"]).has("serve nothing"))
        }

        @Test func twoPluginsForAFormatAreATieUnlessOneIsCalledAfterIt() throws {
            let two = try folder(["a": ["vhd"], "b": ["vhd", "vdi"]])
            #expect(chosen("vhd", [two]).has("more than one plugin: a, b"))
            #expect(chosen("vdi", [two]) == "b")
            #expect(chosen("vhd", [try folder(["a": ["vhd"], "vhd": ["vhd"]])]) == "vhd")
            // Of one name the first folder's counts, also for what it says.
            let first = try folder(["a": ["other"]])
            #expect(chosen("vhd", [first, two]) == "b")
        }

        /// One that came with XBB serves its formats, whoever else claims them under whatever name, and it is said.
        @Test func whoClaimsAnothersFormatTakesNothing() throws {
            let folder = try folder(["image": nil, "qcow2": ["qcow2"], "greedy": ["qcow2", "vhd"]])
            try Data("{\"origin\":\"xbb\",\"name\":\"image\",\"formats\":[\"qcow2\"]}".utf8)
                .write(to: URL(fileURLWithPath: "\(folder)/xbb-image.plugin"))
            let catalog = PluginCatalog(directories: [folder])
            let choice = try catalog.choice(for: "qcow2")
            #expect(choice.name == "image" && choice.others == ["greedy", "qcow2"])
            let note = "format 'qcow2' is served by plugin 'image', which came with XBB, and not by 'greedy', 'qcow2'"
            #expect(choice.note("qcow2") == note)
            #expect(try catalog.choice(for: "vhd").note("vhd") == nil)
            let greedy = catalog.dump(program: "/nonexistent").elements.first { $0["name"]?.string == "greedy" }
            #expect(greedy?["yields"]?.elements.compactMap(\.string) == [note])
            // Of others, the one in the first folder that has one.
            let (first, second) = (try self.folder(["a": ["vdi"]]), try self.folder(["b": ["vdi"], "c": ["vdi"]]))
            #expect(chosen("vdi", [first, second]) == "a")
            #expect(chosen("vdi", [second, first]).has("more than one plugin"))
        }

        @Test func aPluginThatCrashesIsListedWithItsError() throws {
            let lab = try Lab()
            try lab.compilePlugin(
                "broken", from: "\(packageDirectory)/Tests/BrokenPlugin/broken.c",
                options: ["-DNAME=broken", "-DCHANGE=__builtin_trap()"])
            let dump = try LibxlLab.shell("\(buildDirectory)/xbb-vbd --dump-plugins --plugin-dir \(lab.plugins)")
            let plugins = try JSON(parsing: dump).elements
            let broken = try #require(plugins.first { $0["name"]?.string == "broken" })
            #expect(broken["error"]?.string?.has("was ended by signal") == true, "\(broken.serialized)")
            #expect(plugins.count { $0["error"] == nil } == 11, "\(dump)")
            // No file is left of a description that failed.
            let library = "\(lab.plugins)/xbb-broken"
            _ = try? LibxlLab.shell(
                "\(buildDirectory)/xbb-vbd --describe-plugin \(library).so --output \(library).plugin 2>&1")
            #expect(!FileManager.default.fileExists(atPath: "\(library).plugin"))
            #expect(!FileManager.default.fileExists(atPath: "\(library).plugin.new"))
            lab.stop()
        }

        @Test(arguments: [
            "", "{", "[]", "{\"name\":\"b\",\"formats\":[\"vhd\"]}", "{\"name\":\"a\"}",
            "{\"name\":\"a\",\"formats\":7}",
            String(repeating: "[", count: 70000),
        ])
        func aBrokenDescriptionCountsAsNone(text: String) throws {
            let folder = try folder(["a": nil])
            try Data(text.utf8).write(to: URL(fileURLWithPath: "\(folder)/xbb-a.plugin"))
            #expect(chosen("a", [folder]) == "a")
            #expect(chosen("vhd", [folder]).has("no plugin serves format 'vhd'"))
        }

        /// What stands behind the format, also by descriptions that are older than the member.
        @Test(arguments: [
            ("", PluginDescription.Location.file), (",\"needs_file\":true", .file), (",\"needs_file\":false", .opaque),
            (",\"location\":\"opaque\"", .opaque), (",\"location\":\"file\",\"needs_file\":false", .file),
            (",\"location\":\"no such\"", .file), (",\"location\":7,\"needs_file\":false", .opaque),
        ])
        func theLocationIsDescribed(_ member: String, _ location: PluginDescription.Location) {
            let text = "{\"name\":\"a\",\"formats\":[\"a\"]\(member)}"
            #expect(PluginDescription(parsing: Array(text.utf8), name: "a")?.location == location)
        }

        /// What the worker program writes for the build's plugins is what it reads, and a disk is served by it.
        @Test func theWorkerProgramWritesDescriptions() throws {
            let lab = try Lab()
            for name in ["file", "error"] {
                let text = try LibxlLab.shell(
                    "\(buildDirectory)/xbb-vbd --describe-plugin \(lab.plugins)/xbb-\(name).so")
                try Data(text.utf8).write(to: URL(fileURLWithPath: "\(lab.plugins)/xbb-\(name).plugin"))
                let description = try #require(PluginDescription(parsing: [UInt8](text.utf8), name: name))
                #expect(description.formats == (name == "file" ? ["raw"] : ["error", "raw"]))
                #expect(description.json["abi"]?.string == "1.3")
                #expect(description.location == (name == "file" ? .file : .opaque))
                #expect(description.json["location"]?.string == (name == "file" ? "file" : "opaque"))
            }
            let dump = try LibxlLab.shell("\(buildDirectory)/xbb-vbd --dump-plugins --plugin-dir \(lab.plugins)")
            let names = try JSON(parsing: dump).elements.compactMap { $0["name"]?.string }
            #expect(
                names == ["delay", "empty", "error", "evil", "file", "nbd", "null", "qcow", "rawdisk", "rbd", "vhd"])
            #expect(!dump.has("\"error\":"))
            try lab.attach(51712, .plugin("error", "size=16M")).connect().close()
            try lab.finish()
        }
    }
}
