// SPDX-License-Identifier: BSD-2-Clause
// A queue against a backend that is right, and against one that breaks each rule of blkfront.
import Blkif
import Testing
import Xen
import XenLoopback

@testable import Blkfront

@Suite struct FrontQueueTests {
    @Test(arguments: RingABI.allCases, [1, 4, 32])
    func writesComeBackInEveryLayout(abi: RingABI, pages: Int) throws {
        let lab = try QueueLab()
        let disk = MemoryDisk(sectors: 4096)
        var options = FrontOptions()
        options.abi = abi
        options.ringPages = pages
        let box = try lab.queue(disk, options: options)
        try box.withQueue { queue in
            #expect(queue.slotCount == 32 * pages)
            for (index, count) in [512, 4096, 11 * 4096, 7 * 512, 5000 / 512 * 512].enumerated() {
                let sector = UInt64(index * 100)
                let written = try queue.perform(.write, sector: sector, byteCount: count, fill: UInt8(index + 1))
                #expect(written.status == 0)
                queue.release(written.id)
                #expect(
                    disk.bytes(at: Int(sector) * 512, count: count) == Array(repeating: UInt8(index + 1), count: count))
                let read = try queue.perform(.read, sector: sector, byteCount: count, fill: 0xee)
                #expect(read.status == 0)
                #expect(queue.bytes(read.id, count: count) == Array(repeating: UInt8(index + 1), count: count))
                queue.release(read.id)
            }
            #expect(disk.counts.maxSegments == 11)
        }
        try lab.stopBackends()
        #expect(box.dismantle().isEmpty)
        try lab.stop()
    }

    @Test func segmentsMayBeginAnywhereInTheirPage() throws {
        let lab = try QueueLab()
        let disk = MemoryDisk(sectors: 4096)
        let box = try lab.queue(disk)
        try box.withQueue { queue in
            for skew in 0..<8 {
                for count in [512, 4096, 4096 + 512, 10 * 4096] {
                    let value = UInt8(skew * 16 + count / 4096)
                    queue.release(
                        try queue.perform(.write, sector: 8, byteCount: count, skew: skew, fill: value).id)
                    #expect(disk.bytes(at: 4096, count: count).allSatisfy { $0 == value })
                    let read = try queue.perform(.read, sector: 8, byteCount: count, skew: skew, fill: 0)
                    #expect(queue.bytes(read.id, skew: skew, count: count).allSatisfy { $0 == value })
                    queue.release(read.id)
                }
            }
        }
        #expect(disk.counts.firstSectors == Set(0..<8))
        try lab.stop()
    }

    @Test(arguments: [0, 0x7fff_fff0, 0xffff_fff0 as UInt32])
    func theRingIsFullAndWrapsAround(startIndex: UInt32) throws {
        let lab = try QueueLab()
        var options = FrontOptions()
        options.startIndex = startIndex
        let box = try lab.queue(MemoryDisk(sectors: 4096), options: options, mischief: .reversesOrder, at: -1)
        try box.withQueue { queue in
            for _ in 0..<4 {
                var ids: Set<Int> = []
                while let id = queue.allocate() {
                    try queue.submit(id, .read, sector: UInt64(id), byteCount: 512)
                    ids.insert(id)
                }
                #expect(ids.count == 32 && queue.ring.free == 0)
                try queue.publish()
                while !ids.isEmpty {
                    let completion = try queue.next()
                    #expect(ids.remove(completion.id) != nil)
                    queue.release(completion.id)
                }
            }
        }
        #expect(try lab.report().copyingReferences == 0)
        try lab.stopBackends()
        #expect(box.dismantle().isEmpty)
        #expect(try lab.report().grantedReferences == 0)
        try lab.stop()
    }

    @Test func grantsAreForOneRequestUnlessPooled() throws {
        let lab = try QueueLab()
        let disk = MemoryDisk(sectors: 4096)
        let box = try lab.queue(disk)
        try box.withQueue { queue in
            queue.release(try queue.perform(.write, sector: 0, byteCount: 11 * 4096).id)
            #expect(try lab.report().grantedReferences == 1)
        }
        var options = FrontOptions()
        options.grants = .pooled
        options.requestsPerQueue = 4
        let pooled = try lab.queue(disk, options: options)
        try pooled.withQueue { queue in
            queue.release(try queue.perform(.read, sector: 0, byteCount: 11 * 4096).id)
            #expect(try lab.report().grantedReferences == 2 + 44)
        }
        try lab.stop()
    }

    @Test(arguments: [
        (Mischief.idBeyondRing, "incorrect id"), (.idNotPending, "no pending request"),
        (.answersTwice, "illegal number of responses"), (.wrongOperation, "wrong operation"),
        (.paddingBetweenFields, "padding"), (.paddingAtEnd, "padding"),
        (.producerTooFar, "illegal number of responses"), (.producerBackwards, "illegal number of responses"),
        (.keepsGrantMapped, "not unmapped grant"),
    ])
    func aBackendThatBreaksARuleKillsTheDevice(mischief: Mischief, text: String) throws {
        let lab = try QueueLab()
        let box = try lab.queue(MemoryDisk(sectors: 4096), mischief: mischief, at: 3)
        try box.withQueue { queue in
            var failure: BlkfrontError?
            for _ in 0..<8 where failure == nil {
                do {
                    queue.release(try queue.perform(.read, sector: 0, byteCount: 4096).id)
                } catch let error as BlkfrontError {
                    failure = error
                }
            }
            let fault = try #require(lab.health.fault)
            #expect(failure == .dead(fault))
            #expect(fault.description.contains(text), "\(fault)")
            // Nothing works any more.
            let id = try queue.slot()
            #expect(throws: BlkfrontError.dead(fault)) {
                try queue.submit(id, .read, sector: 0, byteCount: 512)
            }
            #expect(throws: BlkfrontError.dead(fault)) { _ = try queue.nextCompletion() }
        }
        try lab.stop()
    }

    @Test func aGrantInUseIsNamedAndItsFramesAreKept() throws {
        let lab = try QueueLab(pages: 1024)
        var options = FrontOptions()
        options.requestsPerQueue = 4
        let box = try lab.queue(MemoryDisk(sectors: 4096), options: options, mischief: .keepsGrantMapped)
        let failure = box.withQueue { queue in
            #expect(throws: BlkfrontError.self) {
                _ = try queue.perform(.write, sector: 0, byteCount: 4096)
            }
            return lab.health.fault
        }
        guard case .grantInUse(let reference, _) = failure else {
            Issue.record("the fault is \(String(describing: failure))")
            return
        }
        #expect(lab.domain.isInUse(reference))
        // The ring itself is mapped by the backend, too, until it stops.
        #expect(box.dismantle().contains(box.ringReferences[0]))
        try lab.stop()
    }

    @Test func errorsOfTheDiskAreNotFaults() throws {
        let lab = try QueueLab()
        let disk = MemoryDisk(sectors: 64)
        for (mischief, expected) in [
            (Mischief.fails(.error), BlkfrontError.failed(status: -1)), (.fails(.notSupported), .notSupported),
            (.unknownStatus, .failed(status: 0x1234)),
        ] {
            let box = try lab.queue(disk, mischief: mischief)
            try box.withQueue { queue in
                let completion = try queue.perform(.read, sector: 0, byteCount: 512)
                #expect(completion.error == expected)
                queue.release(completion.id)
                let beyond = try queue.perform(.read, sector: 60, byteCount: 4096)
                #expect(beyond.status == BlockStatus.error.rawValue)
                queue.release(beyond.id)
            }
        }
        #expect(lab.health.isGood)
        try lab.stop()
    }

    @Test(arguments: RingABI.allCases)
    func hostileRequestsAreRefusedEachForItsReason(abi: RingABI) throws {
        let lab = try QueueLab()
        for (readOnly, offers) in [(false, true), (true, true), (false, false)] {
            let limits = OfferedFeatures(
                sectorCount: 1000, isReadOnly: readOnly, discard: offers ? DiscardSupport() : nil, hasBarrier: offers,
                canFlush: offers)
            var options = FrontOptions()
            options.abi = abi
            let box = try lab.queue(MemoryDisk(sectors: 1000), options: options, limits: limits)
            let hostile = HostileFrontend.sharedGrant(lab.domain)
            try box.withQueue { queue in
                let table = HostileRequest.table(
                    layout: RingLayout(abi), disk: limits, id: 0, reference: hostile)
                #expect(table.count > 50)
                for request in table {
                    let id = try queue.slot()
                    var slot = request.slot
                    slot.store(UInt64(id), at: RingLayout(abi).idOffset)
                    queue.submitRaw(slot, expecting: id)
                    try queue.publish()
                    let completion = try queue.next()
                    #expect(completion.status == request.expected.rawValue, "\(request.name)")
                    queue.release(completion.id)
                }
            }
        }
        try lab.stop()
    }
}

extension HostileFrontend {
    fileprivate static func sharedGrant(_ domain: LoopbackDomain) -> UInt32 {
        (try? domain.grantAccess(to: 0, frame: domain.allocateFrames(1), readOnly: false)) ?? 0
    }
}
