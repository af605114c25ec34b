// SPDX-License-Identifier: BSD-2-Clause
// Indirect requests of a guest, through all of a worker.
import Blkfront
import Blkif
import CLinux
import Foundation
import Testing

extension EndToEnd {
    @Suite struct IndirectSegmentTests {
        private func plan(_ most: Int, count: UInt64 = 300) -> LoadPlan {
            var plan = LoadPlan()
            plan.pattern = .randrw
            plan.blockSize = 4096
            plan.maxBlockSize = most
            plan.depth = 8
            plan.size = 8 << 20
            plan.count = count
            plan.verify = true
            plan.flushEvery = 20
            plan.barrierEvery = 10
            return plan
        }

        @Test(
            arguments: [RingABI.native, .x86_32],
            [(offered: 256, asked: 32, skew: 0), (256, 256, 3), (4096, 4096, 0), (12, 32, 0)])
        func whatIsOfferedIsServed(abi: RingABI, _ sizes: (offered: Int, asked: Int, skew: Int)) throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.attach(arguments: ["--max-indirect-segments", String(sizes.offered)])
            let device = try disk.connect {
                $0.abi = abi
                $0.indirectSegments = sizes.asked
                $0.requestsPerQueue = sizes.asked > 1000 ? 4 : 16
            }
            let pages = min(sizes.offered, sizes.asked)
            #expect(device.info.maxIndirectSegments == sizes.offered && device.bufferSize == pages * 4096)
            var plan = plan(sizes.asked > 1000 ? 4 << 20 : 1 << 20, count: sizes.asked > 1000 ? 40 : 300)
            plan.skew = sizes.skew
            let report = try LoadRun(device, plan).run()
            #expect(report.isGood, "\(report.text)")
            #expect(try disk.worker.total("indirect_requests") > 0 && disk.worker.total("rejected_requests") == 0)
            try device.close()
            try lab.finish()
        }

        @Test func nothingIsOfferedWhereNothingIsWanted() throws {
            let lab = try Lab()
            let disk = try lab.attach(arguments: ["--max-indirect-segments", "0"])
            let device = try disk.connect()
            #expect(device.info.maxIndirectSegments == 0 && device.bufferSize == FrontQueue.directSize)
            #expect(try disk.key("feature-max-indirect-segments") == nil)
            #expect(try LoadRun(device, plan(256 << 10)).run().isGood)
            #expect(try disk.worker.total("indirect_requests") == 0)
            try device.close()
            try lab.finish()
        }

        /// A guest reads what is offered when it connects, and goes by that until it connects again.
        @Test(arguments: [(before: 256, after: 0), (0, 256), (64, 32)])
        func aSuccessorKeepsWhatTheGuestWasOffered(_ offers: (before: Int, after: Int)) throws {
            let lab = try Lab()
            let journal = "\(lab.directory)/journal"
            let disk = try lab.attach(
                arguments: ["--journal", journal, "--max-indirect-segments", String(offers.before)])
            let device = try disk.connect()
            #expect(try LoadRun(device, plan(256 << 10)).run().isGood)
            disk.worker.kill()
            try disk.startWorker(
                ["--predecessor", "killed:signal 9", "--max-indirect-segments", String(offers.after)])
            let report = try LoadRun(device, plan(256 << 10)).run()
            #expect(report.isGood, "\(report.text)")
            #expect(device.info.maxIndirectSegments == offers.before)
            try device.close()
            let again = try disk.connect()
            #expect(again.info.maxIndirectSegments == offers.after)
            #expect(try LoadRun(again, plan(256 << 10)).run().isGood)
            try again.close()
            try lab.finish()
        }

        /// It has as much memory as its queues want, whatever is set by then.
        @Test func aSuccessorHasRoomForWhatTheGuestWasOffered() throws {
            let lab = try Lab(pages: 32768)
            let disk = try lab.attach(
                arguments: [
                    "--journal", "\(lab.directory)/journal", "--max-indirect-segments", "4096", "--max-queues", "4",
                    "--worker-memory-mib", "64",
                ])
            let device = try disk.connect { $0.queues = 4 }
            #expect(try LoadRun(device, plan(256 << 10)).run().isGood)
            disk.worker.kill()
            try disk.startWorker([
                "--predecessor", "killed:signal 9", "--max-indirect-segments", "0", "--max-queues", "1", "--memory-mib",
                "1",
            ])
            let report = try LoadRun(device, plan(256 << 10)).run()
            #expect(report.isGood, "\(report.text) \(disk.log.suffix(2000))")
            #expect(device.info.maxIndirectSegments == 4096)
            try device.close()
            try lab.finish()
        }

        /// A page of 512 segments of one sector each.
        private func list(_ lab: Lab, _ data: UInt32) throws -> (frame: UInt32, reference: UInt32) {
            let frame = try lab.guest.allocateFrames(1)
            for number in 0..<512 {
                write(BlockSegment(reference: data, firstSector: 1, lastSector: 1), number, frame, lab)
            }
            return (frame, try lab.guest.grantAccess(to: 0, frame: frame, readOnly: true))
        }

        private func write(_ segment: BlockSegment, _ number: Int, _ frame: UInt32, _ lab: Lab) {
            let bytes = withUnsafeBytes(of: segment.reference.littleEndian) { Array($0) }
            lab.guest.write(bytes + [segment.firstSector, segment.lastSector], frame: frame, offset: number * 8)
        }

        @Test(arguments: RingABI.allCases, ["w", "r"])
        func everyBrokenRuleGetsItsAnswerAndNothingElseSuffers(abi: RingABI, mode: String) throws {
            let lab = try Lab()
            let disk = try lab.attach(
                51712, Storage(mode: mode), arguments: ["--max-indirect-segments", "4096", "--memory-mib", "128"])
            let device = try disk.connect { $0.abi = abi }
            let limits = OfferedFeatures(
                sectorCount: device.info.sectors, isReadOnly: mode == "r", maximumIndirectSegments: 4096)
            let hostile = HostileFrontend(device)
            let data = try hostile.grant()
            let (frame, list) = try list(lab, data)
            let layout = RingLayout(abi)
            func table(_ id: UInt64) -> [HostileRequest] {
                HostileRequest.indirectTable(
                    layout: layout, disk: limits, id: id, list: list, bad: hostile.emptyReference())
            }
            let encoder = RequestEncoder(layout: layout)
            try device.queues[0].withQueue { (queue) throws in
                for index in table(0).indices {
                    let id = try queue.slot()
                    let request = table(UInt64(id))[index]
                    queue.submitRaw(request.slot, expecting: id)
                    let good = try queue.slot()
                    try queue.submit(good, .read, sector: 80, byteCount: 96 << 10)
                    try queue.publish()
                    for _ in 0..<2 {
                        let completion = try queue.next()
                        let expected = completion.id == id ? request.expected : .okay
                        #expect(completion.status == expected.rawValue, "\(request.name), \(completion)")
                        queue.release(completion.id)
                    }
                }
                let most = try queue.raw { id in
                    encoder.indirect(
                        operation: 0, id: id, firstSector: 0, segmentCount: 4096,
                        references: Array(repeating: list, count: 8))
                }
                #expect(most == 0, "as many as are offered, all of one page")
                for (name, segment) in [
                    ("backwards", BlockSegment(reference: data, firstSector: 5, lastSector: 4)),
                    ("beyond its page", BlockSegment(reference: data, firstSector: 0, lastSector: 8)),
                    ("beyond all", BlockSegment(reference: data, firstSector: 255, lastSector: 255)),
                    ("of no page", BlockSegment(reference: .max, firstSector: 1, lastSector: 1)),
                ] {
                    write(segment, 511, frame, lab)
                    let status = try queue.raw { id in
                        encoder.indirect(
                            operation: 0, id: id, firstSector: 0, segmentCount: 512, references: [list])
                    }
                    #expect(status == -1, "a segment \(name)")
                }
            }
            for reference in [data, list] { #expect(lab.guest.endAccess(reference)) }
            try device.close()
            try lab.finish()
        }

        /// What a request does is what its pages held at one moment: never more than the checks have seen.
        @Test func listsThatChangeWhileTheyAreReadHarmNothing() throws {
            let lab = try Lab()
            let image = try lab.image("image", bytes: 16 << 20)
            let disk = try lab.attach(51712, Storage(path: image))
            let device = try disk.connect()
            let data = try HostileFrontend(device).grant()
            let (frame, list) = try list(lab, data)
            let stop = Flag()
            let guest = lab.guest
            let thread = Thread {
                var round: UInt32 = 0
                let pages = guest.pages(at: frame)
                while !stop.isSet {
                    round &+= 1
                    let place = Int(round % 512) * 8
                    pages.store(round % 3 == 0 ? .max : data, at: place)
                    pages.store(round % 2 == 0 ? 0xff00 : 0x0101, at: place + 4)
                    pages.store(data, at: place)
                    pages.store(0x0101, at: place + 4)
                }
                stop.end()
            }
            thread.start()
            defer {
                stop.set()
                stop.awaitEnd()
            }
            var statuses: Set<Int16> = []
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 1000, byteCount: 96 << 10, fill: 0x77) == 0)
                for _ in 0..<3000 {
                    statuses.insert(
                        try queue.raw { id in
                            RequestEncoder(layout: RingLayout(.native)).indirect(
                                operation: 1, id: id, firstSector: 0, segmentCount: 200, references: [list])
                        })
                }
                // A write of 200 segments has 200 sectors, and not one more.
                let behind = try queue.read(sector: 200, byteCount: 44 << 10)
                #expect(behind.status == 0 && behind.bytes.allSatisfy { $0 == 0 })
                let other = try queue.read(sector: 1000, byteCount: 96 << 10)
                #expect(other.status == 0 && other.bytes.allSatisfy { $0 == 0x77 })
            }
            #expect(statuses.isSubset(of: [0, -1]) && statuses.contains(0))
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            stop.set()
            stop.awaitEnd()
            for reference in [data, list] { #expect(lab.guest.endAccess(reference)) }
            try device.close()
            try lab.finish()
        }
    }
}
