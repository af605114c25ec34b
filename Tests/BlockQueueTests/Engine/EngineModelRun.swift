// SPDX-License-Identifier: BSD-2-Clause
// Random requests, completions, failures and limits for one engine, compared with the model.
import Blkif
import CXen
import Glibc
import PluginAPI
import TestSupport

@testable import BlockQueue

/// The life of one disk: requests, completions and failures by chance, until `requestCount` were sent.
final class EngineModelRun {
    var random: SplitMix64
    let rig: EngineRig
    let model: EngineModel
    private let usesTunables: Bool
    private let failures: Int
    private let copyFailures: Int
    private var next = 0
    private var lastOperation = BlockOperation.read
    private let requestCount: Int
    private let dies: Bool
    private let indirectSegments: UInt32
    /// An error of recovery that is planted, which the model must find.
    enum PlantedFault: CaseIterable {
        /// A request in flight is not done again
        case leftOut
        /// They are done again in the wrong order
        case backwards
        /// One is done again in another place of the disk
        case elsewhere
        /// Writes of the dead process reach the disk after those of its successor
        case landsLate
    }

    private let fault: PlantedFault?
    /// Writes that a dead process had in flight: offset and bytes.
    private var late: [(offset: UInt64, bytes: [UInt8])] = []
    private(set) var deaths = 0
    private(set) var sentCount = 0
    private let offersBarrier: Bool
    private let readOnly: Bool

    /// `dies`: the backend is killed now and then and has a successor.
    init(_ source: SplitMix64, requestCount: Int, dies: Bool = false, fault: PlantedFault? = nil) throws {
        self.requestCount = requestCount
        self.fault = fault
        self.dies = dies
        var random = source
        readOnly = random.onceIn(20)
        offersBarrier = !random.onceIn(8)
        indirectSegments = random.pick([0, 8, 20, 32])
        let (readOnly, offersBarrier, indirectSegments) = (readOnly, offersBarrier, indirectSegments)
        rig = try EngineRig { setup in
            setup.ringPages = random.pick([1, 1, 1, 2])
            setup.abi = random.pick(RingABI.allCases)
            setup.startIndex = random.pick([0, 0x7fff_ff00, 0xffff_ff00, UInt32(truncatingIfNeeded: random.next())])
            setup.sectors = random.pick([512, 1024, 2048])
            setup.memoryBytes = random.pick([128, 128, 192, 256, 512, 4096]) << 10
            setup.pluginRequests = random.pick([1, 2, 5, 16, 64])
            setup.readOnly = readOnly
            setup.indirectSegments = indirectSegments
            setup.offersBarrier = offersBarrier
            setup.info.logical_block = random.pick([512, 512, 512, 1024, 4096, 4096])
            setup.info.mem_align = random.pick([0, 0, 512, 4096])
            setup.info.max_transfer = random.pick([0, 0, 4096, 8192, 20480, 65536])
            setup.info.max_iov = random.pick([0, 0, 1, 2, 3])
            setup.info.max_discard = random.pick([0, 4096, 65536])
            setup.info.queue_depth = random.pick([0, 0, 1, 2, 7])
            for capability in [XBB_CAP_FLUSH, XBB_CAP_FUA, XBB_CAP_DISCARD, XBB_CAP_DISCARD_SECURE]
            where random.onceIn(4) {
                setup.remove(UInt64(capability))
            }
            if readOnly { setup.remove(UInt64(XBB_CAP_WRITE)) }
        }
        usesTunables = random.onceIn(3)
        failures = random.pick([1_000_000, 200, 30, 8])
        copyFailures = random.pick([1_000_000, 500, 60])
        if random.onceIn(3) {
            rig.disk.badSectors = Set(
                (0..<(1 + random.below(6))).map { [rig] _ in random.below(rig.disk.sectorCount) })
        }
        self.random = random
        model = EngineModel(rig)
        model.flushesAreSkipped = usesTunables
        rig.plugin.keepsLog = false
        rig.guest.failCopy = { [unowned self] reference, _ in
            guard self.random.onceIn(copyFailures) else { return nil }
            model.copyFails(reference)
            return Int16(self.random.pick([GNTST_bad_gntref, GNTST_permission_denied, GNTST_eagain]))
        }
    }

    /// Until all are sent, or as long as `goesOn` says so.
    func go(while goesOn: () -> Bool = { true }) throws {
        while sentCount < requestCount, goesOn() {
            switch random.below(10) {
            case 0..<4: burst()
            case 4..<7: rig.turn()
            default: complete()
            }
            if random.onceIn(100) { disturb() }
            if dies, random.onceIn(50) { try die() }
            if fault == .landsLate, random.onceIn(20) { landLate() }
            if model.problems.count + rig.problems.count > 0 { return }
            rig.forgetAnswers()
        }
        rig.plugin.takes = nil
        rig.run()
        rig.disk.badSectors = []
        model.checkDisk()
    }

    private func complete() {
        for _ in 0..<(1 + random.below(4)) where !rig.plugin.held.isEmpty {
            rig.plugin.sectorsOfFailedWrite = random.below(20)
            let status = random.onceIn(failures) ? random.pick([-EIO, -ENOSPC, -EOPNOTSUPP, Int32.min, 1]) : 0
            rig.plugin.complete(random.below(rig.plugin.held.count), status)
        }
    }

    /// Things that happen now and then.
    private func disturb() {
        switch random.below(5) {
        case 0: rig.failCopyCall = copyFailures < 1000
        case 1: rig.plugin.takes = random.pick([nil, 0, 1, 3])
        case 2 where usesTunables:
            rig.engine.tuning.noCoalesce = random.onceIn(2)
            rig.engine.tuning.disableFlush = random.onceIn(2)
            rig.engine.tuning.flushInterval = random.pick([0, 1, 3])
            rig.engine.tuning.zeroDetection = random.pick([.off, .on, .unmap])
        case 3: rig.run()
        default:
            // What QueueLoop does when a plugin takes nothing for too long.
            if failures < 1000 && rig.engine.plugin.inFlight == 0 && rig.plugin.takes == 0 { refuseAll() }
            rig.plugin.takes = nil
        }
    }

    /// The backend is killed somewhere in a turn.
    private func die() throws {
        deaths += 1
        rig.turn(steps: random.below(8))
        let kept = rig.plugin.takes
        if fault == .landsLate { late += writesInFlight }
        try rig.succeed(random.onceIn(3) ? .handedOver : .killed("signal 9"))
        rig.plugin.keepsLog = false
        rig.plugin.takes = kept
        if let fault { plant(fault) }
        model.backendDied()
        // What was shown last is seen now at the latest.
        rig.settleAnswers()
    }

    private func plant(_ fault: PlantedFault) {
        switch fault {
        case .leftOut: _ = rig.engine.replays.popFirst()
        case .backwards:
            var all: [Int32] = []
            while let index = rig.engine.replays.popFirst() { all.append(index) }
            for index in all.reversed() { rig.engine.replays.append(index) }
        case .elsewhere:
            if let index = rig.engine.replays.popFirst() {
                rig.engine.replays.prepend(index)
                rig.moveTakenRequest(index, bySectors: 8)
            }
        case .landsLate: break
        }
    }

    private var writesInFlight: [(offset: UInt64, bytes: [UInt8])] {
        rig.plugin.held.filter { $0.op == Int(XBB_OP_WRITE) }.map { ($0.offset, $0.vectors.flatMap { Array($0) }) }
    }

    private func landLate() {
        for (offset, bytes) in late {
            bytes.withUnsafeBytes { all in
                if let base = all.baseAddress { rig.disk.write(offset, UInt64(all.count), base, durable: false) }
            }
        }
        late = []
    }

    private func refuseAll() {
        while rig.engine.plugin.ready.count > 0 {
            let req = rig.port.request(rig.engine.plugin.ready[0]).forPlugin.pointee
            rig.plugin.onFailure?(
                HeldRequest(
                    sub: 0, op: Int(req.op), flags: 0, offset: req.offset, length: req.length, vectors: [],
                    checksum: 0, writesBefore: 0))
            rig.engine.refuseReady(-EIO)
        }
    }

    private func burst() {
        var number = random.pick([1, 1, 2, 4, 8, 16])
        while number > 0 && rig.guest.free > 0 && sentCount < requestCount {
            number -= 1
            if random.onceIn(25) { sendInvalid() } else { sendValid() }
        }
    }

    // MARK: Requests

    private func operation() -> BlockOperation {
        if random.below(10) < 6 { return lastOperation }
        let some: [BlockOperation] = [
            .read, .read, .read, .write, .write, .write, .write, .writeBarrier, .flush, .discard,
        ]
        return random.pick(some)
    }

    private func sendValid() {
        var operation = operation()
        if readOnly { operation = random.onceIn(10) ? .flush : .read }
        if operation == .writeBarrier && !offersBarrier { operation = .write }
        if operation == .discard && !rig.plugin.info.capabilities.contains(.discard) { operation = .write }
        let withoutData =
            (operation == .flush && (readOnly || random.onceIn(2)))
            || (operation == .writeBarrier && random.onceIn(3))
        if withoutData {
            send(operation, 0, [])
            return
        }
        let total = rig.disk.sectorCount
        for _ in 0..<5 {
            let skip = random.onceIn(3) ? random.below(8) : 0
            var count = random.onceIn(3) ? 1 + random.below(80) : (1 + random.below(5)) * 8
            if operation == .discard { count = 1 + random.below(200) }
            var first = random.below(10) < 6 ? next : random.below(total)
            if first + count > total { first = random.below(total - count) }
            let range = first..<(first + count)
            guard model.isFree(range, writing: operation != .read) else { continue }
            next = range.upperBound % total
            lastOperation = operation == .write ? .write : .read
            if operation == .discard {
                sentCount += 1
                model.sending(rig.discard(UInt64(first), UInt64(count)))
            } else {
                if indirectSegments > 0, operation == .read || operation == .write, random.onceIn(3) {
                    guard (skip + count + 7) / 8 <= Int(indirectSegments), rig.freePageCount > 12 else { continue }
                    sendIndirect(operation, first, rig.segments(count, skip: skip))
                    return
                }
                let segments = random.onceIn(4) ? scattered(count) : rig.segments(count, skip: skip)
                send(operation, first, segments ?? rig.segments(count))
            }
            return
        }
    }

    private func send(_ operation: BlockOperation, _ sector: Int, _ segments: [BlockSegment]) {
        sentCount += 1
        rig.writesZeroes = random.onceIn(6)
        let sent = rig.send(operation, sector, segments)
        rig.writesZeroes = false
        if random.onceIn(copyFailures), let segment = segments.first { rig.guest.revoked.insert(segment.reference) }
        model.sending(sent)
    }

    private func sendIndirect(_ operation: BlockOperation, _ sector: Int, _ segments: [BlockSegment]) {
        sentCount += 1
        let sent = rig.sendIndirect(operation, sector, segments)
        if random.onceIn(copyFailures), let page = sent.references.last { rig.guest.revoked.insert(page) }
        model.sending(sent)
    }

    /// Segments that begin and end anywhere in their pages; nil if it would take too many.
    private func scattered(_ count: Int) -> [BlockSegment]? {
        guard count <= 11 else { return nil }
        var left = count
        var list: [BlockSegment] = []
        while left > 0 {
            let first = random.below(8)
            let here = list.count == 10 ? left : min(left, 1 + random.below(8 - first))
            if first + here > 8 { return list.isEmpty ? nil : giveBack(list) }
            list.append(
                BlockSegment(
                    reference: rig.newPage(), firstSector: UInt8(first), lastSector: UInt8(first + here - 1)))
            left -= here
        }
        return list
    }

    private func giveBack(_ list: [BlockSegment]) -> [BlockSegment]? {
        rig.givePagesBack(Sent(id: 0, operation: 0, sector: 0, count: 0, segments: list, tags: []))
        return nil
    }

    private func sendInvalid() {
        sentCount += 1
        let total = rig.disk.sectorCount
        let refusal: Int16 = -1
        switch random.below(8) {
        case 0:
            let id = rig.unusedID(random.next())
            // 6 is an indirect request where these are offered.
            let wire = random.pick(indirectSegments > 0 ? [4, 7, 200, 255] : [4, 6, 7, 200, 255] as [UInt8])
            rig.guest.put(rig.guest.encoder.slot(operation: wire, id: id, firstSector: 0, segments: []))
            rig.expectAnswer(id, wire)
            model.sending(Sent(id: id, operation: wire, sector: 0, count: 0, segments: [], tags: []), refusal: -2)
        case 1: model.sending(rig.send(.read, 0, []), refusal: refusal)
        case 2:
            model.sending(
                rig.send(.read, 0, rig.segments(8), segmentCount: UInt8(12 + random.below(244))), refusal: refusal)
        case 3: model.sending(rig.send(.read, total - 7, rig.segments(8)), refusal: refusal)
        case 4: model.sending(rig.send(.read, -1 - random.below(100), rig.segments(8)), refusal: refusal)
        case 5:
            let bad = BlockSegment(reference: rig.newPage(), firstSector: 5, lastSector: 5)
            let id = rig.unusedID(random.next())
            var slot = rig.guest.encoder.slot(operation: 0, id: id, firstSector: 0, segments: [bad])
            let last = random.pick([4, 8, 255] as [UInt8])
            rig.guest.encoder.setSegment(
                &slot, 0, BlockSegment(reference: bad.reference, firstSector: 5, lastSector: last))
            rig.guest.put(slot)
            rig.expectAnswer(id, 0)
            model.sending(
                Sent(id: id, operation: 0, sector: 0, count: 0, segments: [bad], tags: []), refusal: refusal)
        case 6:
            let can = rig.plugin.info.capabilities.contains(.discard)
            let ranges: [(UInt64, UInt64)] = [(0, 0), (0, UInt64(total) + 1), (.max, 2), (1, .max)]
            let (first, count) = random.pick(ranges)
            model.sending(rig.discard(first, count), refusal: can ? -1 : -2)
        default:
            if readOnly {
                model.sending(rig.send(.write, 0, rig.segments(8)), refusal: refusal)
            } else if !offersBarrier {
                model.sending(rig.send(.writeBarrier, 0, rig.segments(8)), refusal: -2)
            } else {
                model.sending(rig.send(.write, total, rig.segments(1)), refusal: refusal)
            }
        }
    }
}
