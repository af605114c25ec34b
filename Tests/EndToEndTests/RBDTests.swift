// SPDX-License-Identifier: BSD-2-Clause
// Disks that are images of a real Ceph, in confined workers.
import Blkfront
import CLinux
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct RBDTests {
        @Test func aGuestReadsWhatItWrote() throws {
            let (ceph, lab) = (try CephLab(), try Lab())
            try ceph.run(
                "rbd create rbd/a --size 64 && rbd namespace create rbd/guests && rbd create rbd/guests/a --size 32")
            for (number, image, sectors) in [(UInt32(51712), "rbd/a", 131072), (51728, "rbd/guests/a", 65536)] {
                let disk = try lab.attach(number, ceph.disk(image))
                let device = try disk.connect()
                #expect(try disk.lab.toolstack.text("\(disk.back)/sectors") == String(sectors))
                let report = try disk.load(device) {
                    $0.flushEvery = 16
                    $0.discardEvery = 50
                }
                #expect(report.isGood, "\(report)")
                try device.close()
                #expect(Set(try disk.worker.status("Seccomp")) == ["2"], "a thread of librbd is not confined")
            }
            try lab.finish()
        }

        /// The client of each killed worker is blocklisted before its successor does anything again: 0 wrong sectors.
        @Test func randomKills() throws {
            var random = SplitMix64(seed: testSeed("RBDTests.randomKills"))
            let (ceph, lab) = (try CephLab(), try Lab())
            try ceph.run("rbd create rbd/a --size 16")
            let disk = try lab.attach(51712, ceph.disk("rbd/a"), arguments: ["--journal", "\(lab.directory)/journal"])
            var plan = HistoryPlan()
            plan.seed = random.next()
            plan.count = 6000
            let device = try disk.connect()
            var kills = 0
            // From when a worker serves; nil: sometimes its successor dies before it has come to anything.
            var next: UInt64?
            var isEarly = false
            var run = try runHistory(plan, on: device, of: disk) {
                if next == nil, isEarly || disk.worker.log.has("connected to domain") {
                    next =
                        clinux_monotonic_ns() + (isEarly ? random.next() % 1000 : 50 + random.next() % 400) * 1_000_000
                }
                guard let time = next, clinux_monotonic_ns() >= time, disk.worker.isRunning else { return }
                disk.worker.kill()
                kills += 1
                next = nil
                isEarly = random.onceIn(5)
                try disk.startWorker(["--predecessor", "killed:signal 9"])
            }
            #expect(run.errors == 0 && run.answered >= plan.count)
            #expect(kills > 2)
            #expect(try ceph.run("ceph osd blocklist ls 2>/dev/null").split(separator: "\n").count > 2)
            try device.close()
            try disk.detach()
            try run.checkImage(try ceph.content("rbd/a", bytes: plan.sectors * 512))
            print("rbd kills: \(kills), \(run.answered) requests")
            try lab.finish(mostLog: 1 << 20)
        }

        @Test func theImageOfALiveClientIsRefused() throws {
            let (ceph, lab) = (try CephLab(), try Lab())
            try ceph.run("rbd create rbd/a --size 64")
            // It must not have the descriptors by which Foundation learns of the end of a process.
            try ceph.run(
                "python3 -c 'import subprocess; print(subprocess.Popen([\"rbd\", \"bench\", \"--io-type\", \"write\", \"--io-size\", "
                    + "\"4K\", \"--io-total\", \"100G\", \"rbd/a\"], stdin=-3, stdout=-3, stderr=-3).pid)' >bench.id")
            defer { _ = try? ceph.run("kill $(cat bench.id)") }
            try eventually("the other client's lock") { try ceph.run("rbd lock ls rbd/a").has("client.") }
            let disk = try lab.attach(51712, ceph.disk("rbd/a"))
            try disk.awaitError("rbd/a is in use by another client")
            #expect(try !ceph.run("ceph osd blocklist ls 2>/dev/null").has("127."))
            try ceph.run("kill -0 $(cat bench.id)")
            // Nor two disks of this host.
            try ceph.run("rbd create rbd/b --size 16")
            let (first, second) = (try lab.attach(51728, ceph.disk("rbd/b")), try lab.attach(51744, ceph.disk("rbd/b")))
            try first.awaitState(2)
            try second.awaitError("rbd/b is served by another process of this host")
        }

        @Test func snapshotsAreReadOnly() throws {
            let (ceph, lab) = (try CephLab(), try Lab())
            try ceph.run(
                "printf hello >text; truncate -s 1M text; rbd import --no-progress text rbd/a; rbd snap create --no-progress rbd/a@s"
            )
            try ceph.run(
                "printf world | dd of=text conv=notrunc status=none; rbd rm --no-progress rbd/a 2>/dev/null || true")
            let disk = try lab.attach(51712, ceph.disk("rbd/a@s", mode: "r"))
            let device = try disk.connect()
            #expect(try firstText(device) == "hello")
            try device.close()
            try lab.attach(51728, ceph.disk("rbd/a@s")).awaitError("a snapshot does not change")
        }

        @Test func anotherSizeIsSeen() throws {
            let (ceph, lab) = (try CephLab(), try Lab())
            try ceph.run("rbd create rbd/a --size 16")
            let disk = try lab.attach(51712, ceph.disk("rbd/a"))
            let device = try disk.connect()
            try ceph.run("rbd resize --no-progress --size 32 rbd/a")
            try eventually("the new size") { try disk.lab.toolstack.text("\(disk.back)/sectors") == "65536" }
            // A snapshot is taken while the guest writes.
            try ceph.run("rbd snap create --no-progress rbd/a@s")
            #expect(try disk.load(device).isGood)
            try device.close()
            try lab.finish()
        }

        @Test func reasonsAreTold() throws {
            let (ceph, lab) = (try CephLab(auth: "cephx"), try Lab())
            try ceph.run(
                "rbd create rbd/a --size 16; ceph-authtool -C wrong --gen-key -n client.admin >/dev/null; : >none")
            for (index, (image, options, text)) in [
                ("rbd", "", "expected POOL[/NAMESPACE]/IMAGE"), ("rbd/nosuch", "", "there is no image rbd/nosuch"),
                ("nosuch/a", "", "no pool 'nosuch'"),
                ("rbd/a", "keyring=\(ceph.directory)/none", "has no key of client.admin"),
                ("rbd/a", "keyring=\(ceph.directory)/wrong,timeout=3", "no monitor let client.admin in"),
                ("rbd/a", "id=nobody", "has no key of client.nobody"),
                ("rbd/a", "mon-host=127.0.0.1:9,timeout=2", "no monitor let client.admin in"),
            ].enumerated() {
                try lab.attach(UInt32(51712 + 16 * index), ceph.disk(image, options)).awaitError(text)
            }
            let disk = try lab.attach(52000, ceph.disk("rbd/a"))
            let device = try disk.connect()
            #expect(try disk.load(device).isGood)
            try device.close()
        }
    }
}
