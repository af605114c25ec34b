// SPDX-License-Identifier: BSD-2-Clause
// Which plugins may be below which, and how each of them is read.
import Blkfront
import Foundation
import Testing

extension EndToEnd {
    @Suite struct ChildDeviceTests {
        /// A lab with four plugins for layers: two that do not block, two that do, each with its own format.
        private struct LayerLab {
            let lab: Lab
            let images: String

            init(compiling options: [String] = []) throws {
                lab = try Lab()
                images = "\(lab.directory)/images"
                try FileManager.default.createDirectory(atPath: images, withIntermediateDirectories: false)
                for (name, flags) in [
                    ("layer", "0"), ("other", "0"), ("slow", "XBB_PLUGIN_BLOCKING"), ("slower", "XBB_PLUGIN_BLOCKING"),
                ] {
                    try lab.compilePlugin(
                        name, from: "\(packageDirectory)/Tests/LayerPlugin/layer.c",
                        options: ["-DNAME=\"\(name)\"", "-DFLAGS=\(flags)", "-Wl,-z,defs"] + options)
                }
                try raw("base", "B", sectors: 0..<128)
            }

            /// A raw image of 64 KiB.
            func raw(_ name: String, _ letter: Character, sectors: Range<Int>) throws {
                var bytes = [UInt8](repeating: 0, count: 65536)
                for sector in sectors {
                    for index in sector * 512..<(sector + 1) * 512 { bytes[index] = letter.asciiValue ?? 0 }
                }
                try Data(bytes).write(to: URL(fileURLWithPath: "\(images)/\(name)"))
            }

            /// An image with data of its own in some sectors, above another one.
            func layer(_ name: String, _ letter: Character, sectors: Range<Int>, above: String, _ format: String) throws
            {
                try raw(name, letter, sectors: sectors)
                var header = [UInt8](repeating: 0, count: 4096)
                header.replaceSubrange(64..<64 + format.utf8.count, with: format.utf8)
                header.replaceSubrange(128..<128 + above.utf8.count, with: above.utf8)
                let file = URL(fileURLWithPath: "\(images)/\(name)")
                try (Data(header) + Data(contentsOf: file)).write(to: file)
            }

            func attach(_ name: String, _ format: String, number: UInt32 = 51712) throws -> Disk {
                try lab.attach(
                    number, Storage(path: "\(images)/\(name)", mode: "r", format: format),
                    arguments: ["--backing-dir", images])
            }

            /// The first letter of each of the first four sectors.
            func letters(_ disk: Disk) throws -> String {
                let device = try disk.connect()
                let bytes = try device.queues[0].withQueue { (queue) throws in
                    let (status, bytes) = try queue.read(sector: 0, byteCount: 2048)
                    guard status == 0 else { throw LabError("status \(status)") }
                    return bytes
                }
                try device.close()
                return String(decoding: stride(from: 0, to: 2048, by: 512).map { bytes[$0] }, as: UTF8.self)
            }
        }

        /// What the plugin said, in order.
        private func calls(_ disk: Disk) -> [String] {
            disk.log.split(separator: "\n").compactMap { line in
                line.range(of: "plugin: ").map { String(line[$0.upperBound...]) }
            }
        }

        /// Three layers in a plugin that does not block, above a raw file: no layer but the first has queues.
        @Test func aPluginReadsItsOwnChildrenByItself() throws {
            let lab = try LayerLab()
            try lab.layer("one", "1", sectors: 0..<3, above: "base", "raw")
            try lab.layer("two", "2", sectors: 0..<2, above: "one", "layer")
            try lab.layer("three", "3", sectors: 0..<1, above: "two", "layer")
            let disk = try lab.attach("three", "layer")
            #expect(try lab.letters(disk) == "321B")
            #expect(try disk.key("xbb-chain")?.hasSuffix("raw:\(lab.images)/base") == true)
            try disk.detach()
            #expect(
                calls(disk) == [
                    "started one", "started two", "started three", "queue of three", "closed three", "closed two",
                    "closed one",
                ], "\(disk.log)")
            try lab.lab.finish()
        }

        /// Between plugins there are requests, for which both must block.
        @Test(arguments: [
            ("layer", "other", "plugin 'layer' reads backing files that are raw or of its own formats only: layer"),
            ("layer", "slow", "plugin 'layer' reads backing files that are raw or of its own formats only: layer"),
            ("slow", "other", "which plugin 'other' serves, and only for images of its own formats"),
        ])
        func anotherPluginsChildIsRefused(_ above: String, _ below: String, _ words: String) throws {
            let lab = try LayerLab()
            try lab.layer("below", "1", sectors: 0..<2, above: "base", "raw")
            try lab.layer("above", "2", sectors: 0..<1, above: "below", below)
            let disk = try lab.attach("above", above)
            try disk.awaitError("cannot open \(lab.images)/above: the backing file \(lab.images)/below is of format")
            try disk.awaitError(words)
            try lab.lab.finish()
        }

        /// As before ABI 1.2, whichever plugin serves the child: by a queue of it beside each queue.
        @Test(arguments: ["slow", "slower"]) func aBlockingPluginReadsByQueues(below: String) throws {
            let lab = try LayerLab()
            try lab.layer("below", "1", sectors: 0..<2, above: "base", "raw")
            try lab.layer("above", "2", sectors: 0..<1, above: "below", below)
            let disk = try lab.attach("above", "slow")
            #expect(try lab.letters(disk) == "21BB")
            try disk.detach()
            #expect(
                calls(disk).sorted() == [
                    "closed above", "closed below", "queue of above", "queue of below", "started above",
                    "started below",
                ], "\(disk.log)")
            try lab.lab.finish()
        }

        /// A plugin that does not block and does not know child_device() could open a child and not read it.
        @Test func aPluginOfAnEarlierVersionIsRefusedAsBefore() throws {
            let lab = try LayerLab(compiling: ["-DABI=1"])
            try lab.layer("above", "2", sectors: 0..<1, above: "base", "raw")
            try lab.attach("above", "layer").awaitError("or that were built for ABI 1.2")
            let slow = try lab.attach("above", "slow", number: 51728)
            #expect(try lab.letters(slow) == "2BBB")
            try lab.lab.finish()
        }
    }
}
