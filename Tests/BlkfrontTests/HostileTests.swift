// SPDX-License-Identifier: BSD-2-Clause
// The hostile frontend does what it says, to a backend that has to live with it.
import Base
import Blkif
import CLinux
import Glibc
import Memory
import Testing
import Xen
import XenLoopback

@testable import Blkfront

@Suite struct HostileTests {
    /// A request with one page granted by `reference`; the status of its answer.
    private func status(
        _ queue: inout FrontQueue, _ operation: BlockOperation, _ reference: UInt32
    ) throws -> Int16 {
        let id = try queue.slot()
        let slot = RequestEncoder(layout: queue.ring.layout).slot(
            operation: operation.rawValue, id: UInt64(id), firstSector: 0,
            segments: [BlockSegment(reference: reference, firstSector: 0, lastSector: 7)])
        queue.submitRaw(slot, expecting: id)
        try queue.publish()
        let completion = try queue.next()
        queue.release(completion.id)
        return completion.status
    }

    @Test func grantsThatAreNone() throws {
        let lab = try DeviceLab()
        _ = try lab.host()
        let device = try lab.device()
        try device.connect()
        let hostile = HostileFrontend(device)
        try device.queues[0].withQueue { queue in
            var bad = hostile.absentReferences() + [hostile.emptyReference()]
            bad.append(try hostile.revokedReference())
            bad.append(try hostile.referenceBeyondMemory())
            bad.append(try hostile.grant(to: 7))
            for reference in bad {
                #expect(try status(&queue, .read, reference) == BlockStatus.error.rawValue, "read \(reference)")
                #expect(try status(&queue, .write, reference) == BlockStatus.error.rawValue, "write \(reference)")
            }
            let readOnly = try hostile.grant(readOnly: true)
            #expect(try status(&queue, .read, readOnly) == BlockStatus.error.rawValue)
            #expect(try status(&queue, .write, readOnly) == BlockStatus.okay.rawValue)
            let good = try hostile.grant()
            #expect(try status(&queue, .read, good) == BlockStatus.okay.rawValue)
        }
        try device.close()
        try lab.stop()
    }

    @Test func theProducerMayBeAnywhere() throws {
        for amount in [33, 1_000_000, 0x8000_0000, 0xffff_ffff] as [UInt32] {
            let lab = try QueueLab()
            let disk = MemoryDisk(sectors: 64)
            let box = try lab.queue(disk)
            try box.withQueue { queue in
                queue.release(try queue.perform(.read, sector: 0, byteCount: 512).id)
                // The event of that response may still stand there, if its response was seen before it.
                _ = try queue.waitForEvent(timeout: 50)
                queue.moveProducer(by: amount)
                try queue.notify()
                #expect(try !queue.waitForEvent(timeout: 50))
            }
            #expect(disk.counts.reads == 1)
            try lab.stop()
        }
    }

    @Test(arguments: RingABI.allCases)
    func slotsMayChangeUnderTheBackendsEyes(abi: RingABI) throws {
        let lab = try DeviceLab()
        let host = try lab.host()
        let device = try lab.device { $0.abi = abi }
        try device.connect()
        let hostile = HostileFrontend(device, seed: 5)
        var flips = 0
        try device.queues[0].withQueue { queue in
            let flipper = try hostile.flip(queue.ringPages, layout: RingLayout(abi))
            var answered = 0
            // The own request may come out garbled, so this frontend takes any answer as one.
            do {
                for _ in 0..<2000 {
                    let id = try queue.slot()
                    try queue.submit(id, .read, sector: 0, byteCount: 4096)
                    try queue.publish()
                    queue.release(try queue.next().id)
                    answered += 1
                }
            } catch BlkfrontError.dead(let fault) {
                #expect(answered >= 0, "\(fault)")
            }
            flipper.stop()
            flips = flipper.count
        }
        #expect(flips > 0)
        try? device.close()
        try host.asToolstack { (store: any XenStore) throws in #expect(try store.text("\(host.back)/state") == "6") }
        try lab.stop()
    }

    @Test func aRingOfJunk() throws {
        for seed in 0..<8 as Range<UInt64> {
            let lab = try DeviceLab()
            _ = try lab.host()
            let device = try lab.device { $0.ringPages = 4 }
            try device.connect()
            let hostile = HostileFrontend(device, seed: seed)
            try device.queues[0].withQueue { queue in
                hostile.junk(queue.ringPages)
                try queue.notify()
                _ = try queue.waitForEvent(timeout: 20)
            }
            try? device.close()
            #expect(try lab.report().mappedGrants == 0, "seed \(seed)")
            try lab.stop()
        }
    }

    @Test func randomSlotsAreAnsweredOrEndTheRing() throws {
        let lab = try QueueLab()
        let box = try lab.queue(MemoryDisk(sectors: 4096))
        let device = FrontDevice(domain: lab.domain, store: NoStore(), number: 0)
        let hostile = HostileFrontend(device, seed: 11)
        try box.withQueue { queue in
            let pages = try (0..<11).map { _ in try hostile.grant() }
            for round in 0..<300 {
                let id = try queue.slot()
                var slot =
                    round % 2 == 0
                    ? hostile.randomSlot()
                    : hostile.nearlyRightSlot(
                        layout: queue.ring.layout, id: UInt64(id), sectors: 4096, references: pages)
                slot.store(UInt64(id), at: queue.ring.layout.idOffset)
                queue.submitRaw(slot, expecting: id)
                try queue.publish()
                queue.release(try queue.next().id)
            }
        }
        try lab.stop()
    }

    @Test func anyKeyAndAnyState() throws {
        let lab = try DeviceLab()
        var settings = ToySettings()
        settings.stuckIn = .initialising
        let host = try lab.host(settings: settings)
        let device = try lab.device { $0.ringPages = 2 }
        try device.findBackend()
        try device.makeQueues()
        let hostile = HostileFrontend(device, seed: 3)
        let written = try hostile.writeRandomStates(200)
        #expect(Set(written).count > 8)
        #expect(try device.store.text("\(device.path)/state") == written.last)
        try hostile.publish(changing: ["ring-page-order": "31", "event-channel": nil, "ring-ref7": "x"])
        func key(_ name: String) throws -> String? { try host.asToolstack { try $0.text("\(host.front)/\(name)") } }
        #expect(try key("ring-page-order") == "31" && key("event-channel") == nil && key("ring-ref7") == "x")
        #expect(try key("protocol") == "x86_64-abi")
        try hostile.write("protocol", [0xff, 0x00, 0x80])
        try hostile.writeState(4)
        try hostile.remove("protocol")
        #expect(try key("protocol") == nil)
        device.dismantle()
        try lab.stop()
    }
}

/// A store that must not be asked.
private final class NoStore: XenStore {
    private let error = OperationError(ENOTSUP, "no store")

    func read(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [UInt8] { throw error }
    func write(_ path: String, _ value: [UInt8], in transaction: XenStoreTransaction) throws(OperationError) {
        throw error
    }
    func makeDirectory(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) { throw error }
    func remove(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) { throw error }
    func list(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [String] { throw error }
    func permissions(of path: String, in transaction: XenStoreTransaction) throws(OperationError)
        -> [XenStorePermission]
    {
        throw error
    }
    func setPermissions(
        of path: String, to permissions: [XenStorePermission], in transaction: XenStoreTransaction
    ) throws(OperationError) { throw error }
    func startTransaction() throws(OperationError) -> XenStoreTransaction { throw error }
    func commit(_ transaction: XenStoreTransaction) throws(OperationError) -> Bool { throw error }
    func abort(_ transaction: XenStoreTransaction) {}
    func watch(_ path: String, token: String) throws(OperationError) { throw error }
    func unwatch(_ path: String, token: String) throws(OperationError) { throw error }
    var watchFileDescriptor: Int32 { -1 }
    func nextWatchEvent() throws(OperationError) -> XenStoreWatchEvent? { throw error }
    func domainPath(_ domain: DomainID) throws(OperationError) -> String { throw error }
    func isDomainIntroduced(_ domain: DomainID) throws(OperationError) -> Bool { throw error }
}
