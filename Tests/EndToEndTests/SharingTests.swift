// SPDX-License-Identifier: BSD-2-Clause
// In use is in use, for xbbctl attach, the hotplug script and disks without a script alike.
import Base
import Blkfront
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct SharingTests {
        /// The three ways to a disk.
        enum Way: String, CaseIterable { case xbbctl, script, qdisk }

        /// A Xen, two guests, and disks that are tried on them in one way.
        private final class Trial {
            let lab: LibxlLab
            let way: Way
            let guests: [DomainID]
            private var number: UInt32 = 51712

            init(_ way: Way) throws {
                self.way = way
                lab = try LibxlLab(kinds: ["vbd", "qdisk"])
                let lab = lab
                guests = try (0..<2).map { _ in try lab.guest().id }
            }

            /// Attaches `path` as a disk of the second guest: why not, or nil. What was attached is removed again.
            func refusal(_ path: String, mode: String = "w") throws -> String? {
                number += 16
                let disk = LibxlDisk(
                    kind: way == .qdisk ? "qdisk" : "vbd", guest: guests[1], number: number, params: "raw:\(path)",
                    mode: mode)
                switch way {
                case .xbbctl:
                    let flag = ["r": "--readonly", "w!": "--shared"][mode] ?? ""
                    let result = try lab.xbbctl("attach \(disk.guest) \(number) 'raw:\(path)' \(flag)")
                    if result.status != 0 { return result.text }
                    #expect(try lab.xbbctl("detach \(disk.guest) \(number)").status == 0)
                    return nil
                case .script:
                    let result = try lab.add(disk)
                    let text = result.status == 0 ? nil : try lab.key("hotplug-error", of: disk) ?? ""
                    try lab.remove(disk)
                    return text
                case .qdisk:
                    try lab.makeNodes(disk)
                    try eventually("an answer") { try lab.key("hotplug-status", of: disk) != nil }
                    let isOpen = try lab.key("hotplug-status", of: disk) == "connected"
                    let text = isOpen ? nil : try lab.key("hotplug-error", of: disk) ?? ""
                    try lab.remove(disk)
                    return text
                }
            }

            func loop(_ path: String, _ options: String = "") throws -> String {
                try LibxlLab.shell("losetup --find --show \(options) '\(path)'")
            }

            func shell(_ command: String) throws { try LibxlLab.shell(command) }

            /// What was refused is free again.
            func expectFree(_ path: String) throws { #expect(try refusal(path) == nil) }
        }

        @Test(arguments: Way.allCases) func whatIsMountedIsRefused(_ way: Way) throws {
            let trial = try Trial(way)
            let image = try trial.lab.image()
            let point = "\(trial.lab.directory)/mnt"
            try trial.shell("mke2fs -q -F \(image) && mkdir \(point)")
            let device = try trial.loop(image)
            defer { _ = try? LibxlLab.shell("umount \(point) 2>&1; losetup -d \(device)") }
            try trial.shell("mount \(device) \(point)")
            for path in [image, device] {
                #expect(try trial.refusal(path)?.contains("is mounted on \(point) in this domain") == true)
                #expect(try trial.refusal(path, mode: "r")?.contains("is mounted on") == true)
            }
            try trial.shell("mount -o remount,ro \(point)")
            #expect(try trial.refusal(device)?.contains("is mounted on") == true)
            #expect(try trial.refusal(device, mode: "r") == nil)
            #expect(try trial.refusal(device, mode: "w!") == nil)
            try trial.shell("umount \(point)")
            try trial.expectFree(image)
            trial.lab.stop()
        }

        @Test(arguments: Way.allCases) func partitionsAreParts(_ way: Way) throws {
            let trial = try Trial(way)
            let image = try trial.lab.image(bytes: 32 << 20)
            let point = "\(trial.lab.directory)/mnt"
            mkdir(point, 0o755)
            let device = try trial.loop(image, "-P")
            defer { _ = try? LibxlLab.shell("umount \(point) 2>&1; losetup -d \(device)") }
            // As a partition table says it; not every kernel reads those.
            try trial.shell("addpart \(device) 1 2048 16384 && addpart \(device) 2 20480 16384")
            try trial.shell("mke2fs -q -F \(device)p1 && mount \(device)p1 \(point)")
            for path in [image, device, "\(device)p1"] {
                #expect(try trial.refusal(path)?.contains("is mounted on \(point)") == true, "\(path)")
            }
            // Another part of the same disk is other storage.
            try trial.expectFree("\(device)p2")
            try trial.shell("umount \(point)")
            try trial.expectFree(device)
            trial.lab.stop()
        }

        @Test(arguments: Way.allCases) func whatAnotherGuestHasIsRefused(_ way: Way) throws {
            let trial = try Trial(way)
            let image = try trial.lab.image()
            let loop = try trial.loop(image)
            let upper = try trial.loop(loop)
            defer { _ = try? LibxlLab.shell("losetup -d \(upper); losetup -d \(loop)") }
            let guest = trial.guests[0]
            for (own, mode) in [(image, "w"), (loop, "r"), (upper, "w")] {
                let disk = LibxlDisk(guest: guest, params: "raw:\(own)", mode: mode)
                #expect(try trial.lab.add(disk).status == 0, "\(trial.lab.log)")
                for path in [image, loop, upper] {
                    let text = try trial.refusal(path)
                    #expect(
                        text?.contains("is used by domain \(guest) as xvd51712, mode \(mode)") == true,
                        "\(own), \(path): \(text ?? "attached")")
                    #expect(try (trial.refusal(path, mode: "r") == nil) == (mode == "r"))
                }
                try trial.lab.remove(disk)
            }
            // What its guest has closed is its guest's, until it is taken away.
            let held = LibxlDisk(guest: guest, params: "raw:\(image)")
            #expect(try trial.lab.add(held).status == 0)
            let domain = try LoopbackDomain(joining: guest, directory: trial.lab.xen.directory)
            let device = try trial.lab.connect(held, domain)
            try device.close()
            try trial.lab.awaitState("6", of: held)
            #expect(try trial.refusal(image)?.contains("is used by domain \(guest)") == true)
            try trial.lab.remove(held)
            // A disk of xen-blkback, which says what it uses by a number alone, in hexadecimal.
            let foreign = LibxlDisk(kind: "vbd", guest: guest, number: 51760, params: "phy:\(loop)", script: "block")
            try trial.lab.makeNodes(foreign)
            let number = try LibxlLab.shell("stat -c %t:%T \(loop)")
            try trial.lab.store.write("\(foreign.back)/physical-device", number)
            try trial.lab.store.write("\(foreign.back)/state", "4")
            #expect(try trial.refusal(image)?.contains("as xvd51760") == true)
            trial.lab.stop()
        }

        @Test(arguments: Way.allCases) func activeSwapIsRefused(_ way: Way) throws {
            let trial = try Trial(way)
            let image = try trial.lab.image()
            let device = try trial.loop(image)
            defer { _ = try? LibxlLab.shell("swapoff \(device) 2>&1; losetup -d \(device)") }
            try trial.shell("mkswap -q \(device) && swapon \(device)")
            for path in [device, image] { #expect(try trial.refusal(path)?.contains("is active swap") == true) }
            try trial.shell("swapoff \(device)")
            try trial.expectFree(device)
            trial.lab.stop()
        }

        /// Device mapper over a loop device over the image.
        @Test(arguments: Way.allCases) func partsOfOtherDevicesAreRefused(_ way: Way) throws {
            let trial = try Trial(way)
            let image = try trial.lab.image()
            let device = try trial.loop(image)
            let name = "xbb-sharing-\(getpid())"
            defer { _ = try? LibxlLab.shell("dmsetup remove \(name) 2>&1; losetup -d \(device)") }
            guard
                (try? trial.shell("echo 0 16384 linear \(device) 0 | dmsetup create \(name) --noudevsync 2>&1")) != nil
            else {
                return withKnownIssue("there is no device mapper; BlockTopologyTests has the rule") {
                    throw LabError("")
                }
            }
            for path in [device, image] {
                #expect(try trial.refusal(path)?.contains("is part of \(name) (dm-") == true)
            }
            try trial.shell("dmsetup remove \(name)")
            try trial.expectFree(device)
            trial.lab.stop()
        }

        /// Whoever claims a device without being listed anywhere.
        @Test(arguments: Way.allCases) func claimedDevicesAreRefused(_ way: Way) throws {
            let trial = try Trial(way)
            let image = try trial.lab.image()
            let device = try trial.loop(image)
            defer { _ = try? LibxlLab.shell("losetup -d \(device)") }
            do {
                let claim = Descriptor(owning: clinux_open(device, O_RDONLY | O_EXCL | O_CLOEXEC, 0))
                #expect(claim.raw >= 0)
                #expect(try trial.refusal(device)?.contains("O_EXCL") == true)
            }
            try trial.expectFree(device)
            trial.lab.stop()
        }

        /// Of a lock on a file the holder is named.
        @Test(arguments: Way.allCases) func lockedFilesAreRefusedWithTheHolder(_ way: Way) throws {
            let trial = try Trial(way)
            let image = try trial.lab.image()
            for kind in ["open file", "process", "flock", "qemu"] {
                let type: Int16 = kind == "qemu" ? Int16(F_RDLCK) : Int16(F_WRLCK)
                let holder = try LockHolder(image, kind: kind, type: type, byte: kind == "qemu" ? 201 : nil)
                let text = try trial.refusal(image)
                #expect(
                    text?.contains("is locked by \(holder.name), process \(holder.process)") == true,
                    "\(kind): \(text ?? "attached")")
                holder.end()
                try trial.expectFree(image)
            }
            trial.lab.stop()
        }

        /// Inodes are numbers of one file system: locks of a file with the same number on another one are none of ours.
        @Test(.enabled(if: geteuid() == 0), arguments: ["flock", "open file"])
        func aLockOfAnotherFileWithTheSameInodeIsNone(_ kind: String) throws {
            let trial = try Trial(.xbbctl)
            let folders = ["one", "two"].map { "\(trial.lab.directory)/\($0)" }
            defer { for folder in folders { _ = try? LibxlLab.shell("umount \(folder)") } }
            for folder in folders {
                try LibxlLab.shell(
                    "mkdir \(folder) && mount -t tmpfs -o inode64 tmpfs \(folder) && truncate -s 1M \(folder)/disk")
            }
            #expect(
                try LibxlLab.shell("stat -c %i \(folders[0])/disk") == LibxlLab.shell("stat -c %i \(folders[1])/disk"))
            let holder = try LockHolder("\(folders[0])/disk", kind: kind, type: Int16(F_WRLCK), byte: nil)
            #expect(try trial.refusal("\(folders[0])/disk") != nil)
            #expect(try trial.refusal("\(folders[1])/disk") == nil)
            holder.end()
            trial.lab.stop()
        }

        /// `--force` attaches, says what it overrides, and the log has it too.
        @Test func forceIsTold() throws {
            let lab = try LibxlLab()
            let guests = try (0..<2).map { _ in try lab.guest().id }
            let image = try lab.image()
            #expect(try lab.xbbctl("attach \(guests[0]) xvda raw:\(image)").status == 0)
            let refused = try lab.xbbctl("attach \(guests[1]) xvda raw:\(image)")
            #expect(refused.status == 1 && refused.text.contains("--force"), "\(refused)")
            #expect(try lab.store.text("/local/domain/0/backend/vbd/\(guests[1])/51712/state") == nil)
            let forced = try lab.xbbctl("attach \(guests[1]) xvda raw:\(image) --force")
            #expect(forced.status == 0, "\(forced)")
            let reason = "\(image) is used by domain \(guests[0]) as xvda, mode w"
            #expect(forced.text.contains("--force overrides: \(reason)"), "\(forced)")
            #expect(lab.log.contains("attached by force, forced: \(reason)"), "\(lab.log)")
            for guest in guests { #expect(try lab.xbbctl("detach \(guest) xvda").status == 0) }
            lab.stop()
        }

        /// Xen's own scripts see the disks of xbbctl by this key.
        @Test func xbbctlTellsTheDevicesNumber() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest().id
            let device = try LibxlLab.shell("losetup --find --show '\(try lab.image())'")
            defer { _ = try? LibxlLab.shell("losetup -d \(device)") }
            #expect(try lab.xbbctl("attach \(guest) xvda raw:\(device)").status == 0)
            let number = try LibxlLab.shell("stat -c %t:%T \(device)")
            #expect(try lab.store.text("/local/domain/0/backend/vbd/\(guest)/51712/physical-device") == number)
            // Nobody can mount what the guest writes to.
            #expect(clinux_open(device, O_RDONLY | O_EXCL | O_CLOEXEC, 0) == -1 && errno == EBUSY)
            #expect(try lab.xbbctl("detach \(guest) xvda").status == 0)
            lab.stop()
        }

        /// The two domains of a guest that migrates within this host.
        @Test func aGuestThatMigratesHasItsDeviceTwice() throws {
            let lab = try LibxlLab()
            let guests = try (0..<2).map { _ in try lab.guest().id }
            for guest in guests { try lab.store.write("/local/domain/\(guest)/vm", "/vm/one") }
            let device = try LibxlLab.shell("losetup --find --show '\(try lab.image())'")
            defer { _ = try? LibxlLab.shell("losetup -d \(device)") }
            for guest in guests {
                let disk = LibxlDisk(guest: guest, params: "raw:\(device)")
                #expect(try lab.add(disk).status == 0, "\(lab.log)")
            }
            lab.stop()
        }
    }

    /// A process of its own with a lock on a file.
    private final class LockHolder {
        let process: Int32
        let name = "python3"
        private let child = Process()

        init(_ path: String, kind: String, type: Int16, byte: Int?) throws {
            let call =
                switch kind {
                case "flock": "fcntl.flock(f, fcntl.LOCK_EX)"
                case "process": "fcntl.fcntl(f, fcntl.F_SETLK, lock)"
                default: "fcntl.fcntl(f, 37, lock)"
                }
            child.executableURL = URL(fileURLWithPath: "/usr/bin/python3")
            child.arguments = [
                "-c",
                """
                import fcntl, os, struct, sys
                f = os.open(sys.argv[1], os.O_RDWR)
                lock = struct.pack('hhqqi4x', \(type), 0, \(byte ?? 0), \(byte == nil ? 0 : 1), 0)
                \(call)
                print('held', flush=True)
                sys.stdin.read()
                """, path,
            ]
            let (output, input) = (Pipe(), Pipe())
            child.standardOutput = output
            child.standardInput = input
            try child.run()
            process = child.processIdentifier
            #expect(output.fileHandleForReading.availableData.count > 0, "\(kind)")
        }

        func end() {
            kill(process, SIGKILL)
            child.waitUntilExit()
        }

        deinit { if child.isRunning { end() } }
    }
}
