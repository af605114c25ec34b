// SPDX-License-Identifier: BSD-2-Clause
// The smallest backend that serves a ring, and that can be told to break any rule of blkfront.
import Blkfront
import Blkif
import CLinux
import Memory
import Synchronization
import Testing
import Xen
import XenLoopback

/// A rule that the backend breaks once, at the request number `at` (from 0).
enum Mischief: Sendable, Equatable {
    case none
    case idBeyondRing
    case idNotPending
    case answersTwice
    case wrongOperation
    case paddingBetweenFields
    case paddingAtEnd
    case producerTooFar
    case producerBackwards
    case keepsGrantMapped
    case fails(BlockStatus)
    case unknownStatus
    case neverAnswers
    /// Answers, and forgets the event.
    case neverNotifies
    /// Answers the requests of a batch in reverse order. No rule forbids it.
    case reversesOrder
}

/// One queue of a backend on a thread of its own.
final class TestBackend: @unchecked Sendable {
    private let grants: LoopbackGrantTable
    private let events: LoopbackEventChannels
    private let mapping: GrantMapping
    private let port: EventPort
    private let domain: DomainID
    private let disk: MemoryDisk
    private let limits: OfferedFeatures
    private let abi: RingABI
    private let mischief: Mischief
    private let mischiefAt: Int
    private let memory: HostMemory
    private var batch = GrantCopyBatch(capacity: 16)
    private var served = 0
    private var executed = 0
    private var kept: GrantMapping?
    private let stopping = Atomic<Bool>(false)
    private let wake = eventfd(0, Int32(EFD_CLOEXEC | EFD_NONBLOCK))
    private var thread: FrontThread?

    init(
        _ platform: LoopbackPlatform, domain: DomainID, references: [UInt32], port remote: EventPort, abi: RingABI,
        disk: MemoryDisk, limits: OfferedFeatures? = nil, mischief: Mischief = .none, at: Int = 0
    ) throws {
        grants = try platform.openGrants()
        events = try platform.openEvents()
        mapping = try grants.map(references, of: domain, writable: true)
        port = try events.bind(remote, of: domain)
        self.domain = domain
        self.disk = disk
        self.limits = limits ?? OfferedFeatures(sectorCount: disk.sectorCount, discard: DiscardSupport())
        self.abi = abi
        self.mischief = mischief
        mischiefAt = at
        memory = try #require(HostMemory(byteCount: 16 * 4096))
        thread = try FrontThread(name: "test-backend") { [self] in serve() }
    }

    /// Ends the thread and gives everything back.
    func stop() throws {
        stopping.store(true, ordering: .releasing)
        _ = eventfd_write(wake, 1)
        thread?.join()
        thread = nil
        try events.unbind(port)
        if let kept { try grants.unmap(kept) }
        try grants.unmap(mapping)
        close(wake)
    }

    private func serve() {
        var ring = BackRing(attaching: mapping.pages, abi: abi)
        while !stopping.load(ordering: .acquiring) {
            do {
                repeat { try answerAll(&ring) } while ring.finalCheck()
                var items = [
                    pollfd(fd: events.fileDescriptor, events: Int16(POLLIN), revents: 0),
                    pollfd(fd: wake, events: Int16(POLLIN), revents: 0),
                ]
                _ = poll(&items, 2, -1)
                if let pending = try events.takePending() { try events.unmask(pending) }
            } catch {
                // A frontend that lies about its ring is not served any more.
                return
            }
        }
    }

    private func answerAll(_ ring: inout BackRing) throws {
        let count = try ring.available()
        var answers: [(ParsedRequest, BlockStatus)] = []
        for _ in 0..<count {
            var slot = SlotBytes()
            ring.take(into: &slot)
            let request = ParsedRequest()
            let refusal = request.parse(slot, layout: ring.layout, disk: limits)
            let status = try refusal?.status ?? execute(request)
            if refusal != nil { disk.count { $0.refused += 1 } }
            answers.append((request, status))
        }
        if mischief == .reversesOrder { answers.reverse() }
        for (request, status) in answers { respond(request, status, &ring) }
        if ring.publish() && mischief != .neverNotifies { try events.notify(port) }
        if mischief == .producerTooFar && served > mischiefAt {
            mapping.pages.storeRelease(ring.responseProducer &+ 1000, at: 8)
            try events.notify(port)
        }
        if mischief == .producerBackwards && served > mischiefAt {
            mapping.pages.storeRelease(ring.responseProducer &- 5, at: 8)
            try events.notify(port)
        }
    }

    private func execute(_ request: ParsedRequest) throws -> BlockStatus {
        defer { executed += 1 }
        disk.count { counts in
            switch request.operation {
            case .read: counts.reads += 1
            case .write: counts.writes += 1
            case .writeBarrier: counts.barriers += 1
            case .flush: counts.flushes += 1
            case .discard: counts.discards += 1
            }
            counts.maxSegments = max(counts.maxSegments, Int(request.segmentCount))
            if request.segmentCount > 0 { counts.firstSectors.insert(request.segments[0].firstSector) }
        }
        if request.operation == .discard {
            disk.store([UInt8](repeating: 0, count: Int(request.sectorCount) * 512), at: Int(request.firstSector) * 512)
            return .okay
        }
        if request.segmentCount == 0 { return .okay }
        if mischief == .keepsGrantMapped && executed == mischiefAt {
            kept = try grants.map([request.segments[0].reference], of: domain, writable: request.operation == .read)
        }
        if request.operation == .read { disk.transfer(request, memory) }
        batch.removeAll()
        var position = 0
        for index in 0..<Int(request.segmentCount) {
            let segment = request.segments[index]
            batch.append(
                reference: segment.reference, of: domain, offset: Int(segment.firstSector) * 512,
                length: segment.sectorCount * 512, host: memory, hostOffset: position,
                toGuest: request.operation == .read)
            position += segment.sectorCount * 512
        }
        try grants.copy(&batch)
        for index in 0..<batch.count where batch.status(at: index) != GrantCopyBatch.okay { return .error }
        if request.operation != .read { disk.transfer(request, memory) }
        return .okay
    }

    private func respond(_ request: ParsedRequest, _ status: BlockStatus, _ ring: inout BackRing) {
        defer { served += 1 }
        let entries = UInt64(ring.entryCount)
        let slot = 64 + Int(ring.responseProducer) % ring.entryCount * ring.layout.slotSize
        guard served == mischiefAt else {
            ring.respond(id: request.id, wireOperation: request.wireOperation, status: status)
            return
        }
        switch mischief {
        case .neverAnswers:
            return
        case .idBeyondRing:
            ring.respond(id: entries, wireOperation: request.wireOperation, status: status)
        case .idNotPending:
            ring.respond(id: (request.id + 1) % entries, wireOperation: request.wireOperation, status: status)
        case .answersTwice:
            ring.respond(id: request.id, wireOperation: request.wireOperation, status: status)
            ring.respond(id: request.id, wireOperation: request.wireOperation, status: status)
        case .wrongOperation:
            ring.respond(id: request.id, wireOperation: request.wireOperation ^ 1, status: status)
        case .fails(let other):
            ring.respond(id: request.id, wireOperation: request.wireOperation, status: other)
        case .unknownStatus:
            ring.respond(id: request.id, wireOperation: request.wireOperation, status: .okay)
            mapping.pages.store(UInt32(request.wireOperation) | 0x1234 << 16, at: slot + 8)
        case .paddingBetweenFields:
            ring.respond(id: request.id, wireOperation: request.wireOperation, status: status)
            mapping.pages.store(UInt32(request.wireOperation) | 0xaa00, at: slot + 8)
        case .paddingAtEnd:
            ring.respond(id: request.id, wireOperation: request.wireOperation, status: status)
            mapping.pages.store(0x5555_0000, at: slot + 12)
        default:
            ring.respond(id: request.id, wireOperation: request.wireOperation, status: status)
        }
    }
}
