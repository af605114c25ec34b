// SPDX-License-Identifier: BSD-2-Clause
// How the format of an image is found: what was said, what it was served as, and only then what it looks like.
import Blkfront
import Blkif
import Foundation
import Support
import Testing

extension EndToEnd {
    @Suite struct FormatTests {
        /// A lab whose plugins have descriptions, and the toy format among them.
        private func lab() throws -> Lab {
            let lab = try Lab()
            try lab.compilePlugin("toy", from: "\(packageDirectory)/Tests/ToyPlugin/toy.c")
            try Lab.describePlugins(in: lab.plugins)
            try FileManager.default.createDirectory(
                atPath: "\(lab.directory)/state", withIntermediateDirectories: false)
            return lab
        }

        private func image(_ lab: Lab, _ name: String, _ header: String, second: String = "") throws -> String {
            let path = try lab.image(name, bytes: 1 << 20)
            let file = try #require(FileHandle(forWritingAtPath: path))
            try file.write(contentsOf: Data(header.utf8))
            try file.seek(toOffset: 512)
            try file.write(contentsOf: Data(second.utf8))
            return path
        }

        private func attach(_ lab: Lab, _ number: UInt32, _ path: String, _ format: String?, mode: String = "r") throws
            -> Disk
        {
            try lab.attach(
                number, Storage(path: path, mode: mode, format: format),
                arguments: ["--state-dir", "\(lab.directory)/state"])
        }

        /// The first bytes that a guest reads.
        private func firstBytes(_ disk: Disk, _ count: Int = 8) throws -> String {
            let device = try disk.connect()
            let bytes = try device.queues[0].withQueue { (queue) throws in
                try queue.read(sector: 0, byteCount: 512).bytes
            }
            try device.close()
            return String(decoding: bytes.prefix(count), as: UTF8.self)
        }

        private func ask(_ lab: Lab, _ question: String, _ path: String) throws -> JSON {
            try JSON(
                parsing: LibxlLab.shell(
                    "\(buildDirectory)/xbbctl \(question) \(path) --json --plugin-dir \(lab.plugins) "
                        + "--state-dir \(lab.directory)/state"))
        }

        private func problem(_ lab: Lab, _ question: String, _ path: String) -> String {
            do {
                return try LibxlLab.shell(
                    "! \(buildDirectory)/xbbctl \(question) \(path) --plugin-dir \(lab.plugins) "
                        + "--state-dir \(lab.directory)/state 2>&1")
            } catch {
                return "\(error)"
            }
        }

        @Test func autoIsWhatTheContentLooksLike() throws {
            let lab = try lab()
            let toy = try attach(lab, 51712, image(lab, "toy.img", "TOYIMAGE"), "auto")
            #expect(try firstBytes(toy) == "TTTTTTTT")
            #expect(
                toy.log.has("format=auto: \(toy.path) looks like toy; say so in the configuration: toy:\(toy.path)"))
            let nothing = try attach(lab, 51728, image(lab, "plain.img", "plain"), "auto")
            try nothing.awaitError("looks like no format that a plugin knows; if it is a raw image, say so: raw:")
            // Another format's image is named, and never called raw.
            let foreign = try attach(lab, 51760, image(lab, "vhdx.img", "vhdxfile"), "auto")
            try foreign.awaitError("is a VHDX image, which no plugin serves: convert it (qemu-img convert -O raw")
            let probe = try ask(lab, "probe", foreign.path)
            #expect(probe["looks_like"]?.string == "a VHDX image" && probe["auto"]?.string == nil)
            #expect(probe["reason"]?.string?.has("raw:") == false, "\(probe)")
            let both = try attach(lab, 51744, image(lab, "both.img", "TOYIMAGE", second: "TOYSECND"), "auto")
            try both.awaitError("looks like more than one format: toy (90), toy-two (20)")
            try lab.finish()
        }

        /// The attack: what the guest writes to its raw disk looks like another format. It stays raw by every way.
        @Test func whatAGuestWritesDoesNotChangeTheFormat() throws {
            let lab = try lab()
            let path = try lab.image("disk.img", bytes: 1 << 20)
            let disk = try attach(lab, 51712, path, nil, mode: "w")
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                let id = try queue.slot()
                let header = [UInt8]("TOYIMAGE\0\u{3}raw".utf8) + [UInt8](repeating: 0, count: 51)
                let sector = (header + [UInt8]("/etc/shadow".utf8) + [UInt8](repeating: 0, count: 512)).prefix(512)
                queue.buffer(of: id)[0..<512].copyBytes(from: sector)
                try queue.submit(id, .write, sector: 0, byteCount: 512)
                try queue.publish()
                #expect(try queue.finish(id) == 0)
            }
            try device.close()
            try disk.detach()

            // Said, left to the default, and asked for.
            for (number, format) in [(51728, "raw"), (51744, nil), (51760, "auto")] as [(UInt32, String?)] {
                let again = try attach(lab, number, path, format)
                #expect(try firstBytes(again) == "TOYIMAGE", "format \(format ?? "none")")
                try again.detach()
            }
            // Under another name, by a link, and copied over itself: still the same image.
            rename(path, "\(lab.directory)/renamed.img")
            symlink("\(lab.directory)/renamed.img", "\(lab.directory)/link.img")
            for (number, name) in [(51776, "renamed.img"), (51792, "link.img")] as [(UInt32, String)] {
                let again = try attach(lab, number, "\(lab.directory)/\(name)", "auto")
                #expect(try firstBytes(again) == "TOYIMAGE", "\(name)")
                #expect(again.log.has("was served as raw"))
                try again.detach()
            }
            // Tools that only look.
            let found = try ask(lab, "inspect", "\(lab.directory)/renamed.img")
            #expect(found["format"]?.string == "raw" && found["served_as"]?.string == "raw")
            #expect(found["references"] == nil && found["virtual_size"]?.unsigned == 1 << 20)
            let probed = try ask(lab, "probe", "\(lab.directory)/renamed.img")
            #expect(probed["auto"]?.string == "raw")
            #expect(probed["matches"]?.elements.first?["format"]?.string == "toy")
            let insisting = try ask(lab, "inspect --format toy", "\(lab.directory)/renamed.img")
            #expect(insisting["warnings"]?.elements.first?.string?.has("a guest may have written all that") == true)

            // Another file under the name is nobody's raw disk, and nobody's toy either until that is said.
            rename(try image(lab, "new.img", "TOYIMAGE"), "\(lab.directory)/renamed.img")
            let other = try attach(lab, 51808, "\(lab.directory)/renamed.img", "auto")
            try other.awaitError("was served as raw before and is another file now; say what it is: FORMAT:")
            try lab.finish()
        }

        @Test func anImageIsDescribed() throws {
            let lab = try lab()
            let name = String(repeating: "\0", count: 51) + "/srv/base.img"
            let path = try image(lab, "toy.img", "TOYIMAGE\u{5}\u{3}raw" + name)
            let answer = try ask(lab, "inspect", path)
            #expect(answer["format"]?.string == "toy" && answer["virtual_size"]?.unsigned == 1 << 20)
            #expect(answer["flags"]?.elements.compactMap(\.string) == ["encrypted", "dirty"])
            let reference = try #require(answer["references"]?.elements.first)
            #expect(reference["kind"]?.string == "backing" && reference["format"]?.string == "raw")
            #expect(reference["name"]?.string == "/srv/base.img")
            #expect(answer["warnings"]?.elements.count == 1)
            let unnamed = try image(
                lab, "unnamed.img", "TOYIMAGE\0\0\u{1}" + String(repeating: "\0", count: 53) + "base")
            #expect(try ask(lab, "inspect", unnamed)["warnings"]?.elements.first?.string?.has("not its format") == true)
            #expect(problem(lab, "inspect", "/nonexistent").has("cannot open /nonexistent: No such file"))
            #expect(problem(lab, "inspect", lab.directory).has("is a directory"))
            #expect(problem(lab, "inspect --format vhdx", path).has("no plugin serves format 'vhdx'"))
            #expect(problem(lab, "inspect", try image(lab, "plain.img", "plain")).has("looks like no format"))
            lab.stop()
        }

        /// A parser that is led astray by an image takes nothing with it.
        @Test(arguments: [
            ("TOYCRASH", "was ended by signal"), ("TOYSPINS", "was ended by signal"),
            ("TOYHUNGR", "was ended by signal"), ("TOYOPENS", "cannot open another file"),
        ])
        func aParserThatGoesWrongIsContained(header: String, text: String) throws {
            let lab = try lab()
            let path = try image(lab, "bad.img", header)
            #expect(problem(lab, "inspect --format toy", path).has(text))
            if header != "TOYOPENS" {
                #expect(problem(lab, "probe", path).has(text))
                let disk = try attach(lab, 51712, path, "auto")
                try disk.awaitError(text)
                #expect(try disk.worker.ask("ping")["pid"] != nil)
            }
            try lab.finish()
        }
    }
}
