// SPDX-License-Identifier: BSD-2-Clause
// CD drives: a medium is inserted, changed and ejected while a guest has the drive, by xbbctl and as libxl does.
import Base
import Blkfront
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct MediumTests {
        /// An image whose bytes all are `letter`.
        private func medium(_ lab: LibxlLab, _ letter: Character, mebibytes: Int) throws -> String {
            let path = "\(lab.directory)/\(letter).iso"
            try LibxlLab.shell("head -c \(mebibytes)M /dev/zero | tr '\\0' \(letter) >'\(path)'")
            return path
        }

        private func read(_ device: FrontDevice, sector: UInt64 = 0) throws -> (status: Int16, byte: UInt8?) {
            var result: (Int16, UInt8?) = (0, nil)
            try device.queues[0].withQueue { (queue) throws in
                let (status, bytes) = try queue.read(sector: sector, byteCount: 512)
                result = (Int16(status), bytes.first)
            }
            return result
        }

        /// The worker has the file open.
        private func isOpen(_ path: String, by process: Int32) throws -> Bool {
            try LibxlLab.shell("ls -l /proc/\(process)/fd 2>/dev/null || true").contains(path)
        }

        @Test func aMediumIsInsertedChangedAndEjected() throws {
            let lab = try LibxlLab()
            try Lab.describePlugins(in: lab.plugins)
            let guest = try lab.guest()
            let drive = "\(guest.id) xvdd"
            let socket = "--socket '\(lab.directory)/run/xbbd.sock'"
            let disk = LibxlDisk(guest: guest.id, number: 51760, params: "empty:", deviceType: "cdrom")
            try lab.administer("attach \(drive) empty: --cdrom")
            // Another empty drive is no other user of the same image.
            try lab.administer("attach \(guest.id) xvde empty: --removable")
            #expect(try lab.key("removable", of: disk) == "1" && lab.key("mode", of: disk) == "r")
            let device = try lab.connect(disk, guest)
            // VDISK_CDROM, VDISK_REMOVABLE and VDISK_READONLY.
            #expect(device.info.info == 7)
            #expect(try read(device).status == -1)
            let (a, b) = (try medium(lab, "a", mebibytes: 8), try medium(lab, "b", mebibytes: 2))
            for (image, byte, sectors) in [(a, "a", 16384), (b, "b", 4096), (a, "a", 16384)] {
                let inserted = try lab.xbbctl("insert \(drive) raw:\(image) --json \(socket)")
                #expect(
                    inserted.status == 0 && inserted.text.contains("\"result\":\"inserted\""), "\(inserted) \(lab.log)")
                try eventually("the guest is told") { try lab.key("sectors", of: disk) == "\(sectors)" }
                #expect(try lab.key("state", of: disk) == "4")
                let first = try read(device)
                #expect(first.status == 0 && first.byte == Character(byte).asciiValue)
                #expect(try read(device, sector: UInt64(sectors - 1)).status == 0)
                #expect(try read(device, sector: UInt64(sectors)).status == -1)
            }
            // What cannot be served leaves the medium that is there.
            for wrong in ["raw:\(lab.directory)/none.iso", "qcow2:\(b)"] {
                #expect(try lab.xbbctl("insert \(drive) \(wrong) \(socket)").status == 1)
                #expect(try read(device).byte == Character("a").asciiValue, "\(wrong): \(lab.log)")
            }
            // A killed worker leaves the drive as it is.
            kill(try lab.worker(disk), SIGKILL)
            #expect(try read(device).byte == Character("a").asciiValue)
            #expect(try isOpen(a, by: lab.worker(disk)))
            for _ in 0..<2 {
                let ejected = try lab.xbbctl("eject \(drive) --json \(socket)")
                #expect(ejected.status == 0 && ejected.text.contains("\"result\":\"ejected\""), "\(ejected) \(lab.log)")
                #expect(try read(device).status == -1)
            }
            #expect(try !isOpen(a, by: lab.worker(disk)))
            // libxl takes this for an empty drive (libxl_device_disk_merge).
            #expect(try lab.store.text("/libxl/\(guest.id)/device/vbd/51760/params") == "empty:")
            kill(try lab.worker(disk), SIGKILL)
            #expect(try read(device).status == -1)
            try lab.administer("insert \(drive) raw:\(b)")
            #expect(try read(device).byte == Character("b").asciiValue)
            try device.close()
            try lab.administer("detach \(drive)")
            lab.stop()
        }

        /// For guests whose driver takes no CD drives: a disk that is removable, and may be written.
        @Test func aRemovableDiskIsADrive() throws {
            let lab = try LibxlLab()
            try Lab.describePlugins(in: lab.plugins)
            let guest = try lab.guest()
            let image = try lab.image()
            let disk = LibxlDisk(guest: guest.id, params: "raw:\(image)")
            try lab.administer("attach \(guest.id) xvda raw:\(image) --removable")
            let device = try lab.connect(disk, guest)
            #expect(device.info.info == 2)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 0, byteCount: 512, fill: 0x61) == 0)
            }
            try lab.administer("eject \(guest.id) xvda")
            #expect(try read(device).status == -1)
            try lab.administer("insert \(guest.id) xvda raw:\(image)")
            #expect(try read(device).byte == 0x61)
            try device.close()
            try lab.administer("detach \(guest.id) xvda")
            lab.stop()
        }

        @Test func aDiskIsNoDrive() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            for command in ["eject \(guest.id) xvda", "insert \(guest.id) xvda raw:\(image)"] {
                let refused = try lab.xbbctl("\(command) --socket '\(lab.directory)/run/xbbd.sock'")
                #expect(refused.status == 1 && refused.text.contains("neither a CD drive nor removable"), "\(refused)")
            }
            lab.stop()
        }

        /// libxl_cdrom_insert of 4.17: `params` becomes "", then "aio:/image", in the backend's node and in its own.
        @Test func aDriveWithoutAGuestFollowsLibxl() throws {
            let lab = try LibxlLab(kinds: ["qdisk"])
            try Lab.describePlugins(in: lab.plugins)
            let guest = try lab.guest()
            let a = try medium(lab, "a", mebibytes: 1)
            // An empty drive, as device_disk_add writes it.
            let disk = LibxlDisk(
                kind: "qdisk", guest: guest.id, number: 51760, params: "aio:", mode: "r", deviceType: "cdrom")
            try lab.makeNodes(disk)
            try lab.awaitState("2", of: disk)
            func served() throws -> String? {
                let text = try lab.xbbctl("show \(guest.id) xvdd --json --socket '\(lab.directory)/run/xbbd.sock'").text
                let value = try? JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
                return value?["path"] as? String
            }
            try eventually("the drive is there; \(lab.log)") { try served() == "/" }
            for _ in 0..<3 {
                try lab.store.write("\(disk.back)/params", "", in: .none)
                try lab.store.write("\(disk.back)/params", "aio:\(a)", in: .none)
                try eventually("the medium is there; \(lab.log)") { try served() == a }
                try lab.store.write("\(disk.back)/params", "", in: .none)
                try eventually("it is ejected; \(lab.log)") { try served() == "/" }
                #expect(try lab.key("state", of: disk) == "2")
            }
            try lab.store.write("\(disk.back)/params", "aio:\(a)", in: .none)
            let device = try lab.connect(disk, guest)
            #expect(try read(device).byte == Character("a").asciiValue)
            try device.close()
            lab.stop()
        }
    }
}
