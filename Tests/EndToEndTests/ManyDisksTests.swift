// SPDX-License-Identifier: BSD-2-Clause
// The system's room for asynchronous I/O, which all processes share. Long tests (XBB_LONG=1, make test-long): they take much of it,
// and one of them takes it away from the whole machine for a moment.
import Base
import Blkfront
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite(.enabled(if: geteuid() == 0 && ProcessInfo.processInfo.environment["XBB_LONG"] == "1"))
    struct ManyDisksTests {
        private static let mostPath = "/proc/sys/fs/aio-max-nr"

        private func number(_ path: String) throws -> Int {
            let text = try String(contentsOfFile: path, encoding: .utf8)
            return try #require(Int(text.trimmingCharacters(in: .whitespacesAndNewlines)))
        }

        /// Runs `body` with another fs.aio-max-nr; one process of this machine at a time does.
        private func with(aioMaxNr: Int, _ body: () throws -> Void) throws {
            let lock = try Descriptor(
                clinux_open("/tmp/xbb-aio-max-nr.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o600), "open a lock")
            try #require(flock(lock.raw, LOCK_EX) == 0)
            let usual = try number(Self.mostPath)
            defer { try? Data("\(usual)\n".utf8).write(to: URL(fileURLWithPath: Self.mostPath), options: []) }
            try Data("\(aioMaxNr)\n".utf8).write(to: URL(fileURLWithPath: Self.mostPath), options: [])
            try #require(try number(Self.mostPath) == aioMaxNr)
            try body()
        }

        /// A disk with a ring of 32 pages, in use.
        private func attach(_ lab: LibxlLab, _ guest: LoopbackDomain, _ index: Int) throws -> (LibxlDisk, FrontDevice) {
            let number = UInt32(51712 + 16 * index)
            let image = try lab.image("\(guest.id)-\(index).img", bytes: 4 << 20)
            let disk = LibxlDisk(guest: guest.id, number: number, params: "raw:\(image)")
            #expect(try lab.add(disk).status == 0, "disk \(index): \(lab.log.suffix(2000))")
            let device = try lab.connect(disk, guest) {
                $0.ringPages = 32
                $0.insistOnRingPages = true
                $0.requestsPerQueue = 8
                $0.timeout = 60_000
            }
            return (disk, device)
        }

        /// 62 took all of it, when each took what its guest's ring could hold.
        @Test func threeHundredDisksHaveRoom() throws {
            try with(aioMaxNr: 65536) {
                let lab = try LibxlLab()
                var disks: [(LibxlDisk, FrontDevice)] = []
                for _ in 0..<30 {
                    let guest = try lab.guest()
                    for index in 0..<10 { disks.append(try attach(lab, guest, index)) }
                }
                for (disk, device) in disks {
                    let load = try verifiedLoad(device, count: 30)
                    #expect(load.isGood, "\(disk.back): \(load)")
                }
                let used = try number("/proc/sys/fs/aio-nr")
                print("many disks: \(disks.count), and fs.aio-nr is \(used)")
                #expect(used >= disks.count * 128)
                #expect(!lab.log.has("served by threads"), "\(lab.log.suffix(2000))")
                for (disk, device) in disks {
                    try device.close()
                    try lab.remove(disk)
                }
                lab.stop()
            }
        }

        @Test func withoutRoomThreadsServe() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            var disks: [(LibxlDisk, FrontDevice)] = []
            try with(aioMaxNr: 64) {
                for index in 0..<4 {
                    let (disk, device) = try attach(lab, guest, index)
                    disks.append((disk, device))
                    #expect(try verifiedLoad(device).isGood)
                }
                // Also one that follows on a worker that was killed.
                kill(try lab.worker(disks[0].0), SIGKILL)
                #expect(try verifiedLoad(disks[0].1).isGood)
            }
            for (disk, _) in disks {
                let lines = lab.log.split(separator: "\n").filter {
                    $0.contains(" \(disk.guest)/\(disk.number): ") && $0.contains("64, is taken (sysctl fs.aio-max-nr)")
                        && $0.contains("served by threads")
                }
                #expect((1...2).contains(lines.count), "\(disk.number): \(lab.log)")
            }
            // There is room again, for whoever comes then.
            let taken = lab.log.components(separatedBy: "served by threads").count
            let (disk, device) = try attach(lab, guest, 4)
            #expect(try verifiedLoad(device).isGood)
            #expect(lab.log.components(separatedBy: "served by threads").count == taken, "\(lab.log)")
            for (disk, device) in disks + [(disk, device)] {
                try device.close()
                try lab.remove(disk)
            }
            lab.stop()
        }
    }
}
