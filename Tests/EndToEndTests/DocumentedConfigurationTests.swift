// SPDX-License-Identifier: BSD-2-Clause
// The configurations of docs/xl.md: read by xl's own parser, put into XenStore as libxl does, and served.
import Blkfront
import CXLConfig
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct DocumentedConfigurationTests {
        /// The blocks of the document that begin with "```cfg".
        static let configurations: [String] = {
            let text = (try? String(contentsOfFile: "\(packageDirectory)/docs/xl.md", encoding: .utf8)) ?? ""
            return text.components(separatedBy: "```cfg\n").dropFirst().map { $0.components(separatedBy: "```")[0] }
        }()

        /// A disk as xl understands it.
        private struct Entry {
            let format, backend, script, vdev, target, backendDomain: String
            let isWritable, isCDROM: Bool

            init(_ disk: xlconfig_disk) {
                func text<Field>(_ field: Field) -> String {
                    withUnsafeBytes(of: field) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
                }
                format = text(disk.format)
                backend = text(disk.backend)
                script = text(disk.script)
                vdev = text(disk.vdev)
                target = text(disk.target)
                backendDomain = text(disk.backend_domain)
                isWritable = disk.writable != 0
                isCDROM = disk.is_cdrom != 0
            }

            /// The directory that libxl chooses (disk_try_backend; 4.19 for "tap").
            var kind: String {
                if backend == "tap" { return "vbd3" }
                return backend == "qdisk" || format != "raw" ? "qdisk" : "vbd"
            }

            /// What libxl writes (device_disk_add), with another path for the image.
            func disk(_ guest: DomainID, number: UInt32, target: String, backend: DomainID) -> LibxlDisk {
                let prefix = kind == "vbd" ? "" : format == "raw" ? "aio:" : format + ":"
                return LibxlDisk(
                    kind: kind, guest: guest, number: number, params: prefix + target,
                    script: "/etc/xen/scripts/" + (script.isEmpty ? "block" : script), mode: isWritable ? "w" : "r",
                    deviceType: isCDROM ? "cdrom" : "disk", backend: backend)
            }
        }

        private func parse(_ configuration: String) throws -> [Entry] {
            var disks = [xlconfig_disk](repeating: xlconfig_disk(), count: 16)
            let count = xlconfig_disks(configuration, configuration.utf8.count, &disks, 16)
            guard count >= 0 else { throw LabError("xl does not understand:\n\(configuration)") }
            return disks.prefix(Int(count)).map(Entry.init)
        }

        @Test func thereAreConfigurations() { #expect(Self.configurations.count >= 7) }

        @Test(arguments: configurations)
        func aDocumentedConfigurationIsServed(_ text: String) throws {
            let entries = try parse(text)
            #expect(!entries.isEmpty)
            let lab = try LibxlLab(
                kinds: Set(entries.map(\.kind)).sorted(), options: ["--any-script"],
                inDriverDomain: entries.contains { !$0.backendDomain.isEmpty })
            let guest = try lab.guest()
            var loops: [String] = []
            defer { for loop in loops { _ = try? LibxlLab.shell("losetup -d \(loop)") } }
            for (index, entry) in entries.enumerated() {
                // The document's path, in a folder of the test.
                let path = String(entry.target[(entry.target.firstIndex(of: "/") ?? entry.target.startIndex)...])
                var image = path
                let isQcow = entry.format == "qcow2" || entry.target.hasPrefix("qcow2:")
                if path.hasPrefix("/srv/") {
                    image = "\(lab.directory)/\(path.split(separator: "/").last ?? "")"
                    try LibxlLab.shell("qemu-img create -q -f \(isQcow ? "qcow2" : "raw") '\(image)' 16M")
                } else if path.hasPrefix("/dev/vg/") {
                    image = try LibxlLab.shell("losetup --find --show '\(try lab.image("lv-\(index)"))'")
                    loops.append(image)
                }
                let disk = entry.disk(
                    guest.id, number: UInt32(51712 + 16 * index),
                    target: entry.target.replacingOccurrences(of: path, with: image), backend: lab.domain)
                try lab.makeNodes(disk)
                if disk.script.hasSuffix("/block-xbb") {
                    try lab.awaitState("2", of: disk)
                    _ = try lab.run("add", disk)
                } else if entry.kind == "vbd" {
                    try lab.awaitState("2", of: disk)
                    if !image.hasPrefix("/dev/") {
                        image = try LibxlLab.shell("losetup --find --show '\(image)'")
                        loops.append(image)
                    }
                    try lab.doAsXensBlock(disk, device: image)
                }
                try eventually("an answer for \(disk.params); log: \(lab.log)") {
                    let status = try lab.key("hotplug-status", of: disk)
                    return status == "connected" || status == "error"
                }
                // A build without a plugin for the format has understood it no less.
                if let error = try lab.key("hotplug-error", of: disk) {
                    #expect(isQcow && error.has("no plugin serves format 'qcow2'"), "\(disk.params): \(error)")
                    continue
                }
                let device = try lab.connect(disk, guest)
                #expect((device.info.info & 4 == 0) == entry.isWritable && (device.info.info & 1 == 1) == entry.isCDROM)
                if entry.target.hasPrefix("null,") {
                    #expect(device.info.byteCount == 1 << 30)  // it keeps nothing that could be verified
                } else if entry.isWritable {
                    #expect(try verifiedLoad(device).isGood)
                }
                try device.close()
                try lab.remove(disk)
            }
            lab.stop()
        }
    }
}
