// SPDX-License-Identifier: BSD-2-Clause
// Guests that misuse the ring, the grants and the event channel.
import Blkfront
import Blkif
import CLinux
import Foundation
import Testing
import Xen

extension EndToEnd {
    @Suite struct RingAbuseTests {
        /// The processor time that the worker takes in one second.
        private func load(of worker: Worker) throws -> Double {
            let before = try worker.processorSeconds()
            usleep(1_000_000)
            return try worker.processorSeconds() - before
        }

        @Test(arguments: [1_000_000, UInt32(bitPattern: -5), 33, 0x8000_0000])
        func anImpossibleProducerIndexStopsOnlyThatRing(distance: UInt32) throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let other = try lab.attach(51728)
            let device = try disk.connect()
            let neighbour = try other.connect()
            try device.queues[0].withQueue { (queue) throws in
                for _ in 0..<40 { #expect(try queue.status(.read, sector: 0, byteCount: 4096) == 0) }
                queue.moveProducer(by: distance)
                for _ in 0..<1000 { try queue.notify() }
            }
            try eventually("a line in the log") { disk.log.contains("req_prod") }
            #expect(try load(of: disk.worker) < 0.2)
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            #expect(disk.log.components(separatedBy: "req_prod").count <= 3, "\(disk.log)")
            #expect(try other.load(neighbour) { $0.count = 100 }.isGood)
            try neighbour.close()
            try device.close()
            let again = try disk.connect()
            #expect(try disk.load(again) { $0.count = 100 }.isGood)
            try again.close()
            try lab.finish()
        }

        @Test(arguments: [RingABI.native, .x86_32])
        func slotsThatChangeWhileTheyAreReadCrashNothing(abi: RingABI) throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect {
                $0.abi = abi
                $0.ringPages = 4
                $0.verifiesPadding = false
            }
            let hostile = HostileFrontend(device, seed: 11)
            let pages = device.queues[0].withQueue { $0.ringPages }
            let flipper = try hostile.flip(pages, layout: RingLayout(abi))
            var plan = LoadPlan()
            plan.pattern = .randrw
            plan.maxBlockSize = 45056
            plan.blockSize = 4096
            plan.depth = 64
            plan.duration = 2_000_000_000
            plan.stallTimeout = 2000
            // Answers may be errors or carry ids that were flipped: what counts is that the worker lives.
            _ = try LoadRun(device, plan).run()
            flipper.stop()
            #expect(flipper.count > 0)
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try? device.close()
            let again = try disk.connect()
            #expect(try disk.load(again) { $0.count = 200 }.isGood)
            try again.close()
            try lab.finish()
        }

        @Test(arguments: RingABI.allCases)
        func everyBrokenRuleGetsItsAnswerAndNothingElseSuffers(abi: RingABI) throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect { $0.abi = abi }
            let limits = OfferedFeatures(
                sectorCount: device.info.sectors, isReadOnly: false,
                discard: device.info.discard ? DiscardSupport() : nil,
                hasBarrier: device.info.barrier, canFlush: device.info.flush,
                maximumIndirectSegments: UInt32(device.info.maxIndirectSegments))
            let reference = try HostileFrontend(device).grant()
            let layout = RingLayout(abi)
            try device.queues[0].withQueue { (queue) throws in
                #expect(try queue.status(.write, sector: 80, byteCount: 4096, fill: 0x5a) == 0)
                let count = HostileRequest.table(layout: layout, disk: limits, id: 0, reference: reference).count
                for index in 0..<count {
                    let id = try queue.slot()
                    let request = HostileRequest.table(
                        layout: layout, disk: limits, id: UInt64(id), reference: reference)[index]
                    queue.submitRaw(request.slot, expecting: id)
                    // A good request right behind it, in the same batch.
                    let good = try queue.slot()
                    try queue.submit(good, .read, sector: 80, byteCount: 4096)
                    try queue.publish()
                    for _ in 0..<2 {
                        let completion = try queue.next()
                        if completion.id == id {
                            #expect(completion.status == request.expected.rawValue, "\(request.name)")
                        } else {
                            #expect(
                                completion.status == 0 && queue.buffer(of: good)[0] == 0x5a, "behind \(request.name)")
                        }
                        queue.release(completion.id)
                    }
                }
            }
            #expect(lab.guest.endAccess(reference))
            try device.close()
            try lab.finish()
        }

        @Test func aBadGrantFailsItsRequestAlone() throws {
            let lab = try Lab()
            let stranger = try lab.control.createDomain(pages: 64, grantEntries: 512)
            let disk = try lab.attach()
            let device = try disk.connect()
            let hostile = HostileFrontend(device)
            let readOnly = try hostile.grant(readOnly: true)
            let foreign = try hostile.grant(to: stranger)
            let outside = try hostile.referenceBeyondMemory()
            let good = try hostile.grant()
            var bad: [(String, UInt32)] = [
                ("empty", hostile.emptyReference()), ("revoked", try hostile.revokedReference()),
                ("read-only", readOnly), ("of another domain", foreign), ("beyond the memory", outside),
            ]
            bad += hostile.absentReferences().map { ("absent \($0)", $0) }
            let encoder = RequestEncoder(layout: RingLayout(.native))
            try device.queues[0].withQueue { (queue) throws in
                for (name, reference) in bad {
                    for position in 0..<3 {
                        // Three adjacent reads in one batch, the one at `position` with a bad page: they may be joined.
                        var ids: [Int] = []
                        for index in 0..<3 {
                            let id = try queue.slot()
                            ids.append(id)
                            let segment = BlockSegment(
                                reference: index == position ? reference : good, firstSector: 0, lastSector: 7)
                            let slot = encoder.slot(
                                operation: 0, id: UInt64(id), firstSector: UInt64(index * 8), segments: [segment])
                            queue.submitRaw(slot, expecting: id)
                        }
                        try queue.publish()
                        for _ in 0..<3 {
                            let completion = try queue.next()
                            let fails = completion.id == ids[position]
                            #expect((completion.status != 0) == fails, "\(name), \(position)")
                            queue.release(completion.id)
                        }
                    }
                }
                #expect(
                    try queue.raw {
                        encoder.slot(
                            operation: 1, id: $0, firstSector: 0,
                            segments: [BlockSegment(reference: readOnly, firstSector: 0, lastSector: 7)])
                    } == 0, "a page that is only read may be read-only")
            }
            for reference in [readOnly, foreign, outside, good] { #expect(lab.guest.endAccess(reference)) }
            try lab.control.destroyDomain(stranger)
            try device.close()
            try lab.finish()
        }

        @Test func aHundredThousandBadRequestsFillNoLog() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let device = try disk.connect { $0.ringPages = 32 }
            let encoder = RequestEncoder(layout: RingLayout(.native))
            let segment = BlockSegment(reference: 0, firstSector: 0, lastSector: 7)
            try device.queues[0].withQueue { (queue) throws in
                var sent = 0
                var answered = 0
                while answered < 100_000 {
                    while sent < 100_000, let id = queue.allocate() {
                        let operation: UInt8 = sent % 3 == 0 ? 99 : 0
                        let sector: UInt64 = sent % 3 == 1 ? .max : 0
                        queue.submitRaw(
                            encoder.slot(
                                operation: operation, id: UInt64(id), firstSector: sector, segments: [segment]),
                            expecting: id)
                        sent += 1
                    }
                    try queue.publish()
                    var completion: FrontCompletion? = try queue.next()
                    while let done = completion {
                        if done.status == 0 { throw LabError("a bad request succeeded") }
                        answered += 1
                        queue.release(done.id)
                        completion = try queue.nextCompletion()
                    }
                }
            }
            #expect(try disk.worker.total("reqs_completed_with_error") >= 100_000)
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            try device.close()
            try lab.finish()
        }

        @Test func aStormOfEventsStarvesNoOtherDisk() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            let other = try lab.attach(51728)
            let device = try disk.connect()
            let neighbour = try other.connect()
            try storm(disk, device.queues[0], other, neighbour)
            #expect(try load(of: disk.worker) < 0.2, "quiet again")
            try neighbour.close()
            try device.close()
            try lab.finish()
        }

        /// Notifies without a pause while the other disk is in use.
        private func storm(
            _ disk: Disk, _ box: FrontQueueBox, _ other: Disk, _ neighbour: FrontDevice
        ) throws {
            let stop = Flag()
            let thread = Thread {
                while !stop.isSet { try? box.port.notify() }
                stop.end()
            }
            thread.start()
            defer {
                stop.set()
                stop.awaitEnd()
            }
            let report = try other.load(neighbour) { $0.count = 200 }
            #expect(report.isGood, "\(report.text)")
            #expect(try disk.worker.ask("ping")["pid"] != nil)
            try box.withQueue { (queue) throws in
                #expect(try queue.status(.read, sector: 0, byteCount: 4096) == 0, "its own requests are served too")
            }
        }

        @Test func aRingOfRandomBytesCrashesNothing() throws {
            let lab = try Lab()
            let disk = try lab.attach()
            for round in 0..<20 {
                let device = try disk.connect { $0.ringPages = 1 << (round % 3) }
                let hostile = HostileFrontend(device, seed: UInt64(round + 1))
                try device.queues[0].withQueue { (queue) throws in
                    hostile.junk(queue.ringPages)
                    if round % 2 == 0 { queue.moveProducer(by: 20) }
                    for _ in 0..<10 { try queue.notify() }
                }
                #expect(try disk.worker.ask("ping")["pid"] != nil)
                try device.close()
            }
            let device = try disk.connect()
            #expect(try disk.load(device) { $0.count = 100 }.isGood)
            try device.close()
            try lab.finish()
        }
    }
}

/// Tells a thread to end, and whether it has.
final class Flag: @unchecked Sendable {
    private let lock = NSCondition()
    private var value = false
    private var ended = false
    var isSet: Bool { lock.withLock { value } }
    func set() { lock.withLock { value = true } }
    func end() {
        lock.withLock { ended = true }
        lock.broadcast()
    }
    func awaitEnd() {
        lock.lock()
        while !ended { lock.wait() }
        lock.unlock()
    }
}
