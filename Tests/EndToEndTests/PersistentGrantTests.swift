// SPDX-License-Identifier: BSD-2-Clause
// Persistent grants of a guest, through all of a worker. Every lab checks at its end that nothing is left mapped.
import Blkfront
import Blkif
import CLinux
import Foundation
import TestSupport
import Testing

extension EndToEnd {
    @Suite struct PersistentGrantTests {
        private func plan(_ count: UInt64 = 400) -> LoadPlan {
            var plan = LoadPlan()
            plan.pattern = .randrw
            plan.maxBlockSize = 256 << 10
            plan.depth = 8
            plan.size = 8 << 20
            plan.count = count
            plan.verify = true
            plan.flushEvery = 20
            plan.barrierEvery = 10
            return plan
        }

        private func attach(_ lab: Lab, _ mode: String, _ more: [String] = [], _ storage: Storage = Storage()) throws
            -> Disk
        {
            try lab.attach(
                51712, storage,
                arguments: ["--journal", "\(lab.directory)/journal", "--persistent-grants", mode] + more)
        }

        @Test(arguments: ["on", "auto"], [RingABI.native, .x86_32])
        func pagesStayMappedUntilTheFrontendCloses(mode: String, abi: RingABI) throws {
            let lab = try Lab(pages: 32768)
            let disk = try attach(lab, mode)
            for _ in 0..<2 {
                let device = try disk.connect {
                    $0.offersPersistentGrants = true
                    $0.abi = abi
                }
                #expect(device.info.persistent && device.info.maxIndirectSegments == 256)
                let report = try LoadRun(device, plan()).run()
                #expect(report.isGood, "\(report.text)")
                let domain = try #require(try lab.control.domains().first { $0.id == lab.guest.id })
                #expect(domain.mappedGrants > 100, "\(domain)")
                try device.close()
                #expect(device.leakedGrants.isEmpty)
            }
            #expect(try disk.worker.total("mapped_copies") > 1000)
            #expect(try disk.worker.total("grants_mapped") == disk.worker.total("grants_unmapped"))
            #expect(try disk.worker.total("grant_map_errors") == 0)
            try lab.finish()
        }

        /// What a frontend gets that offers them when nobody says anything: pages are mapped once they have come back.
        @Test func pagesThatComeBackStayMappedByDefault() throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.attach(51712, Storage(), arguments: ["--journal", "\(lab.directory)/journal"])
            let device = try disk.connect { $0.offersPersistentGrants = true }
            #expect(device.info.persistent)
            let once = try disk.worker.total("grants_mapped")
            #expect(try LoadRun(device, plan()).run().isGood)
            #expect(try once == 0 && disk.worker.total("mapped_copies") > 0)
            try device.close()
            try lab.finish()
        }

        /// Both ends must want it: blkfront ends its grants otherwise, and must find none of them in use.
        @Test(arguments: [("off", true), ("on", false), ("auto", false)])
        func nothingStaysMappedUnlessBothEndsWantIt(mode: String, offers: Bool) throws {
            let lab = try Lab(pages: 32768)
            let disk = try attach(lab, mode)
            let device = try disk.connect { $0.offersPersistentGrants = offers }
            #expect(!device.info.persistent)
            #expect(try LoadRun(device, plan()).run().isGood)
            #expect(try disk.worker.total("grants_mapped") == 0)
            try device.close()
            try lab.finish()
        }

        /// More pages than a disk keeps, on several queues.
        @Test func whatDoesNotFitIsCopied() throws {
            let lab = try Lab(pages: 65536)
            let disk = try attach(lab, "on", ["--max-queues", "2"])
            let device = try disk.connect {
                $0.offersPersistentGrants = true
                $0.queues = 2
                $0.ringPages = 4
                $0.requestsPerQueue = 60
            }
            var plan = plan(1500)
            plan.depth = 32
            plan.size = 16 << 20
            let report = try LoadRun(device, plan).run()
            #expect(report.isGood, "\(report.text)")
            let domain = try #require(try lab.control.domains().first { $0.id == lab.guest.id })
            // The rings are mapped, too.
            #expect(domain.mappedGrants <= 1056 + 2 * 4 && domain.mappedGrants > 528, "\(domain)")
            #expect(try disk.worker.total("grant_copy_operations") > disk.worker.total("mapped_copies"))
            try device.close()
            try lab.finish()
        }

        @Test(arguments: ["on", "off"])
        func aHistoryOutlivesKills(successor: String) throws {
            var random = SplitMix64(seed: testSeed("PersistentGrantTests.aHistoryOutlivesKills"))
            let lab = try Lab(pages: 32768)
            let image = try lab.image("image", bytes: 16 << 20)
            let disk = try attach(lab, "on", ["--max-queues", "2"], Storage(path: image))
            let device = try disk.connect {
                $0.offersPersistentGrants = true
                $0.queues = 2
            }
            #expect(
                try disk.load(device) {
                    $0.pattern = .randread; $0.verify = false
                }.isGood)
            #expect(try disk.worker.total("mapped_copies") > 0)
            var plan = HistoryPlan()
            plan.seed = random.next()
            plan.count = 3000
            var kills = 0
            var next = clinux_monotonic_ns() + 20_000_000
            var run = try runHistory(plan, on: device, of: disk) {
                guard clinux_monotonic_ns() >= next, disk.worker.isRunning else { return }
                disk.worker.kill()
                kills += 1
                // A setting that changed does not change what the guest was told: it goes on to reuse its grants.
                try disk.startWorker(["--predecessor", "killed:signal 9", "--persistent-grants", successor])
                next = clinux_monotonic_ns() + (20 + random.next() % 100) * 1_000_000
            }
            #expect(run.errors == 0 && run.answered >= plan.count && kills > 2)
            #expect(try disk.key("feature-persistent") == "1")
            try device.close()
            #expect(device.leakedGrants.isEmpty)
            let file = try #require(FileHandle(forReadingAtPath: image))
            try run.checkImage(Array(try file.read(upToCount: plan.sectors * 512) ?? Data()))
            try lab.finish(mostLog: 1 << 20)
        }

        /// On the way of a request, where the first worker dies; of a connection, where its successor dies too; at its end.
        @Test(arguments: [
            "taking", "taken", "fetched", "copied", "submitted", "completed", "answered", "published", "released",
            "opened", "mapped", "bound", "connected", "started", "replayed", "draining", "drained",
        ])
        func aWorkerMayDieAt(place: String) throws {
            let lab = try Lab(pages: 32768)
            let image = try lab.image("image", bytes: 16 << 20)
            let isOfSuccessor = ["opened", "mapped", "bound", "connected", "started", "replayed"].contains(place)
            let isAtEnd = ["draining", "drained"].contains(place)
            let disk = try lab.attach(
                51712, Storage(path: image),
                arguments: ["--journal", "\(lab.directory)/journal", "--persistent-grants", "on"],
                environment: ["XBB_KILL_POINT=" + (isOfSuccessor ? "submitted:30" : isAtEnd ? place : "\(place):30")])
            let device = try disk.connect { $0.offersPersistentGrants = true }
            var plan = HistoryPlan()
            plan.count = 600
            plan.seed = testSeed("PersistentGrantTests.aWorkerMayDieAt")
            var deaths = 0
            func goOn() throws {
                guard !disk.worker.isRunning, deaths < 3 else { return }
                deaths += 1
                try disk.startWorker(
                    ["--predecessor", "killed:signal 9"],
                    environment: deaths == 1 && isOfSuccessor ? ["XBB_KILL_POINT=\(place)"] : [])
            }
            let run = try runHistory(plan, on: device, of: disk) { try goOn() }
            try inBackground({ try device.close() }) { try goOn() }
            #expect(run.errors == 0 && deaths == (isOfSuccessor ? 2 : 1), "\(disk.log.suffix(2000))")
            #expect(device.leakedGrants.isEmpty)
            try lab.finish(mostLog: 1 << 20)
        }

        /// It says that it reuses its grants, and does not.
        @Test func aFrontendThatStopsReusingItsGrantsHarmsNobody() throws {
            let lab = try Lab(pages: 32768)
            let disk = try attach(lab, "on")
            let device = try disk.connect { $0.offersPersistentGrants = true }
            let guest = lab.guest
            let frame = try guest.allocateFrames(1)
            let encoder = RequestEncoder(layout: RingLayout(.native))
            var used: [UInt32] = []
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 0, byteCount: 128 << 10, fill: 0x33) == 0)
                for round in 0..<5000 {
                    // A new reference for each request, some of which may only be read.
                    let reference = try guest.grantAccess(to: 0, frame: frame, readOnly: round % 3 == 0)
                    let status = try queue.raw { id in
                        encoder.slot(
                            operation: 1, id: id, firstSector: 512,
                            segments: [BlockSegment(reference: reference, firstSector: 0, lastSector: 7)])
                    }
                    #expect(status == 0)
                    if !guest.endAccess(reference) { used.append(reference) }
                }
                // References that were revoked while they are mapped, and that never were.
                for reference in used.prefix(20) { guest.forceRevoke(reference) }
                for reference in used.prefix(20) + [UInt32(guest.grantEntryCount - 1), .max] {
                    let status = try queue.raw { id in
                        encoder.slot(
                            operation: 0, id: id, firstSector: 0,
                            segments: [BlockSegment(reference: reference, firstSector: 0, lastSector: 7)])
                    }
                    #expect(status == 0 || status == -1)
                }
                let read = try queue.read(sector: 0, byteCount: 128 << 10)
                #expect(read.status == 0 && read.bytes.allSatisfy { $0 == 0x33 })
            }
            // It is not more than the table has.
            #expect(used.count <= 1056 + 500 * 60)
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try? device.close()
            for reference in used { #expect(guest.endAccess(reference)) }
            try lab.finish()
        }

        /// References are numbers of each guest's own.
        @Test func twoGuestsWithTheSameReferencesHaveTheirOwnPages() throws {
            let lab = try LibxlLab(options: ["--persistent-grants", "on"])
            let guests = [try lab.guest(), try lab.guest()]
            let disks = try guests.enumerated().map { index, guest in
                LibxlDisk(guest: guest.id, params: "raw:\(try lab.image("disk\(index).img"))")
            }
            for disk in disks { #expect(try lab.add(disk).status == 0, "\(lab.log)") }
            let devices = try zip(disks, guests).map { disk, guest in
                try lab.connect(disk, guest) { $0.offersPersistentGrants = true }
            }
            #expect(
                devices[0].queues[0].withQueue { $0.ringReferences }
                    == devices[1].queues[0].withQueue { $0.ringReferences })
            let plan = plan()
            var second: LoadReport?
            let first = try inBackground({ try LoadRun(devices[0], plan).run() }) {
                if second == nil { second = try LoadRun(devices[1], plan).run() }
            }
            let other = try second ?? LoadRun(devices[1], plan).run()
            #expect(first.isGood && other.isGood, "\(first.text) \(other.text)")
            for (device, disk) in zip(devices, disks) {
                let domain = try #require(try lab.control.domains().first { $0.id == disk.guest })
                #expect(domain.mappedGrants > 100, "\(domain)")
                try device.close()
                #expect(device.leakedGrants.isEmpty)
                try lab.remove(disk)
            }
            lab.stop()
        }

        @Test func aGuestThatVanishesLeavesNothingMapped() throws {
            let lab = try Lab(pages: 32768)
            let disk = try attach(lab, "on")
            let device = try disk.connect { $0.offersPersistentGrants = true }
            #expect(try LoadRun(device, plan()).run().isGood)
            #expect(try (lab.control.domains().first { $0.id == lab.guest.id }?.mappedGrants ?? 0) > 100)
            try lab.toolstack.remove(disk.front, in: .none)
            try eventually("all pages to be unmapped") {
                try (lab.control.domains().first { $0.id == lab.guest.id }?.mappedGrants ?? 0) == 0
            }
            try? device.close()
            try lab.finish()
        }
    }
}
