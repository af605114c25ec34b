// SPDX-License-Identifier: BSD-2-Clause
// Events of real workers.
import Base
import Blkfront
import CLinux
import Foundation
import Testing

extension EndToEnd {
    @Suite struct DiskEventTests {
        private func events(_ lab: LibxlLab) throws -> [[String: Any]] {
            let text = try lab.administer("events --json")
            let json = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
            return try #require(json?["events"] as? [[String: Any]], "\(text)")
        }

        private func names(_ lab: LibxlLab) throws -> [String] { try events(lab).compactMap { $0["event"] as? String } }

        @Test func anErrorOfTheStorageIsToldWithItsErrno() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            try lab.administer("attach \(guest.id) xvda error,op=write,error=enospc,count=3:")
            try lab.administer("wait \(guest.id) xvda attached")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "error:"), guest)
            try lab.administer("wait \(guest.id) xvda connected")
            _ = try? verifiedLoad(device, count: 50)
            try eventually("an error is told: \(try names(lab))") { try names(lab).contains("error") }
            let error = try #require(try events(lab).first { $0["event"] as? String == "error" })
            #expect(error["errno"] as? String == "ENOSPC" && error["operation"] as? String == "write", "\(error)")
            #expect(error["sector"] is NSNumber && error["device"] as? String == "xvda", "\(error)")
            let metrics = try lab.administer("metrics")
            #expect(
                metrics.has("operation=\"write\",errno=\"ENOSPC\"}") && metrics.has("xbb_last_error_timestamp_seconds{")
            )
            try device.close()
            try lab.administer("wait \(guest.id) xvda disconnected")
            try lab.administer("detach \(guest.id) xvda")
            try lab.administer("wait \(guest.id) xvda detached")
            let all = try names(lab)
            #expect(all.first == "attached" && all.last == "detached" && all.contains("disconnected"), "\(all)")
            lab.stop()
        }

        @Test func pausesAreTold() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            try lab.store.write("/local/domain/\(guest.id)/name", "web")
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "raw:\(image)"), guest)
            try lab.administer("pause \(guest.id) xvda --timeout 600")
            try lab.administer("wait \(guest.id) xvda paused")
            #expect(
                try lab.administer("metrics").has("\nxbb_paused{domain=\"web\",vdev=\"xvda\",kind=\"vbd\"} 1"))
            try lab.administer("resume \(guest.id) xvda")
            try lab.administer("wait \(guest.id) xvda running")
            try lab.administer("resize \(guest.id) xvda +1M")
            try lab.administer("pause \(guest.id) xvda --timeout 0.5")
            try eventually("a pause ends by itself: \(try names(lab))") { try names(lab).last == "resumed" }
            let told = try names(lab)
            #expect(told == ["attached", "connected", "paused", "resumed", "resized", "paused", "resumed"], "\(told)")
            try device.close()
            lab.stop()
        }

        /// Once, however many requests wait.
        @Test func aLimitIsTold() throws {
            let lab = try LibxlLab(options: ["--stall-time", "1"])
            let guest = try lab.guest()
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "raw:\(image)"), guest)
            try lab.administer("wait \(guest.id) xvda connected")
            try lab.administer("set \(guest.id) xvda total-iops-sec=20")
            #expect(try verifiedLoad(device, count: 80).isGood)
            try eventually("the limit is told: \(try names(lab))") { try names(lab).last == "limit-reached" }
            #expect(try names(lab) == ["attached", "connected", "limit-reached"])
            try device.close()
            lab.stop()
        }

        /// The first cluster of the image is said to be where none can begin.
        @Test func aDamagedImageIsTold() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let image = "\(lab.directory)/a.qcow2"
            try Lab.describePlugins(in: lab.plugins)
            try LibxlLab.shell("qemu-img create -q -f qcow2 '\(image)' 16M && qemu-io -c 'write 0 64k' '\(image)'")
            let content = [UInt8](try Data(contentsOf: URL(fileURLWithPath: image)))
            func number(_ place: Int) -> Int {
                // Without the flags in the first byte.
                content[place + 1..<place + 8].reduce(0) { $0 << 8 | Int($1) }
            }
            let table = number(number(40)) & 0x00ff_ffff_ffff_fe00
            let file = try FileHandle(forUpdating: URL(fileURLWithPath: image))
            try file.seek(toOffset: UInt64(table))
            try file.write(contentsOf: Data([0x80, 0, 0, 0, 0, 0x01, 0x02, 0]))
            try file.close()
            try lab.administer("attach \(guest.id) xvda qcow2:\(image)")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "qcow2:\(image)"), guest)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.read(sector: 0, byteCount: 512).0 != 0)
            }
            try eventually("the damage is told: \(try names(lab)) \(lab.log)") {
                try names(lab).contains("image-damaged")
            }
            try device.close()
            lab.stop()
        }

        @Test func anotherWorkerIsToldAndTheStateIsNotToldAgain() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "raw:\(image)"), guest)
            try lab.administer("wait \(guest.id) xvda connected")
            try lab.administer("upgrade")
            kill(try #require(try lab.worker()), SIGKILL)
            try eventually("the second one: \(try names(lab))") { try names(lab).count >= 4 }
            #expect(try verifiedLoad(device, count: 50).isGood)
            #expect(try names(lab) == ["attached", "connected", "worker-replaced", "worker-replaced"])
            let reasons = try events(lab).compactMap { $0["reason"] as? String }
            #expect(reasons.count == 2 && reasons[0] == "exit status 0" && reasons[1].has("signal 9"), "\(reasons)")
            try device.close()
            lab.stop()
        }
    }
}
