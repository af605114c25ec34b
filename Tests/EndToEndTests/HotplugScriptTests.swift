// SPDX-License-Identifier: BSD-2-Clause
// block-xbb, run as libxl runs it, against the real xbbd.
import Blkfront
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct HotplugScriptTests {
        /// Adds a disk that must not come up and gives what xl would print.
        private func refusal(_ lab: LibxlLab, _ disk: LibxlDisk, seconds: Int = 30) throws -> String {
            let result = try lab.add(disk, seconds: seconds)
            #expect(result.status == 1, "\(disk.params): \(lab.log)")
            #expect(try lab.key("hotplug-status", of: disk) == "error")
            let text = try #require(try lab.key("hotplug-error", of: disk))
            #expect(!text.contains("\n") && text.utf8.count <= 512)
            return text
        }

        @Test func aDiskComesAndGoes() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            for params in [
                "raw:\(try lab.image("a.img"))", try lab.image("b:c.img"), "aio:\(try lab.image("d é\\ \"e\".img"))",
                // What libxl makes of backendtype=tap.
                "aio:raw:\(try lab.image("f:g.img"))",
            ] {
                let disk = LibxlDisk(guest: guest.id, params: params)
                #expect(try lab.add(disk).status == 0, "\(params): \(lab.log)")
                #expect(try lab.key("hotplug-status", of: disk) == "connected")
                #expect(try lab.key("xbb-format", of: disk) == "raw")
                #expect(try lab.key("physical-device", of: disk) == nil)
                // Some hotplug configurations run a script twice.
                #expect(try lab.run("add", disk).status == 0)
                let device = try lab.connect(disk, guest)
                #expect(try verifiedLoad(device).isGood)
                try device.close()
                try lab.remove(disk)
            }
            lab.stop()
        }

        @Test func badTargetsAreNamed() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let image = try lab.image()
            let cases = [
                ("disk.img", "expected FORMAT:/PATH"), ("raw:disk.img", "expected FORMAT:/PATH"),
                ("Raw:\(image)", "'Raw' is no format"), ("raw:\(image).missing", "does not exist"),
                ("raw:\(lab.directory)", "is a directory"), ("raw:/dev/null", "neither a regular file nor a block"),
                ("nosuch:\(image)", "no plugin serves format 'nosuch'"),
                ("raw:\(try lab.image("empty", bytes: 0))", "empty"),
            ]
            for (index, (params, text)) in cases.enumerated() {
                let disk = LibxlDisk(guest: guest.id, number: UInt32(51712 + 16 * index), params: params)
                let answer = try refusal(lab, disk)
                #expect(answer.has(text), "\(params): \(answer)")
            }
            // A disk that failed can be taken away, and the same image be attached.
            let disk = LibxlDisk(guest: guest.id, number: 51712, params: "raw:\(image)")
            try lab.remove(disk)
            #expect(try lab.add(disk).status == 0)
            lab.stop()
        }

        @Test func optionsReachThePlugin() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let disk = LibxlDisk(guest: guest.id, params: "null,size=1M:/dev/null")
            #expect(try lab.add(disk).status == 0, "\(lab.log)")
            let device = try lab.connect(disk, guest)
            #expect(device.info.byteCount == 1 << 20)
            try device.close()
            let bad = LibxlDisk(guest: guest.id, number: 51728, params: "null,size=much:/dev/zero")
            #expect(try refusal(lab, bad).has("size"))
            lab.stop()
        }

        /// What only a plugin understands goes to it as it was written, and is nowhere taken for a path.
        @Test func anOpaqueLocationReachesThePlugin() throws {
            let lab = try LibxlLab()
            try lab.addNamedPlugin()
            let guest = try lab.guest()
            let cases = [
                ("named:pool/image", "pool/image"), ("named://[::1]:10809/a b?c=d", "named://[::1]:10809/a b?c=d"),
                ("named+unix:///export?socket=/run/x", "named+unix:///export?socket=/run/x"),
                ("aio:named:pool/other", "pool/other"), ("named:../$(id)`id`'\"\\*", "../$(id)`id`'\"\\*"),
                ("named:größe", "größe"), ("named:/dev", "/dev"),
            ]
            for (index, (params, location)) in cases.enumerated() {
                let disk = LibxlDisk(guest: guest.id, number: UInt32(51712 + 16 * index), params: params)
                #expect(try lab.add(disk).status == 0, "\(params): \(lab.log)")
                #expect(try lab.key("xbb-format", of: disk) == "named")
                #expect(try lab.key("physical-device-path", of: disk) == location)
                #expect(try lab.key("physical-device", of: disk) == nil)
                #expect(try lab.firstText(disk, guest) == location)
            }
            let image = try lab.image()
            for (index, (params, text)) in [
                ("named:", "expected a name behind the format"), ("named:unknown", "nobody knows this name"),
                ("named:" + String(repeating: "a", count: 1025), "at most 1024 bytes"),
                ("nosuch:pool/image", "no plugin serves format 'nosuch', and there are "),
                ("qcow2:pool/image", "expected FORMAT:/PATH"), ("raw:pool/image", "expected FORMAT:/PATH"),
                ("nosuch:\(image)", "no plugin serves format 'nosuch'"), ("auto:x", "expected FORMAT:/PATH"),
            ].enumerated() {
                let disk = LibxlDisk(guest: guest.id, number: UInt32(52000 + 16 * index), params: params)
                let answer = try refusal(lab, disk)
                #expect(answer.has(text), "\(params): \(answer)")
            }
            lab.stop()
        }

        /// Two disks with one opaque location are one storage; a file of the same name is not.
        @Test func opaqueLocationsAreSharedAsTheyAreWritten() throws {
            let lab = try LibxlLab()
            try lab.addNamedPlugin()
            let guests = try (0..<2).map { _ in try lab.guest().id }
            let image = try lab.image()
            #expect(try lab.add(LibxlDisk(guest: guests[0], params: "named:\(image)")).status == 0)
            #expect(try lab.add(LibxlDisk(guest: guests[0], number: 51728, params: "named:pool/image")).status == 0)
            #expect(
                try refusal(lab, LibxlDisk(guest: guests[1], params: "named:pool/image")).has(
                    "pool/image is used by domain \(guests[0]) as xvd51728, mode w"))
            #expect(try lab.add(LibxlDisk(guest: guests[1], number: 51728, params: "named:pool/other")).status == 0)
            #expect(try lab.add(LibxlDisk(guest: guests[1], number: 51744, params: "raw:\(image)")).status == 0)
            // What names nothing is nobody's.
            for guest in guests {
                let disk = LibxlDisk(guest: guest, number: 51760, params: "null,size=1M:")
                #expect(try lab.add(disk).status == 0, "\(lab.log)")
                #expect(try lab.key("physical-device-path", of: disk) == "/")
            }
            lab.stop()
        }

        /// What Xen's own script "block" does for phy: targets, in its order (xen-utils-common, block-common.sh).
        @Test func xensOwnScriptIsUnderstood() throws {
            let lab = try LibxlLab(options: ["--any-script"])
            let guest = try lab.guest()
            let loop = try LibxlLab.shell("losetup --find --show '\(try lab.image())'")
            defer { _ = try? LibxlLab.shell("losetup -d \(loop)") }
            let disk = LibxlDisk(guest: guest.id, params: loop, script: "/etc/xen/scripts/block")
            try lab.makeNodes(disk)
            try lab.awaitState("2", of: disk)
            try lab.doAsXensBlock(disk, device: loop)
            let device = try lab.connect(disk, guest)
            #expect(try verifiedLoad(device).isGood)
            #expect(try lab.key("hotplug-status", of: disk) == "connected")
            try device.close()
            try lab.remove(disk)
            // The status may come first: it is no word about XBB's own state.
            try lab.makeNodes(disk)
            try lab.awaitState("2", of: disk)
            let number = try LibxlLab.shell("stat -L -c %t:%T \(loop)")
            for (key, value) in [
                ("hotplug-status", "connected"), ("physical-device", number), ("physical-device-path", loop),
            ] { try lab.xenstore("write \(disk.busPath)/\(key) \(value)") }
            let again = try lab.connect(disk, guest)
            #expect(try verifiedLoad(again).isGood)
            try again.close()
            try lab.remove(disk)
            lab.stop()
        }

        /// A name that was given to another device between script and opening is found out by the number.
        @Test func anotherDeviceBehindTheNameIsNotOpened() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let loop = try LibxlLab.shell("losetup --find --show '\(try lab.image())'")
            defer { _ = try? LibxlLab.shell("losetup -d \(loop)") }
            for (index, path) in [loop, try lab.image("file.img")].enumerated() {
                let disk = LibxlDisk(guest: guest.id, number: UInt32(51712 + 16 * index), params: loop)
                try lab.makeNodes(disk)
                try lab.awaitState("2", of: disk)
                try lab.xenstore("write \(disk.busPath)/physical-device fd:3")
                try lab.xenstore("write \(disk.busPath)/physical-device-path \(path)")
                try eventually("an error") { try lab.key("hotplug-status", of: disk) == "error" }
                let error = try #require(try lab.key("hotplug-error", of: disk))
                #expect(error.has("was block device 253:3 when it was attached"), "\(error)")
            }
            lab.stop()
        }

        /// One writer or many readers, whatever names the image has.
        @Test func whoSharesAnImageIsNamed() throws {
            let lab = try LibxlLab()
            let guests = try (0..<3).map { _ in try lab.guest().id }
            let image = try lab.image()
            let link = "\(lab.directory)/link", hard = "\(lab.directory)/hard"
            #expect(symlink(image, link) == 0 && Foundation.link(image, hard) == 0)
            func disk(_ guest: Int, _ number: UInt32, _ path: String, _ mode: String) -> LibxlDisk {
                LibxlDisk(guest: guests[guest], number: number, params: "raw:\(path)", mode: mode)
            }
            let first = disk(0, 51712, image, "r")
            #expect(try lab.add(first).status == 0)
            #expect(try lab.add(disk(1, 51712, link, "r")).status == 0)
            let answer = try refusal(lab, disk(2, 51712, hard, "w"))
            #expect(answer.has("\(hard) is used by domain \(guests[0]) as xvd51712, mode r"), "\(answer)")
            #expect(try refusal(lab, disk(0, 51728, image, "w")).has("is used by"))
            // Who failed uses nothing, nor does who has closed.
            #expect(try lab.add(disk(2, 51728, hard, "r")).status == 0)
            for (guest, number) in [(0, 51712), (1, 51712), (2, 51728)] as [(Int, UInt32)] {
                let old = disk(guest, number, image, "r")
                try lab.requestRemoval(old)
                try lab.awaitState("6", of: old)
            }
            #expect(try lab.add(disk(2, 51744, image, "w")).status == 0)
            #expect(try refusal(lab, disk(1, 51744, link, "r")).has("mode w"))
            // One guest in two domains, as while it migrates on one host: the script leaves it to the image's lock.
            for guest in [0, 2] { try lab.store.write("/local/domain/\(guests[guest])/vm", "/vm/one") }
            let locked = try refusal(lab, disk(0, 51760, image, "w"))
            for words in ["is in use", "is locked by ", "xbb-vbd, process "] { #expect(locked.has(words), "\(locked)") }
            lab.stop()
        }

        @Test func ofTwoScriptsAtOnceOneIsRefused() throws {
            let lab = try LibxlLab()
            for round in 0..<5 {
                let image = try lab.image("\(round).img")
                let disks = try (0..<2).map { _ in
                    LibxlDisk(guest: try lab.guest().id, params: "raw:\(image)")
                }
                for disk in disks { try lab.makeNodes(disk) }
                for disk in disks { try lab.awaitState("2", of: disk) }
                let scripts = try disks.map { try lab.start("add", $0).0 }
                scripts.forEach { $0.waitUntilExit() }
                #expect(scripts.map(\.terminationStatus).sorted() == [0, 1])
                let refused = disks[scripts[0].terminationStatus == 0 ? 1 : 0]
                #expect(try lab.key("hotplug-error", of: refused)?.has("is used by domain") == true)
            }
            lab.stop()
        }

        /// The kernel's loop devices over an image, and images below a loop device.
        @Test func loopDevicesAreSeenThrough() throws {
            let lab = try LibxlLab()
            let guests = try (0..<2).map { _ in try lab.guest().id }
            let image = try lab.image()
            let loop = try LibxlLab.shell("losetup --find --show '\(image)'")
            defer { _ = try? LibxlLab.shell("losetup -d \(loop)") }
            let device = LibxlDisk(guest: guests[0], params: "phy:\(loop)")
            #expect(try lab.add(device).status == 0)
            let number = try LibxlLab.shell("stat -c %t:%T \(loop)")
            #expect(try lab.key("physical-device", of: device) == number)
            #expect(
                try refusal(lab, LibxlDisk(guest: guests[1], params: "raw:\(image)", mode: "r")).has(
                    "is used by domain \(guests[0])"))
            try lab.remove(device)
            let file = LibxlDisk(guest: guests[1], number: 51728, params: "raw:\(image)")
            #expect(try lab.add(file).status == 0)
            #expect(
                try refusal(lab, LibxlDisk(guest: guests[0], number: 51728, params: "raw:\(loop)")).has(
                    "is used by domain \(guests[1])"))
            try lab.remove(file)
            // Xen's own script says that it uses a device by its number alone.
            try lab.makeNodes(LibxlDisk(kind: "vbd3", guest: guests[1], params: "phy:\(loop)"))
            let foreign = LibxlDisk(kind: "vbd", guest: guests[1], number: 51760, params: "phy:\(loop)")
            try lab.makeNodes(foreign)
            try lab.store.write("\(foreign.back)/physical-device", number)
            #expect(
                try refusal(lab, LibxlDisk(guest: guests[0], number: 51744, params: "raw:\(image)")).has("xvd51760"))
            lab.stop()
        }

        @Test func whatIsMountedHereIsRefused() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest().id
            let image = try lab.image()
            let point = "\(lab.directory)/a mount"
            try LibxlLab.shell("mke2fs -q '\(image)' && mkdir '\(point)' && mount -o loop,ro '\(image)' '\(point)'")
            defer { _ = try? LibxlLab.shell("umount '\(point)'") }
            let answer = try refusal(lab, LibxlDisk(guest: guest, params: "raw:\(image)"))
            #expect(answer.has("\(image) is mounted on \(point) in this domain, as loop"))
            // Readers do not disturb a mount that only reads.
            #expect(try lab.add(LibxlDisk(guest: guest, number: 51728, params: "raw:\(image)", mode: "r")).status == 0)
            try lab.remove(LibxlDisk(guest: guest, number: 51728, params: ""))
            lab.stop()
        }

        @Test func nobodyAnswers() throws {
            let lab = try LibxlLab(kinds: ["vbd3"])
            let guest = try lab.guest().id
            let image = try lab.image()
            // Somebody took the node, and does not open the disk.
            let disk = LibxlDisk(guest: guest, params: "raw:\(image)")
            try lab.makeNodes(disk)
            #expect(try lab.run("add", disk).status == 1)
            #expect(try lab.key("hotplug-error", of: disk)?.has("in state 2, and it is in 1") == true)
            let other = LibxlDisk(guest: guest, number: 51728, params: "raw:\(image)")
            try lab.makeNodes(other)
            try lab.store.write("\(other.back)/state", "2")
            let result = try lab.run("add", other, seconds: 2)
            #expect(result.status == 1 && result.seconds >= 1, "\(result)")
            #expect(try lab.key("hotplug-error", of: other)?.has("within 2 s: is xbbd running?") == true)
            #expect(try lab.key("hotplug-status", of: other) == "error")
            lab.stop()
        }

        /// XBB refuses such nodes before the script runs: the reason is told, and not that the state is another one.
        @Test func nodesThatXBBRefusesAreRefusedWithTheReason() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest().id
            let image = try lab.image()
            let named = LibxlDisk(guest: guest, params: "raw:\(image)")
            try lab.makeNodes(named, params: Array("raw:/srv/".utf8) + [0xff, 0xfe])
            try eventually("an answer") { try lab.key("hotplug-status", of: named) == "error" }
            #expect(try lab.run("add", named).status == 1)
            #expect(try lab.key("hotplug-error", of: named)?.has("the target is not UTF-8") == true)
            let moded = LibxlDisk(guest: guest, number: 51728, params: "raw:\(image)", mode: "sideways")
            try lab.makeNodes(moded)
            try eventually("an answer") { try lab.key("hotplug-status", of: moded) == "error" }
            #expect(try lab.run("add", moded).status == 1)
            #expect(try lab.key("hotplug-error", of: moded)?.has("mode") == true)
            lab.stop()
        }

        @Test func aNodeThatGoesIsNotMadeAgain() throws {
            let lab = try LibxlLab(kinds: ["vbd3"])
            let disk = LibxlDisk(guest: try lab.guest().id, params: "raw:\(try lab.image())")
            try lab.makeNodes(disk)
            try lab.store.write("\(disk.back)/state", "2")
            let (script, _) = try lab.start("add", disk)
            try eventually("the script to have written") { try lab.key("physical-device-path", of: disk) != nil }
            try lab.store.remove(disk.back, in: .none)
            script.waitUntilExit()
            #expect(script.terminationStatus == 1)
            #expect(try lab.store.text(disk.back) == nil)
            #expect(try lab.run("remove", disk).status == 0)
            #expect(try lab.store.text(disk.back) == nil)
            lab.stop()
        }

        /// The lock that Xen's own scripts take; its holder removes the file.
        @Test func xensLockIsWaitedFor() throws {
            let lab = try LibxlLab()
            let disk = LibxlDisk(guest: try lab.guest().id, params: "raw:\(try lab.image())")
            mkdir("\(lab.directory)/locks", 0o755)
            let path = "\(lab.directory)/locks/block"
            let holder = clinux_open(path, O_RDWR | O_CREAT, 0o600)
            #expect(flock(holder, LOCK_EX) == 0)
            try lab.makeNodes(disk)
            try lab.awaitState("2", of: disk)
            let (script, _) = try lab.start("add", disk)
            usleep(500_000)
            #expect(script.isRunning)
            #expect(try lab.key("physical-device-path", of: disk) == nil)
            unlink(path)
            close(holder)
            script.waitUntilExit()
            #expect(script.terminationStatus == 0)
            #expect(!FileManager.default.fileExists(atPath: path))
            lab.stop()
        }
    }
}
