// SPDX-License-Identifier: BSD-2-Clause
// Where /run or /var have no space left, disks are served, killed workers have successors, and it is said.
import Blkfront
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    /// Mounting takes root.
    @Suite(.enabled(if: geteuid() == 0)) struct FullFileSystemTests {
        /// A small file system in memory over a directory of a lab, whose xbbd is started on it.
        private final class Small {
            let point: String

            init(_ lab: LibxlLab, over name: String) throws {
                point = "\(lab.directory)/\(name)"
                lab.killDaemon()
                mkdir(point, 0o755)
                try LibxlLab.shell("mount -t tmpfs -o size=20M,mode=755 tmpfs '\(point)'")
                try lab.start()
            }

            func fill() throws {
                try LibxlLab.shell("cat /dev/zero > '\(point)/filler' 2>/dev/null || true")
                #expect(try LibxlLab.shell("df --output=avail '\(point)' | tail -1").has("0"))
            }

            func empty() { unlink("\(point)/filler") }
            deinit { _ = try? LibxlLab.shell("umount -l '\(point)' 2>&1") }
        }

        private func disk(_ lab: LibxlLab, _ guest: LoopbackDomain, _ number: UInt32 = 51712) throws -> LibxlDisk {
            LibxlDisk(guest: guest.id, number: number, params: "raw:\(try lab.image("\(number).img"))")
        }

        /// What was attached before goes on, whoever is killed; what is attached now is served, and the log says without what.
        @Test func aFullRunDirectoryTakesNoDiskAway() throws {
            let lab = try LibxlLab()
            let small = try Small(lab, over: "run")
            let guest = try lab.guest()
            let before = try disk(lab, guest)
            #expect(try lab.add(before).status == 0)
            let device = try lab.connect(before, guest)
            #expect(try verifiedLoad(device).isGood)
            try small.fill()
            for _ in 0..<3 {
                let worker = try lab.worker(before)
                #expect(kill(worker, SIGKILL) == 0)
                #expect(try verifiedLoad(device).isGood, "\(lab.log)")
                try eventually("a successor; log: \(lab.log)") { try lab.worker(before) != worker }
            }
            try lab.administer("upgrade \(guest.id) 51712")
            #expect(try verifiedLoad(device).isGood, "\(lab.log)")

            let later = try disk(lab, guest, 51728)
            #expect(try lab.add(later).status == 0, "\(lab.log)")
            let second = try lab.connect(later, guest)
            #expect(try verifiedLoad(second).isGood, "\(lab.log)")
            #expect(lab.log.has("if this process is killed, the guest loses its disk"), "\(lab.log)")
            // Nothing is in flight: the guest of a killed worker keeps its disk nevertheless.
            kill(try lab.worker(later), SIGKILL)
            try eventually("a successor that found an empty ring; log: \(lab.log)") {
                lab.log.components(separatedBy: "\(guest.id)/51728: connected to domain").count == 3
            }
            #expect(try verifiedLoad(second).isGood, "\(lab.log)")

            small.empty()
            for (device, disk) in [(device, before), (second, later)] {
                try device.close()
                try lab.remove(disk)
            }
            lab.stop()
        }

        /// xbbd itself begins, and takes over what is served.
        @Test func xbbdIsStartedInAFullRunDirectory() throws {
            let lab = try LibxlLab()
            let small = try Small(lab, over: "run")
            let guest = try lab.guest()
            let disk = try disk(lab, guest)
            #expect(try lab.add(disk).status == 0)
            let device = try lab.connect(disk, guest)
            #expect(try verifiedLoad(device).isGood)
            let worker = try lab.worker(disk)
            try small.fill()
            lab.killDaemon()
            try lab.start()
            try eventually("it is adopted; log: \(lab.log)") { try lab.worker(disk) == worker }
            kill(worker, SIGKILL)
            #expect(try verifiedLoad(device).isGood, "\(lab.log)")
            small.empty()
            try device.close()
            try lab.remove(disk)
            lab.stop()
        }

        /// Which format an image had is not remembered, and that is said.
        @Test func aFullStateDirectoryTakesNoDiskAway() throws {
            let state = try makeTemporaryDirectory("state")
            let lab = try LibxlLab(options: ["--state-dir", state])
            try LibxlLab.shell("mount -t tmpfs -o size=1M,nr_inodes=4 tmpfs '\(state)'")
            defer { _ = try? LibxlLab.shell("umount -l '\(state)' 2>&1") }
            try LibxlLab.shell("cat /dev/zero > '\(state)/filler' 2>/dev/null; touch '\(state)/a' '\(state)/b'; true")
            let guest = try lab.guest()
            let disk = try disk(lab, guest)
            #expect(try lab.add(disk).status == 0, "\(lab.log)")
            let device = try lab.connect(disk, guest)
            #expect(try verifiedLoad(device).isGood)
            #expect(lab.log.has("No space left on device"), "\(lab.log)")
            kill(try lab.worker(disk), SIGKILL)
            #expect(try verifiedLoad(device).isGood)
            try device.close()
            try lab.remove(disk)
            lab.stop()
        }
    }
}
