// SPDX-License-Identifier: BSD-2-Clause
// Disks that are named by what only their plugin understands.
import Blkfront
import Blkif
import Foundation
import Testing
import XenLoopback

extension EndToEnd {
    @Suite struct LocationTests {
        private static let source = "\(packageDirectory)/Tests/NamedPlugin/named.c"

        /// The text that a disk of the plugin "named" begins with: its location, as the plugin got it.
        private func text(_ disk: Disk) throws -> String {
            let device = try disk.connect()
            defer { try? device.close() }
            return try firstText(device)
        }

        @Test func aLocationReachesThePluginAsItIs() throws {
            let lab = try Lab()
            try lab.compilePlugin("named", from: Self.source)
            try FileManager.default.createDirectory(
                atPath: "\(lab.directory)/state", withIntermediateDirectories: false)
            for (index, location) in [
                "pool/image", "named://[2001:db8::1]:10809/a%20b", "../../etc/shadow", "$(id) `id` '\"\\", "größe",
                String(repeating: "a", count: 1024), "/dev/null",
            ].enumerated() {
                let disk = try lab.attach(
                    UInt32(51712 + 16 * index), Storage(path: location, format: "named"),
                    arguments: ["--state-dir", "\(lab.directory)/state"])
                #expect(try text(disk) == location)
                #expect(try disk.worker.show("path") == location)
            }
            // A format is remembered of images, and these are none.
            #expect(
                (try? FileManager.default.contentsOfDirectory(atPath: "\(lab.directory)/state/formats")) ?? [] == [])
            try lab.finish()
        }

        @Test func paramsAreReadInTheSameWay() throws {
            let lab = try Lab()
            try lab.compilePlugin("named", from: Self.source)
            let image = try lab.image("disk.img", bytes: 1 << 20)
            for (index, (params, location)) in [
                ("named:pool/image", "pool/image"), ("named+unix:///a?socket=b", "named+unix:///a?socket=b"),
                ("named:/a", "/a"), ("raw:/\(image)", ""),
            ].enumerated() {
                let disk = try lab.prepare(
                    UInt32(51712 + 16 * index), arguments: ["--storage-source", "params"])
                try disk.write("params", params)
                try disk.startWorker()
                #expect(try text(disk) == location)
            }
            try lab.finish()
        }

        @Test func whatCannotBeALocationIsRefused() throws {
            let lab = try Lab()
            try lab.compilePlugin("named", from: Self.source)
            for (index, (format, location, text)) in [
                ("named", "/", "expected a name behind the format"), ("named", "unknown", "nobody knows this name"),
                ("named", String(repeating: "a", count: 1025), "expected at most 1024 bytes"),
                ("named", "/" + String(repeating: "a", count: 1024), "has at most 1024 bytes"),
                ("named", "a\u{85}b", "without control characters"),
                ("qcow", "a", "'a' is no absolute path, and format 'qcow' is served from a file"),
                ("raw", "../a", "expected an absolute path"), ("auto", "a", "'a' is no absolute path"),
                ("nosuch", "nosuch://host", "no plugin serves format 'nosuch'"),
            ].enumerated() {
                let disk = try lab.attach(
                    UInt32(51712 + 16 * index), Storage(path: location, mode: "r", format: format))
                try disk.awaitError(text)
            }
            try lab.finish()
        }

        /// xbbctl asks xbbd what the format's plugin takes.
        @Test func xbbctlAttachesByLocation() throws {
            let lab = try LibxlLab()
            try lab.addNamedPlugin()
            let guest = try lab.guest()
            let image = try lab.image("relative.img")
            func attach(_ number: UInt32, _ disk: String) throws -> LibxlDisk {
                try LibxlLab.shell(
                    "cd '\(lab.directory)' && \(buildDirectory)/xbbctl attach \(guest.id) \(number) '\(disk)' "
                        + "--loopback \(lab.xen.directory) --socket \(lab.directory)/run/xbbd.sock")
                return LibxlDisk(guest: guest.id, number: number, params: disk)
            }
            for (index, (disk, location)) in [
                ("named:pool/image", "pool/image"), ("named://[::1]:10809/a b", "named://[::1]:10809/a b"),
                ("named:../relative.img", "../relative.img"), ("named:/a", "/a"),
            ].enumerated() {
                let attached = try attach(UInt32(51712 + 16 * index), disk)
                #expect(try lab.key("physical-device-path", of: attached) == location)
                #expect(try lab.firstText(attached, guest) == location)
            }
            for (index, (disk, path)) in [
                ("null,size=1G:", "/"), ("null,size=1G:/", "/"), ("raw:relative.img", image),
                ("raw:/\(image)", "/\(image)"),
            ].enumerated() {
                let attached = try attach(UInt32(52000 + 16 * index), disk)
                #expect(try lab.key("physical-device-path", of: attached) == path)
                if disk.has("relative.img") { try lab.remove(attached) }
            }
            lab.stop()
        }
    }
}

/// The text that a disk begins with, up to its first NUL.
func firstText(_ device: FrontDevice) throws -> String {
    let bytes = try device.queues[0].withQueue { (queue) throws in try queue.read(sector: 0, byteCount: 4096).bytes }
    return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
}

extension LibxlLab {
    /// Installs the plugin "named", which serves a disk for each text, and describes all plugins.
    func addNamedPlugin() throws {
        try Lab.compilePlugin(
            "named", from: "\(packageDirectory)/Tests/NamedPlugin/named.c", below: directory, to: plugins)
        try Lab.describePlugins(in: plugins)
    }

    /// The text that a disk begins with, as a guest reads it.
    func firstText(_ disk: LibxlDisk, _ guest: LoopbackDomain) throws -> String {
        let device = try connect(disk, guest)
        defer { try? device.close() }
        return try EndToEndTests.firstText(device)
    }
}
