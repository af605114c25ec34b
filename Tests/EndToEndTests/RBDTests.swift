// SPDX-License-Identifier: BSD-2-Clause
// Disks that are images of a real Ceph, in confined workers.
import Blkfront
import CLinux
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite(.enabled(if: CephLab.isInstalled, "no Ceph here (ceph-mon, ceph-osd, ceph-common): scripts/setup.sh"))
    struct RBDTests {
        @Test func aGuestReadsWhatItWrote() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run(
                "rbd create rbd/io --size 64; rbd namespace create rbd/guests; rbd create rbd/guests/io --size 32")
            for (number, image, sectors) in [(UInt32(51712), "rbd/io", 131072), (51728, "rbd/guests/io", 65536)] {
                let disk = try lab.attach(number, ceph.disk(image))
                let device = try disk.connect()
                #expect(try disk.key("sectors") == String(sectors))
                let report = try disk.load(device) {
                    $0.flushEvery = 16
                    $0.discardEvery = 50
                }
                #expect(report.isGood, "\(report)")
                #expect(try disk.worker.ask("set detect_zeroes unmap")["error"] == nil)
                try device.queues[0].withQueue { (queue) throws in
                    #expect(try queue.status(.write, sector: 8, byteCount: 8192, fill: 3) == 0)
                    #expect(try queue.status(.write, sector: 8, byteCount: 4096, fill: 0) == 0)
                    let read = try queue.read(sector: 8, byteCount: 8192).bytes
                    #expect(read[..<4096].allSatisfy { $0 == 0 } && read[4096...].allSatisfy { $0 == 3 })
                }
                #expect(try disk.worker.total("zero_writes") == 1)
                try device.close()
                #expect(Set(try disk.worker.status("Seccomp")) == ["2"], "a thread of librbd is not confined")
                #expect(!disk.log.has("ERROR"), "\(disk.log)")
            }
            try lab.finish()
        }

        @Test func aCloneIsReadThroughAndWrittenApart() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run(
                """
                printf golden >text; truncate -s 16M text; rbd import --no-progress text rbd/golden
                rbd snap create --no-progress rbd/golden@s; rbd snap protect rbd/golden@s; rbd clone rbd/golden@s rbd/clone
                """)
            let disk = try lab.attach(51712, ceph.disk("rbd/clone"))
            let device = try disk.connect()
            #expect(try firstText(device) == "golden")
            #expect(try disk.load(device) { $0.count = 200 }.isGood)
            try device.close()
            try lab.finish()
            #expect(try ceph.content("rbd/golden", bytes: 6) == Array("golden".utf8))
        }

        /// Its client is dead, and it had no cache: what was answered is with the OSDs.
        @Test func whatWasAnsweredIsInTheCluster() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run("rbd create rbd/answered --size 16")
            let disk = try lab.attach(51712, ceph.disk("rbd/answered"))
            let device = try disk.connect()
            try device.queues[0].withQueue { (queue) throws in
                let id = try queue.slot()
                queue.buffer(of: id)[0..<4096].initializeMemory(as: UInt8.self, repeating: 0x5a)
                try queue.submit(id, .write, sector: 0, byteCount: 4096)
                try queue.publish()
                #expect(try queue.next().status == 0)
            }
            disk.worker.kill()
            #expect(try ceph.content("rbd/answered", bytes: 4096).allSatisfy { $0 == 0x5a })
            device.dismantle()
        }

        /// The client of each killed worker is blocklisted before its successor does anything again: 0 wrong sectors.
        @Test func randomKills() throws {
            var random = SplitMix64(seed: testSeed("RBDTests.randomKills"))
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run("rbd create rbd/kills --size 16")
            let before = try ceph.blocklist()
            let disk = try lab.attach(
                51712, ceph.disk("rbd/kills"), arguments: ["--journal", "\(lab.directory)/journal"])
            var plan = HistoryPlan()
            plan.seed = random.next()
            plan.count = 4000
            let device = try disk.connect()
            var kills = 0
            // From when a worker serves; nil: sometimes its successor dies before it has come to anything.
            var next: UInt64?
            var isEarly = false
            var run = try runHistory(plan, on: device, of: disk) {
                if next == nil, isEarly || disk.worker.log.has("connected to domain") {
                    next =
                        clinux_monotonic_ns() + (isEarly ? random.next() % 500 : 50 + random.next() % 300) * 1_000_000
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
            #expect(try !ceph.blocklist().subtracting(before).isEmpty)
            try device.close()
            try disk.detach()
            try run.checkImage(try ceph.content("rbd/kills", bytes: plan.sectors * 512))
            print("rbd kills: \(kills), \(run.answered) requests")
            try lab.finish(mostLog: 1 << 20)
        }

        /// An upgrade: the worker closes the image, and its client need not be fenced.
        @Test func aHandOverBlocksNobody() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run("rbd create rbd/handed --size 16")
            let disk = try lab.attach(51712, ceph.disk("rbd/handed"))
            let device = try disk.connect()
            let owner = try ceph.lockOwner(of: "rbd/handed")
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            disk.worker.signal(SIGTERM)
            #expect(try disk.worker.awaitExit() == .exited(0))
            try disk.startWorker(["--predecessor", "handed-over"])
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            #expect(try ceph.lockOwner(of: "rbd/handed") != owner)
            #expect(try !ceph.blocklist().contains(owner))
            try device.close()
            try lab.finish()
        }

        @Test func theImageOfALiveClientIsRefused() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run("rbd create rbd/used --size 64; rbd create rbd/twice --size 16")
            // It must not have the descriptors by which Foundation learns of the end of a process.
            try ceph.run(
                "python3 -c 'import subprocess; print(subprocess.Popen([\"rbd\", \"bench\", \"--io-type\", \"write\", \"--io-size\", "
                    + "\"4K\", \"--io-threads\", \"1\", \"--io-total\", \"100G\", \"rbd/used\"], stdin=-3, stdout=-3, stderr=-3).pid)' "
                    + ">bench.id")
            defer { _ = try? ceph.run("kill $(cat bench.id)") }
            try eventually("the other client's lock") { try ceph.run("rbd lock ls rbd/used").has("client.") }
            let owner = try ceph.lockOwner(of: "rbd/used")
            let disk = try lab.attach(51712, ceph.disk("rbd/used"))
            try disk.awaitError("rbd/used is in use by another client, \(owner)")
            #expect(try !ceph.blocklist().contains(owner))
            try ceph.run("kill -0 $(cat bench.id)")
            // Nor two disks of this host.
            let first = try lab.attach(51728, ceph.disk("rbd/twice"))
            // Its state says that much before the image is open.
            try eventually("the first disk's image: \(first.worker.log)") { first.worker.log.has("opened rbd/twice") }
            let second = try lab.attach(51744, ceph.disk("rbd/twice"))
            try second.awaitError("rbd/twice is served by another process of this host")
            try first.detach()
        }

        @Test func snapshotsAreReadOnly() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run(
                """
                printf hello >old; printf world >new; truncate -s 1M old new; rbd import --no-progress old rbd/snapped
                rbd snap create --no-progress rbd/snapped@s; rbd bench --io-type write --io-total 64K rbd/snapped >/dev/null
                """)
            // Two disks, as of templates.
            for (number, cache) in [(UInt32(51712), "none"), (51728, "writethrough")] {
                let disk = try lab.attach(number, ceph.disk("rbd/snapped@s", mode: "r", "cache=\(cache)"))
                let device = try disk.connect()
                #expect(try firstText(device) == "hello")
                try device.close()
            }
            try lab.attach(51744, ceph.disk("rbd/snapped@s")).awaitError("a snapshot does not change")
            try lab.attach(51760, ceph.disk("rbd/snapped@t", mode: "r")).awaitError("there is no image rbd/snapped@t")
        }

        @Test func anotherSizeIsSeen() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run("rbd create rbd/sized --size 16")
            let disk = try lab.attach(51712, ceph.disk("rbd/sized"))
            let device = try disk.connect()
            try ceph.run("rbd resize --no-progress --size 32 rbd/sized")
            try eventually("the new size") { try disk.key("sectors") == "65536" }
            // A snapshot is taken while the guest writes.
            try ceph.run("rbd snap create --no-progress rbd/sized@s")
            #expect(try disk.load(device).isGood)
            // What is cut off fails, and nothing else.
            try ceph.run("rbd resize --no-progress --allow-shrink --size 8 rbd/sized")
            try eventually("the smaller size") { try disk.key("sectors") == "16384" }
            try device.queues[0].withQueue { (queue) throws in
                for (sector, isThere) in [(UInt64(16384), false), (0, true)] {
                    let id = try queue.slot()
                    try queue.submit(id, .write, sector: sector, byteCount: 4096)
                    try queue.publish()
                    #expect((try queue.next().status == 0) == isThere)
                    queue.release(id)
                }
            }
            // Nobody removes it meanwhile.
            #expect(throws: (any Error).self) {
                try ceph.run("rbd snap rm rbd/sized@s; rbd rm --no-progress rbd/sized 2>/dev/null")
            }
            try device.close()
            try lab.finish()
        }

        @Test func reasonsAreTold() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run(
                """
                rbd create rbd/told --size 16; ceph-authtool -C wrong --gen-key -n client.admin >/dev/null; : >none
                ceph auth get-or-create client.reader mon 'profile rbd' osd 'profile rbd-read-only pool=other' -o reader 2>/dev/null
                sed 's/^mon host = .*/mon host = no-such-monitor.invalid/' ceph.conf >named.conf
                rbd create rbd/cached --size 16; rbd config image set rbd/cached rbd_cache true
                rbd config image set rbd/cached rbd_cache_policy writeback
                """)
            for (index, (image, options, text)) in [
                ("rbd", "", "expected POOL[/NAMESPACE]/IMAGE"), ("rbd/nosuch", "", "there is no image rbd/nosuch"),
                ("nosuch/a", "", "no pool 'nosuch'"),
                ("rbd/told", "conf=\(ceph.directory)/nosuch", "cannot read \(ceph.directory)/nosuch"),
                ("rbd/told", "conf=\(ceph.directory)/named.conf", "monitor 'no-such-monitor.invalid'"),
                ("rbd/told", "keyring=\(ceph.directory)/none", "has no key of client.admin"),
                ("rbd/told", "keyring=\(ceph.directory)/wrong,timeout=1", "no monitor let client.admin in"),
                ("rbd/told", "id=nobody", "has no key of client.nobody"),
                ("rbd/told", "id=reader,keyring=\(ceph.directory)/reader", "client.reader may not open rbd/told"),
                ("rbd/told", "mon-host=127.0.0.1:9,timeout=1", "no monitor let client.admin in"),
                ("rbd/cached", "", "sets rbd_cache_policy 'writeback', which would lose completed writes"),
            ].enumerated() {
                try lab.attach(UInt32(51712 + 16 * index), ceph.disk(image, options)).awaitError(text)
            }
            // With the key itself, or a keyring of the client's alone, it is served.
            let key = try ceph.run("ceph auth get-key client.admin").trimmingCharacters(in: .whitespacesAndNewlines)
            let disk = try lab.attach(52000, ceph.disk("rbd/told", "keyring=\(ceph.directory)/none,key=\(key)"))
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
        }

        @Test func anOSDThatHangsIsWaitedFor() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run("rbd create rbd/hung --size 16")
            let disk = try lab.attach(51712, ceph.disk("rbd/hung"), arguments: ["--stall-time", "1"])
            let device = try disk.connect()
            try ceph.without("osd.0") {
                try device.queues[0].withQueue { (queue) throws in
                    try queue.submit(try queue.slot(), .write, sector: 0, byteCount: 4096)
                    try queue.publish()
                }
                try eventually("it is told") {
                    try disk.key("xbb-stall")?.has("plugin 'rbd' does not answer a write") == true
                }
            }
            try device.queues[0].withQueue { (queue) throws in #expect(try queue.next().status == 0) }
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try device.close()
            try lab.finish()
        }

        /// A guest whose worker dies while no monitor answers waits, and goes on when one does.
        @Test(arguments: ["w", "r"]) func aSuccessorWaitsForAMonitor(mode: String) throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run("rbd create rbd/quorum-\(mode) --size 16")
            let disk = try lab.attach(
                51712, ceph.disk("rbd/quorum-\(mode)", mode: mode, "timeout=1"),
                arguments: ["--journal", "\(lab.directory)/journal"])
            let device = try disk.connect()
            try ceph.without("mon.a") {
                disk.worker.kill()
                try device.queues[0].withQueue { (queue) throws in
                    try queue.submit(try queue.slot(), mode == "w" ? .write : .read, sector: 0, byteCount: 4096)
                    try queue.publish()
                }
                try disk.startWorker(["--predecessor", "killed:signal 9"])
                try eventually("it is told: \(disk.log)") { disk.log.has("the guest waits until that is over") }
                // One more try fails.
                sleep(2)
                #expect(try disk.key("state") == "4")
            }
            try device.queues[0].withQueue { (queue) throws in #expect(try queue.next().status == 0) }
            try device.close()
            try lab.finish()
        }

        /// Another image has the name when the successor comes.
        @Test(arguments: ["w", "r"]) func anotherImageInItsPlaceIsNotServed(mode: String) throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            let name = "rbd/exchanged-\(mode)"
            try ceph.run("rbd create \(name) --size 16")
            let disk = try lab.attach(51712, ceph.disk(name, mode: mode))
            let device = try disk.connect()
            disk.worker.kill()
            try ceph.run("rbd mv \(name) \(name)-away; rbd create \(name) --size 16")
            try disk.startWorker(["--predecessor", "killed:signal 9"])
            try disk.awaitError("\(name) is another image now")
            try disk.awaitState(5)
            try device.close()
            try lab.finish()
        }

        /// A client that is blocked while it serves fails the guest's requests, and says why.
        @Test func aClientThatIsBlockedSaysSo() throws {
            let (ceph, lab) = (try CephLab.shared(), try Lab())
            try ceph.run("rbd create rbd/blocked --size 16")
            let disk = try lab.attach(51712, ceph.disk("rbd/blocked"))
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 50 }.isGood)
            try ceph.run("ceph osd blocklist add '\(try ceph.lockOwner(of: "rbd/blocked"))' 2>/dev/null")
            try eventually("the disk is not written") {
                try device.queues[0].withQueue { (queue) throws in
                    let id = try queue.slot()
                    defer { queue.release(id) }
                    try queue.submit(id, .write, sector: 0, byteCount: 4096)
                    try queue.publish()
                    return try queue.next().status != 0
                }
            }
            try eventually("it is told: \(disk.log)") {
                disk.log.has("the cluster has blocklisted this client of rbd/blocked")
            }
            // A client that learns nothing more takes the disk for no smaller one.
            #expect(try disk.key("sectors") == "32768")
            try device.close()
            try disk.requestDetach()
            _ = try disk.worker.awaitExit()
            // It can be attached again.
            let again = try lab.attach(51728, ceph.disk("rbd/blocked"))
            let other = try again.connect()
            #expect(try again.load(other) { $0.count = 50 }.isGood)
            try other.close()
        }
    }
}
