// SPDX-License-Identifier: BSD-2-Clause
// A frontend that breaks every rule: on several rings, with pages that stay mapped, while backends are killed.
import Base
import Blkif
import CXen
import Glibc
import Memory
import PluginAPI
import TestSupport
import Xen

@testable import BlockQueue
@testable import PluginPort

/// One connection.
func runSession() throws -> [String] {
    let session = try Session()
    while !FuzzInput.isOver, session.step() {}
    return session.end()
}

/// A frontend with up to three rings on one disk, its backend, and what nobody may do to either.
private final class Session {
    private var random: SplitMix64
    private let rigs: [EngineRig]
    private let tables: [GuestGrants]
    private let isReadOnly: Bool
    private let sectors: Int
    private let indirectSegments: Int
    private var isLost = false
    /// Each changes a byte of its page right after it was copied.
    private var changesBehindCopies = false

    init() throws {
        var draws = SplitMix64(seed: 0)
        let count = draws.pick([1, 1, 2, 3])
        let blockBytes: UInt32 = draws.pick([512, 4096])
        let (isReadOnly, sectors) = (draws.onceIn(6), draws.pick([512, 2048]))
        let indirectSegments = draws.pick([0, 32, 300, 1024])
        (self.isReadOnly, self.sectors, self.indirectSegments) = (isReadOnly, sectors, indirectSegments)
        let disk = FakeDisk(sectorCount: sectors)
        let order = count > 1 ? DiskOrder(queueCount: count, listsPerQueue: 64) : nil
        let ringPages = draws.pick([1, 1, 2])
        let abi = draws.pick(RingABI.allCases)
        rigs = try (0..<count).map { queue in
            try EngineRig(disk: disk) {
                $0.ringPages = ringPages
                $0.abi = abi
                $0.startIndex = draws.pick([0, 0xffff_fff0])
                $0.sectors = sectors
                $0.memoryBytes = draws.pick([128, 256, 1024]) << 10
                $0.pluginRequests = draws.pick([1, 4, 32])
                $0.readOnly = isReadOnly
                $0.indirectSegments = UInt32(indirectSegments)
                $0.guestPages = 64
                $0.offersBarrier = count == 1
                $0.order = order
                $0.queue = queue
                $0.info.logical_block = blockBytes
                $0.info.max_transfer = draws.pick([0, 8192, 65536])
                $0.info.max_iov = draws.pick([0, 1, 3])
                if isReadOnly { $0.remove(UInt64(XBB_CAP_WRITE)) }
            }
        }
        var tables: [GuestGrants] = []
        if draws.onceIn(2) {
            for rig in rigs {
                let table = GuestGrants(rig.guest)
                // A clock that stands still but for the input.
                rig.grants = PersistentGrants(
                    table, of: FakeGuest.domain, batchCapacity: 256, mapAtUse: draws.pick([1, 2]),
                    pages: draws.pick([4, 16, 64]), clock: { FuzzInput.take(1).map { $0 << 20 } ?? 0 }, report: { _ in }
                )
                tables.append(table)
            }
        }
        self.tables = tables
        random = draws
        for rig in rigs {
            rig.ignoresAnswers = true
            rig.plugin.keepsLog = false
            rig.guest.onCopy = { [unowned self, unowned rig] reference, _ in
                if changesBehindCopies { rig.guest.sector(reference, 0).storeBytes(of: 0x5a, as: UInt8.self) }
            }
        }
        tables.forEach { table in table.allowsMapping = { [unowned self] _ in !self.random.onceIn(4) } }
    }

    /// False: the disk is gone.
    func step() -> Bool {
        let rig = random.pick(rigs)
        switch random.below(24) {
        case 0..<5: request(on: rig)
        case 5..<7: indirect(on: rig)
        case 7: raw(on: rig)
        case 8..<12: rig.turn()
        case 12..<15:
            for _ in 0..<1 + random.below(4) where !rig.plugin.held.isEmpty { complete(on: rig) }
        case 15: settle(rigs)
        case 16: scribble(rig.guest.pages)
        case 17: scribble(rig.guest.ringPages)
        case 18: forge(on: rig)
        case 19: revoke(on: rig)
        case 20: disturb(rig)
        case 21: changesBehindCopies = random.onceIn(2)
        case 22: return random.onceIn(3) ? die() : true
        default: rogue(rig)
        }
        return true
    }

    // MARK: What the guest does

    private func page() -> UInt32 {
        random.onceIn(12)
            ? UInt32(truncatingIfNeeded: random.next()) : FakeGuest.firstReference + UInt32(random.below(64))
    }

    private func segment() -> BlockSegment {
        let first = random.below(8)
        let last = random.onceIn(16) ? random.below(256) : first + random.below(8 - first)
        return BlockSegment(reference: page(), firstSector: UInt8(first), lastSector: UInt8(last))
    }

    private func sector() -> UInt64 {
        random.onceIn(10) ? random.next() : UInt64(random.below(sectors + 8))
    }

    private func operation() -> UInt8 {
        random.onceIn(16) ? UInt8(random.below(256)) : random.pick([0, 0, 1, 1, 1, 2, 3, 5])
    }

    private func put(_ rig: EngineRig, _ slot: SlotBytes) { if rig.guest.free > 0 { rig.guest.put(slot) } }

    private func request(on rig: EngineRig) {
        let encoder = rig.guest.encoder
        let operation = operation()
        if operation == BlockOperation.discard.rawValue {
            return put(
                rig,
                encoder.discard(
                    id: 1, firstSector: sector(), sectorCount: sector(), secure: random.onceIn(2)))
        }
        let segments = (0..<random.below(12)).map { _ in segment() }
        put(
            rig,
            encoder.slot(
                operation: operation, id: 2, firstSector: sector(), segments: segments,
                segmentCount: random.onceIn(20) ? UInt8(random.below(256)) : nil))
    }

    private func indirect(on rig: EngineRig) {
        let count = random.below(max(indirectSegments, 1) + 4)
        let pages = (0..<8).map { _ in page() }
        for reference in pages.prefix((count + 511) / 512) where rig.guest.hasPage(reference) {
            let place = rig.guest.sector(reference, 0)
            for number in 0..<min(512, count) {
                // Few of a long list are of the input's making.
                let segment = number < 8 ? segment() : BlockSegment(reference: reference, firstSector: 0, lastSector: 0)
                place.storeBytes(of: segment, toByteOffset: number * 8, as: BlockSegment.self)
            }
        }
        put(
            rig,
            rig.guest.encoder.indirect(
                operation: random.onceIn(12) ? operation() : UInt8(random.below(2)), id: 3, firstSector: sector(),
                segmentCount: UInt16(truncatingIfNeeded: random.onceIn(12) ? random.below(1 << 16) : count),
                references: pages))
    }

    private func raw(on rig: EngineRig) {
        var slot = SlotBytes()
        for (offset, byte) in FuzzInput.takeBytes(atMost: SlotBytes.byteCount).enumerated() {
            slot.store(byte, at: offset)
        }
        put(rig, slot)
    }

    private func scribble(_ pages: TestPages) {
        let offset = random.below(pages.byteCount / 4) * 4
        pages.base.storeBytes(of: UInt32(truncatingIfNeeded: random.next()), toByteOffset: offset, as: UInt32.self)
    }

    private func forge(on rig: EngineRig) {
        let ring = rig.guest.ringPages.shared
        let offset = random.below(4) * 4
        let near = ring.load(at: offset) &+ UInt32(random.below(80)) &- 40
        ring.store(random.onceIn(2) ? near : UInt32(truncatingIfNeeded: random.next()), at: offset)
    }

    private func revoke(on rig: EngineRig) {
        let reference = page()
        if rig.guest.revoked.remove(reference) == nil { rig.guest.revoked.insert(reference) }
    }

    // MARK: What the plugin and Xen do

    private func complete(on rig: EngineRig) {
        rig.plugin.sectorsOfFailedWrite = random.below(20)
        let status = random.onceIn(6) ? random.pick([-EIO, -ENOSPC, -EOPNOTSUPP, Int32.min, 1]) : 0
        rig.plugin.complete(random.below(rig.plugin.held.count), status)
    }

    private func disturb(_ rig: EngineRig) {
        switch random.below(6) {
        case 0: rig.failCopyCall = true
        case 1: rig.plugin.takes = random.pick([nil, 0, 1])
        case 2: rig.engine.tuning.noCoalesce = random.onceIn(2)
        case 3: rig.engine.tuning.disableFlush = random.onceIn(2)
        case 4: rig.engine.tuning.zeroDetection = random.pick([.off, .on, .unmap])
        default: rig.engine.tuning.flushInterval = random.pick([0, 1, 3])
        }
    }

    /// The plugin completes a request that it does not have.
    private func rogue(_ rig: EngineRig) {
        let request = Int32(random.below(rig.port.requestCount))
        guard !rig.plugin.held.contains(where: { $0.sub == request }) else { return }
        rig.port.complete(FakePlugin.pointer(rig.port, request), 0)
    }

    /// The backend dies with all its queues, and another one begins with what it finds. False: it finds nothing of use.
    private func die() -> Bool {
        for rig in rigs { rig.turn(steps: random.below(8)) }
        let end: Predecessor = random.pick([.killed("signal 9"), .crashed("signal 11"), .handedOver])
        for (index, rig) in rigs.enumerated() {
            let takes = rig.plugin.takes
            do {
                try rig.succeed(end)
            } catch {
                isLost = true
                return false
            }
            (rig.plugin.keepsLog, rig.plugin.takes) = (false, takes)
            // The kernel has unmapped what the dead process had.
            if tables.indices.contains(index) { rig.grants?.unmapAll() }
        }
        return true
    }

    // MARK: The end

    func end() -> [String] {
        changesBehindCopies = false
        var problems: [String] = []
        if !isLost {
            for rig in rigs {
                rig.plugin.takes = nil
                rig.failCopyCall = false
            }
            run(rigs)
        }
        for rig in rigs {
            problems += rig.problems
            if !isLost, !rig.isIdle || rig.use != EngineRig.Use() { problems.append("in use at the end: \(rig.use)") }
            rig.grants?.unmapAll()
            for number in 0..<rig.guest.pageCount * 8 {
                let place = rig.guest.pages.base + number * 512
                // What the plugin leaves in the buffer of a failed read.
                if place.load(as: UInt64.self) == 0xEEEE_EEEE_EEEE_EEEE {
                    problems.append("a failed read's buffer is in the guest")
                }
            }
        }
        for table in tables {
            problems += table.problems
            if !table.mapped.isEmpty { problems.append("still mapped: \(table.mapped)") }
        }
        if isReadOnly, let disk = rigs.first?.disk,
            disk.writes > 0 || (0..<sectors).contains(where: { disk.tag($0) != FakeDisk.firstTag($0) })
        {
            problems.append("a read-only disk has changed")
        }
        return problems
    }
}
