// SPDX-License-Identifier: BSD-2-Clause
// Backends elsewhere than in the toolstack's domain, and frontends in it.
import Blkfront
import Foundation
import Testing
import Xen
import XenLoopback

extension EndToEnd {
    @Suite struct DomainPlacementTests {
        /// A disk in the domain of its own backend, as `xl block-attach 0` makes it, and libxl for a boot loader that
        /// reads an image before there is a guest (libxl__device_disk_local_initiate_attach).
        @Test(arguments: ["vbd", "qdisk"])
        func frontAndBackInDomain0(kind: String) throws {
            let lab = try LibxlLab(kinds: [kind])
            let image = try lab.image()
            let host = try LoopbackDomain(joining: 0, directory: lab.xen.directory)
            for number in [51712, 51728] as [UInt32] {
                let disk = LibxlDisk(kind: kind, guest: 0, number: number, params: "aio:\(image)")
                if kind == "vbd" {
                    #expect(try lab.add(disk).status == 0, "\(lab.log)")
                } else {
                    try lab.makeNodes(disk)
                    try eventually("it is open") { try lab.key("hotplug-status", of: disk) == "connected" }
                }
                let device = try lab.connect(disk, host)
                #expect(try verifiedLoad(device).isGood)
                try device.close()
                // The next finds the image free: each boot attaches it twice, to domain 0 and to the guest.
                try lab.remove(disk)
                #expect(device.leakedGrants.isEmpty)
            }
            let guest = try lab.guest()
            let disk = LibxlDisk(kind: kind, guest: guest.id, params: "aio:\(image)")
            try lab.makeNodes(disk)
            if kind == "vbd" {
                try lab.awaitState("2", of: disk)
                #expect(try lab.run("add", disk).status == 0)
            }
            let device = try lab.connect(disk, guest)
            #expect(try verifiedLoad(device).isGood)
            try device.close()
            lab.stop()
        }

        /// backend=NAME: xbbd in a driver domain, where `xl devd` runs the script and removes the path.
        @Test func aDriverDomainServes() throws {
            let lab = try LibxlLab(inDriverDomain: true)
            #expect(lab.domain != 0)
            let guest = try lab.guest()
            let image = try lab.image()
            let disk = LibxlDisk(guest: guest.id, params: "raw:\(image)", backend: lab.domain)
            #expect(disk.back.hasPrefix("/local/domain/\(lab.domain)/backend/vbd/"))
            // A disk of domain 0 is none of its business.
            let other = LibxlDisk(guest: guest.id, number: 51728, params: "raw:\(image)")
            try lab.makeNodes(other)
            for _ in 0..<2 {
                #expect(try lab.add(disk).status == 0, "\(lab.log)")
                let device = try lab.connect(disk, guest)
                #expect(try verifiedLoad(device).isGood)
                try device.close()
                try lab.remove(disk)
            }
            let bad = LibxlDisk(guest: guest.id, params: "raw:\(image).missing", backend: lab.domain)
            #expect(try lab.add(bad).status == 1)
            #expect(try lab.key("hotplug-error", of: bad)?.has("does not exist") == true)
            #expect(try lab.key("state", of: other) == "1")
            lab.stop()
        }

        /// The same for qdisk, where `xl devd` starts the device model (libxl__spawn_qdisk_backend), which says so below
        /// the driver domain's own home.
        @Test func aDriverDomainServesWithADeviceModel() throws {
            let lab = try LibxlLab(kinds: ["qdisk"], inDriverDomain: true)
            let guest = try lab.guest()
            let disk = LibxlDisk(
                kind: "qdisk", guest: guest.id, params: "aio:\(try lab.image())", backend: lab.domain)
            try lab.makeNodes(disk)
            let model = try lab.startDeviceModel(
                guest.id,
                replacing: [
                    "-xen-domid", String(guest.id), "-xen-attach", "-name", "domain-\(guest.id)", "-nographic", "-M",
                    "xenpv", "-monitor", "/dev/null", "-serial", "/dev/null", "-parallel", "/dev/null",
                ])
            try lab.awaitDeviceModel(guest.id, model)
            let device = try lab.connect(disk, guest)
            #expect(try verifiedLoad(device).isGood)
            try device.close()
            try lab.remove(disk)
            #expect(kill(model.process.processIdentifier, SIGHUP) == 0)
            #expect(model.status() == 0)
            lab.stop()
        }

        /// Disks in several directories, one xbbd.
        @Test func severalDirectoriesAtOnce() throws {
            let kinds = ["vbd", "vbd3", "qdisk"]
            let lab = try LibxlLab(kinds: kinds)
            let guest = try lab.guest()
            var devices: [(LibxlDisk, FrontDevice)] = []
            for (index, kind) in kinds.enumerated() {
                let disk = LibxlDisk(
                    kind: kind, guest: guest.id, number: UInt32(51712 + 16 * index),
                    params: "aio:\(try lab.image("\(kind).img"))")
                if kind == "qdisk" { try lab.makeNodes(disk) } else { #expect(try lab.add(disk).status == 0) }
                devices.append((disk, try lab.connect(disk, guest)))
            }
            for (_, device) in devices { #expect(try verifiedLoad(device).isGood) }
            for (disk, device) in devices {
                try device.close()
                try lab.remove(disk)
            }
            lab.stop()
        }
    }
}
