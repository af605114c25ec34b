// SPDX-License-Identifier: BSD-2-Clause
// Disks below backend/qdisk, as libxl makes them for format=qcow2 and for files without a script, with xbb-dm in the
// place of QEMU.
import Base
import Blkfront
import CLinux
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct DeviceModelTests {
        private func disk(_ guest: DomainID, _ number: UInt32, _ params: String, mode: String = "w") -> LibxlDisk {
            LibxlDisk(kind: "qdisk", guest: guest, number: number, params: params, mode: mode)
        }

        /// What libxl says on the socket of a device model (libxl_qmp.c), one message at a time.
        private func converse(_ path: String, _ messages: [String]) throws -> [[String: Any]] {
            let socket = clinux_unix_connect(path, Int32(SOCK_STREAM.rawValue))
            guard socket >= 0 else { throw OperationError(errno, "connect to \(path)") }
            defer { close(socket) }
            var limit = timeval(tv_sec: 20, tv_usec: 0)
            setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
            var answers: [[String: Any]] = []
            for message in [""] + messages {
                let bytes = Array("\(message)\r\n".utf8)
                if !message.isEmpty { #expect(write(socket, bytes, bytes.count) == bytes.count) }
                var answer: [UInt8] = []
                while answer.suffix(2) != [0x0d, 0x0a] {
                    var byte: UInt8 = 0
                    guard read(socket, &byte, 1) == 1 else { throw LabError("no answer to '\(message)'") }
                    answer.append(byte)
                }
                answers.append(try #require(try JSONSerialization.jsonObject(with: Data(answer)) as? [String: Any]))
            }
            return answers
        }

        /// A guest's life: nodes, device model, "running", libxl's question, the guest, the end.
        @Test func aGuestLives() throws {
            let lab = try LibxlLab(kinds: ["qdisk"])
            let guest = try lab.guest()
            let first = disk(guest.id, 51712, "aio:\(try lab.image("a.img"))")
            let second = disk(guest.id, 51728, "aio:\(try lab.image("b.img"))", mode: "r")
            try lab.makeNodes(first)
            try lab.makeNodes(second)
            let model = try lab.startDeviceModel(guest.id)
            try lab.awaitDeviceModel(guest.id, model)
            let answers = try converse(
                model.monitorPath,
                [
                    #"{"execute":"qmp_capabilities","id":0}"#, #"{"execute":"query-chardev","id":1}"#,
                    #"{"execute":"device_add","id":2,"arguments":{}}"#, "rubbish", #"{"id":{"a":1}}"#,
                ])
            let version = (answers[0]["QMP"] as? [String: Any])?["version"] as? [String: Any]
            #expect(version?["qemu"] is [String: Int])
            #expect(answers[1]["return"] is [String: Any] && answers[1]["id"] as? Int == 0)
            #expect((answers[2]["return"] as? [Any])?.isEmpty == true && answers[2]["id"] as? Int == 1)
            #expect((answers[3]["error"] as? [String: String])?["class"] == "CommandNotFound")
            #expect(answers[4]["error"] is [String: String] && answers[5]["error"] is [String: String])

            let device = try lab.connect(first, guest)
            #expect(try verifiedLoad(device).isGood)
            let readOnly = try lab.connect(second, guest)
            #expect(readOnly.info.info & 4 != 0)
            try readOnly.close()
            try device.close()
            // `xl block-detach`, and then the rest as when the guest is destroyed: the device model goes first.
            try lab.remove(second)
            #expect(kill(model.process.processIdentifier, SIGHUP) == 0)
            #expect(model.status() == 0)
            #expect(!FileManager.default.fileExists(atPath: model.monitorPath))
            try lab.remove(first)
            lab.stop()
        }

        /// The guest is destroyed while it works: libxl asks nobody, writes state 6 itself and removes everything
        /// (device_qemu_timeout).
        @Test func aGuestIsDestroyed() throws {
            let lab = try LibxlLab(kinds: ["qdisk"])
            let guest = try lab.guest()
            let first = disk(guest.id, 51712, "aio:\(try lab.image())")
            try lab.makeNodes(first)
            let model = try lab.startDeviceModel(guest.id)
            try lab.awaitDeviceModel(guest.id, model)
            let device = try lab.connect(first, guest)
            #expect(try verifiedLoad(device).isGood)
            try lab.store.write("\(first.back)/state", "6")
            for path in [first.back, first.front] { try lab.store.remove(path, in: .none) }
            try eventually("the ring to be given up") { device.leakedGrants.isEmpty }
            #expect(try lab.store.text("\(first.back)/state") == nil)
            try lab.control.destroyDomain(guest.id)
            // Nobody ended the device model: it sees that its guest is gone.
            #expect(model.status() == 0, "\(model.log)")
            // The image is free again.
            let other = try lab.guest()
            let again = disk(other.id, 51712, first.params)
            try lab.makeNodes(again)
            try eventually("it is open") { try lab.key("hotplug-status", of: again) == "connected" }
            lab.stop()
        }

        /// What is wrong with a disk keeps the guest from being made, and stands in the device model's log.
        @Test func whatIsWrongEndsTheDeviceModel() throws {
            let lab = try LibxlLab(kinds: ["qdisk"])
            let image = try lab.image()
            let user = disk(try lab.guest().id, 51712, "aio:\(image)")
            try lab.makeNodes(user)
            try eventually("it is open") { try lab.key("hotplug-status", of: user) == "connected" }
            let cases = [
                ("aio:\(image).missing", "No such file"),
                ("aio:\(image)", "is used by domain \(user.guest) as xvd51712, mode w"),
                ("aio:", "an empty drive is not served"),
                ("aio:\(try lab.image("empty", bytes: 0))", "empty"),
                ("qed:\(try lab.image("qed"))", "no plugin serves format 'qed'"),
                ("aio:disk.img", "disk.img"), ("tap:\(try lab.image("tap"))", "no plugin serves format 'tap'"),
            ]
            for (params, text) in cases {
                let guest = try lab.guest().id
                try lab.makeNodes(disk(guest, 51728, "aio:\(try lab.image("good-\(guest)"))"))
                try lab.makeNodes(disk(guest, 51712, params))
                let model = try lab.startDeviceModel(guest)
                #expect(model.status() == 1)
                #expect(model.log.has("disk xvd51712 of domain \(guest): ") && model.log.has(text), "\(model.log)")
                #expect(try lab.store.text("/local/domain/0/device-model/\(guest)/state") == nil)
            }
            lab.stop()
        }

        @Test func nobodyServesQdisk() throws {
            let lab = try LibxlLab(kinds: ["vbd"])
            let guest = try lab.guest().id
            try lab.makeNodes(disk(guest, 51712, "aio:\(try lab.image())"))
            let model = try lab.startDeviceModel(guest, extra: ["--wait", "1"])
            #expect(model.status() == 75)
            #expect(model.log.has("is xbbd running, with '--backend qdisk'?"), "\(model.log)")
            lab.stop()
        }

        /// What only QEMU can do is refused before the guest runs with less than it was promised.
        @Test func whatOnlyQEMUDoesIsRefused() throws {
            let lab = try LibxlLab(kinds: ["qdisk"])
            let guest = try lab.guest().id
            for (extra, text) in [
                (["-vnc", "127.0.0.1:0"], "a display"), (["-display", "sdl"], "a display"),
                (["-chardev", "pty,id=libxl-channel0"], "channel"),
                (["-chardev", "socket,id=libxl-cmd,fd=7,server=on,wait=off"], "dm_restrict"),
            ] {
                let model = try lab.startDeviceModel(guest, extra: extra)
                #expect(model.status() == 1 && model.log.has(text), "\(model.log)")
            }
            let machine = try lab.startDeviceModel(
                guest,
                replacing: ["-xen-domid", String(guest), "-name", "xenpv", "-machine", "xenfv,suppress-vmdesc=on"])
            #expect(machine.status() == 1 && machine.log.has("is an HVM guest"), "\(machine.log)")
            for kind in ["vfb", "vkbd", "9pfs", "qusb"] {
                try lab.store.write("/local/domain/0/backend/\(kind)/\(guest)/0/state", "1")
                let model = try lab.startDeviceModel(guest)
                #expect(model.status() == 1 && model.log.has("a device of kind \(kind)"), "\(model.log)")
                try lab.store.remove("/local/domain/0/backend/\(kind)", in: .none)
            }
            for words in [[], ["-xen-domid"], ["-xen-domid", "x"], ["-xen-attach"]] {
                #expect(try lab.startDeviceModel(guest, replacing: words).status() == 64)
            }
            lab.stop()
        }
    }
}
