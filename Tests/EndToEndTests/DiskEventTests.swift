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

        /// Sends a line to the worker of the only disk, and gives its answer.
        private func ask(_ lab: LibxlLab, _ guest: LoopbackID, _ line: String) throws -> String {
            let path = "\(lab.directory)/run/vbd-vbd-\(guest)-51712.sock"
            let socket = try Descriptor(clinux_unix_connect(path, Int32(SOCK_STREAM.rawValue)), "connect")
            _ = socket.sendAvailable(Array("\(line)\n".utf8)[...])
            guard case .bytes(let bytes) = socket.readAvailable() else { return "" }
            return String(decoding: bytes, as: UTF8.self)
        }

        private typealias LoopbackID = UInt16

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
            #expect(try ask(lab, guest.id, "pause").has("true"))
            try lab.administer("wait \(guest.id) xvda paused")
            #expect(
                try lab.administer("metrics").has("\nxbb_paused{domain=\"web\",vdev=\"xvda\",kind=\"vbd\"} 1"))
            #expect(try ask(lab, guest.id, "resume").has("false"))
            try lab.administer("wait \(guest.id) xvda running")
            #expect(try names(lab) == ["attached", "connected", "paused", "resumed"])
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
