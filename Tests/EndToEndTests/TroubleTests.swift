// SPDX-License-Identifier: BSD-2-Clause
// What an administrator is told of a disk that seems to be well: its image is gone, or it has no journal.
import Blkfront
import Foundation
import Testing

extension EndToEnd {
    @Suite struct TroubleTests {
        private func json(_ lab: LibxlLab, _ words: String) throws -> [String: Any] {
            let text = try lab.administer("\(words) --json")
            return try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any], "\(text)")
        }

        private func row(_ lab: LibxlLab) throws -> [String: Any] {
            try #require(try (json(lab, "list")["vbds"] as? [[String: Any]])?.first)
        }

        private func trouble(_ lab: LibxlLab) throws -> String { try row(lab)["trouble"] as? String ?? "" }

        @Test(arguments: ["vbd", "qdisk"]) func anImageThatIsGoneIsToldBeforeAGuestComes(_ kind: String) throws {
            let lab = try LibxlLab(kinds: ["vbd", "qdisk"])
            let guest = try lab.guest()
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image) --kind \(kind)")
            if kind == "qdisk" {
                // Its storage is closed while no guest is there.
                let disk = LibxlDisk(kind: kind, guest: guest.id, params: "raw:\(image)")
                try lab.connect(disk, guest).close()
                try eventually("it is closed") { try row(lab)["state"] as? String == "closed" }
            }
            #expect(try trouble(lab) == "")
            try FileManager.default.moveItem(atPath: image, toPath: image + ".away")
            let missing = try trouble(lab)
            #expect(missing.has("image missing: \(image)"), "\(missing)")
            #expect(try lab.administer("list").has("image missing: \(image)"))
            if kind == "vbd" {
                #expect((try json(lab, "show \(guest.id) xvda")["trouble"] as? String ?? "").has("image missing"))
                // A file of the same name is another image.
                _ = try lab.image()
                #expect(try trouble(lab).has("another file is at \(image) now"))
                try FileManager.default.removeItem(atPath: image)
            }
            try FileManager.default.moveItem(atPath: image + ".away", toPath: image)
            #expect(try trouble(lab) == "")
            lab.stop()
        }

        @Test func aDeviceIsNamedInOneForm() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            try lab.administer("attach \(guest.id) xvdb raw:\(try lab.image())")
            for answer in [try row(lab), try json(lab, "show \(guest.id) 51728")] {
                #expect(answer["device"] as? String == "xvdb" && answer["devid"] as? Int == 51728, "\(answer)")
            }
            lab.stop()
        }

        /// Leaves no room in the run directory, and makes some again.
        private func fill(_ lab: LibxlLab) throws {
            try LibxlLab.shell(
                "dd if=/dev/zero of='\(lab.directory)/run/rest' bs=4k status=none 2>/dev/null || true")
        }

        @Test(.enabled(if: geteuid() == 0, "mounting takes root"))
        func aDiskWithoutAJournalIsToldAndGetsOne() throws {
            let lab = try LibxlLab(runSpace: 16 << 20)
            let guest = try lab.guest()
            let image = try lab.image()
            try fill(lab)
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: "raw:\(image)"), guest)
            let text = "no journal (reserve "
            try eventually("a line of list: \(try trouble(lab))") { try trouble(lab).has(text) }
            #expect(try trouble(lab).has("No space left on device"))
            #expect(try trouble(lab).has("'xbbctl upgrade \(guest.id) 51712' gives it one"))
            #expect(try lab.administer("list").has(text))
            let show = try json(lab, "show \(guest.id) xvda")
            #expect((show["trouble"] as? String)?.has(text) == true && show["journal"] as? String == "memory")
            // Its own lines are there although there is no file for them.
            let log = try lab.administer("log \(guest.id) xvda")
            #expect(log.has("opened \(image) as raw") && log.has("connected to domain"), "\(log)")
            // Another xbbd finds the worker although no file names it.
            let worker = try lab.worker()
            lab.killDaemon()
            try lab.start()
            try eventually("it is adopted") { try row(lab)["worker"] as? String == "adopted" }
            #expect(try lab.worker() == worker)
            // With room again, one command is enough.
            unlink("\(lab.directory)/run/rest")
            try lab.administer("upgrade \(guest.id) xvda")
            try eventually("it is over: \(try trouble(lab))") { try trouble(lab) == "" }
            #expect(try json(lab, "show \(guest.id) xvda")["journal"] as? String == "file")
            #expect(try verifiedLoad(device).isGood)
            kill(try #require(try lab.worker()), SIGKILL)
            #expect(try verifiedLoad(device).isGood)
            try device.close()
            lab.stop()
        }

        @Test(.enabled(if: geteuid() == 0, "mounting takes root"))
        func aNewConnectionTriesToHaveAJournal() throws {
            let lab = try LibxlLab(runSpace: 16 << 20)
            let guest = try lab.guest()
            let image = try lab.image()
            let disk = LibxlDisk(guest: guest.id, params: "raw:\(image)")
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            try fill(lab)
            var device = try lab.connect(disk, guest)
            try eventually("a line of list") { try trouble(lab).has("no journal") }
            try device.close()
            try eventually("it is over with the connection: \(try trouble(lab))") { try trouble(lab) == "" }
            unlink("\(lab.directory)/run/rest")
            device = try lab.connect(disk, guest)
            #expect(try json(lab, "show \(guest.id) xvda")["journal"] as? String == "file")
            #expect(try trouble(lab) == "")
            try device.close()
            lab.stop()
        }

        /// Without a journal a kill in the middle ends the connection, and with it what was said of its journal.
        @Test(.enabled(if: geteuid() == 0, "mounting takes root"))
        func whatWasLostHasNoJournalToMiss() throws {
            let lab = try LibxlLab(runSpace: 16 << 20)
            let guest = try lab.guest()
            try fill(lab)
            try lab.administer("attach \(guest.id) xvda delay,size=16M,delay-us=600000000:")
            let device = try lab.connect(LibxlDisk(guest: guest.id, params: ""), guest)
            try device.queues[0].withQueue { (queue) throws in
                try queue.submit(try queue.slot(), .read, sector: 8, byteCount: 4096)
                try queue.publish()
            }
            try eventually("it is taken: \(try trouble(lab))") {
                try trouble(lab).has("no journal") && json(lab, "show \(guest.id) xvda")["in_flight"] as? Int == 1
            }
            kill(try #require(try lab.worker()), SIGKILL)
            try eventually("the reason: \(try trouble(lab))") {
                let text = try trouble(lab)
                return text.has("requests in flight are lost") && !text.has("no journal")
            }
            device.dismantle()
            lab.stop()
        }

        @Test func filesThatAKilledXbbdLeftAreRemoved() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            func files() throws -> [String] {
                try FileManager.default.contentsOfDirectory(atPath: "\(lab.directory)/run")
                    .filter { $0.hasPrefix("vbd-") }.sorted()
            }
            let worker = try #require(try lab.worker())
            #expect(try files().count > 2)
            lab.killDaemon()
            // The worker ends with its node, and nobody is there to remove what it left.
            try lab.store.remove("/local/domain/0/backend/vbd/\(guest.id)/51712", in: .none)
            try eventually("the worker's end") { kill(worker, 0) != 0 }
            #expect(try !files().isEmpty)
            try lab.start()
            try eventually("they are removed: \(try files())") { try files().isEmpty }
            // What the worker said is remembered.
            #expect(try lab.administer("log \(guest.id) xvda").has("opened \(image) as raw"))
            lab.stop()
        }

        /// A disk whose node says where the storage is has all that was said when it is opened, and is not in its own way.
        @Test func aDiskWithoutAScriptIsAttachedWithItsOptions() throws {
            let lab = try LibxlLab(kinds: ["qdisk"])
            let guest = try lab.guest()
            let image = try lab.image()
            for _ in 0..<8 {
                try lab.administer("attach \(guest.id) xvda null,size=64M: --kind qdisk")
                #expect(try json(lab, "show \(guest.id) xvda")["sectors"] as? Int == 131_072)
                try lab.administer("attach \(guest.id) xvdb raw:\(image) --kind qdisk")
                for name in ["xvda", "xvdb"] { try lab.administer("detach \(guest.id) \(name)") }
            }
            lab.stop()
        }

        @Test func whatIsAttachedIsSaidBeforeWhoHasIt() throws {
            let lab = try LibxlLab()
            let guest = try lab.guest()
            let image = try lab.image()
            try lab.administer("attach \(guest.id) xvda raw:\(image)")
            for options in ["", "--option a=b", "--no-wait", "--readonly", "--force"] {
                let (status, text) = try lab.xbbctl("attach \(guest.id) xvda raw:\(image) \(options)")
                #expect(
                    status == 1 && text.has("xvda of domain \(guest.id) is attached already"), "\(options): \(text)")
            }
            lab.stop()
        }
    }
}
