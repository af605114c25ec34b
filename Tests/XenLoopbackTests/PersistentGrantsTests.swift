// SPDX-License-Identifier: BSD-2-Clause
// Pages that stay mapped, on the loopback's grant table: what is copied, what is mapped, and that nothing is left.
import Base
import CXen
import Glibc
import Memory
import Testing
@testable import Xen
import XenLoopback

@Suite struct PersistentGrantsTests {
    /// Counts what comes to the real table, and refuses it on demand.
    private final class Counter: GrantTable {
        let base: LoopbackGrantTable
        var copied = 0
        var calls = 0
        var failsCopy = false
        var failsMap = false
        var failsUnmap = false

        init(_ base: LoopbackGrantTable) { self.base = base }

        func copy(_ batch: inout GrantCopyBatch) throws(OperationError) {
            calls += 1
            copied += batch.count
            if failsCopy { throw OperationError(EIO, "copy") }
            try base.copy(&batch)
        }

        func map(_ references: [UInt32], of domain: DomainID, writable: Bool) throws(OperationError) -> GrantMapping {
            if failsMap { throw OperationError(ENOSPC, "map") }
            return try base.map(references, of: domain, writable: writable)
        }

        func unmap(_ mapping: GrantMapping) throws(OperationError) {
            if failsUnmap { throw OperationError(EIO, "unmap") }
            try base.unmap(mapping)
        }
    }

    /// A guest with pages that it has granted, and a table that keeps them.
    private final class Bench {
        let lab: Lab
        let guest: LoopbackDomain
        let table: Counter
        let host: HostMemory
        let first: UInt32
        var kept: PersistentGrants<Counter>?
        var counts = PersistentGrantCounts()
        var now: UInt64 = 1
        var batch: GrantCopyBatch

        init(pages: Int = 64, limit: Int = 32, use: UInt8 = 1, batch: Int = 128) throws {
            lab = try Lab()
            guest = try lab.guest(pages: pages + 8, entries: pages + 64)
            table = Counter(try lab.grants())
            host = try #require(HostMemory(byteCount: 1 << 20))
            first = try guest.allocateFrames(pages)
            self.batch = GrantCopyBatch(capacity: batch)
            kept = PersistentGrants(
                table, of: guest.id, batchCapacity: batch, mapAtUse: use, pages: limit, clock: { [unowned self] in now }
            ) { [unowned self] more in
                counts.copies += more.copies
                counts.maps += more.maps
                counts.unmaps += more.unmaps
                counts.errors += more.errors
            }
        }

        func grant(_ page: Int, readOnly: Bool = false) throws -> UInt32 {
            try guest.grantAccess(to: 0, frame: first + UInt32(page), readOnly: readOnly)
        }

        /// Copies a byte of each page from the guest or to it; the statuses.
        func copy(_ references: [UInt32], toGuest: Bool = false, domain: DomainID? = nil) throws -> [Int16] {
            batch.removeAll()
            for (index, reference) in references.enumerated() {
                batch.append(
                    reference: reference, of: domain ?? guest.id, offset: 512, length: 512, host: host,
                    hostOffset: index * 512, toGuest: toGuest)
            }
            try kept?.copy(&batch)
            return (0..<batch.count).map { batch.status(at: $0) }
        }

        var mapped: Int { get throws { Int(try lab.report(guest.id)?.mappedGrants ?? 0) } }
    }

    @Test func queuesShareThePagesOfADisk() {
        let limits = (1...64).map { (queues: $0, pages: PersistentGrantLimits.pages(ofEachOf: $0)) }
        #expect(limits[0].pages == 1056 && limits[3].pages == 264)
        #expect(limits.allSatisfy { $0.pages >= 16 && $0.queues * $0.pages <= 1056 })
        #expect(PersistentGrantLimits.pages(ofEachOf: 0) == 1056)
    }

    @Test func whatIsUsedAgainIsNoHypercall() throws {
        let bench = try Bench()
        let references = try (0..<16).map { try bench.grant($0) }
        for round in UInt8(1)...3 {
            for page in 0..<16 {
                bench.guest.write([UInt8(page) + round * 20], frame: bench.first + UInt32(page), offset: 512)
            }
            #expect(try bench.copy(references) == Array(repeating: 0, count: 16))
            #expect(
                (0..<16).map { bench.host.bytes(at: $0 * 512, count: 1)[0] } == (0..<16).map { UInt8($0) + round * 20 })
        }
        for page in 0..<16 { bench.host.store([UInt8(page) + 100], at: page * 512 + 511) }
        #expect(try bench.copy(references, toGuest: true) == Array(repeating: 0, count: 16))
        for page in 0..<16 {
            let frame = bench.first + UInt32(page)
            #expect(bench.guest.read(frame: frame, offset: 1023, count: 1) == [UInt8(page) + 100])
            // Bytes beyond the operation are nobody's business.
            #expect(bench.guest.read(frame: frame, offset: 1024, count: 3072).allSatisfy { $0 == 0 })
        }
        #expect(bench.table.calls == 0 && bench.counts == PersistentGrantCounts(copies: 64, maps: 16))
        #expect(try bench.mapped == 16)
        #expect(!bench.guest.endAccess(references[0]), "the frontend sees that the page is mapped")
        bench.kept = nil
        #expect(try bench.mapped == 0 && bench.counts.unmaps == 16)
        for reference in references { #expect(bench.guest.endAccess(reference)) }
    }

    @Test func aPageIsMappedWhenItComesBack() throws {
        let bench = try Bench(use: 3)
        let reference = try bench.grant(0)
        for _ in 0..<2 { #expect(try bench.copy([reference]) == [0]) }
        #expect(bench.table.copied == 2 && bench.counts.maps == 0)
        #expect(try bench.copy([reference]) == [0] && bench.table.copied == 2 && bench.counts.maps == 1)
        bench.kept = nil
        #expect(bench.guest.endAccess(reference))
    }

    @Test func whatCannotBeMappedIsCopiedWithItsOwnStatus() throws {
        let bench = try Bench()
        let good = try bench.grant(0)
        let readOnly = try bench.grant(1, readOnly: true)
        let foreign = try bench.guest.grantAccess(to: 3, frame: bench.first + 2, readOnly: false)
        let absent: UInt32 = 100_000
        for _ in 0..<3 {
            let statuses = try bench.copy([absent, good, readOnly, foreign, good, .max])
            #expect(statuses[1] == 0 && statuses[2] == 0 && statuses[4] == 0)
            #expect(statuses[0] != 0 && statuses[3] != 0 && statuses[5] != 0)
            #expect(try bench.copy([readOnly, good], toGuest: true)[0] != 0)
        }
        // Each was tried once.
        #expect(bench.counts.maps == 1 && bench.counts.errors == 4)
        let other = try bench.lab.guest()
        let theirs = try other.grantAccess(to: 0, frame: other.allocateFrames(1), readOnly: false)
        #expect(try bench.copy([theirs], domain: other.id) == [0])
        #expect(try bench.lab.report(other.id)?.mappedGrants == 0, "pages of another domain are never kept")
        bench.kept = nil
        #expect(try bench.mapped == 0)
    }

    @Test func aPageThatIsRevokedWhileMappedHarmsNothing() throws {
        let bench = try Bench()
        let reference = try bench.grant(0)
        #expect(try bench.copy([reference]) == [0])
        // The guest takes the entry for another page, and for less: the mapping stays that of the page it granted.
        bench.guest.forceRevoke(reference)
        bench.guest.setEntry(
            reference, flags: UInt16(GTF_permit_access | GTF_readonly), domain: 0, frame: bench.first + 9)
        bench.host.store([0x5a], at: 0)
        #expect(try bench.copy([reference], toGuest: true) == [0])
        #expect(bench.guest.read(frame: bench.first, offset: 512, count: 1) == [0x5a])
        #expect(bench.guest.read(frame: bench.first + 9, offset: 512, count: 1) == [0])
        try bench.guest.destroy()
        #expect(try bench.copy([reference]) == [0], "its page is ours as long as it is mapped")
        bench.kept = nil
        #expect(bench.counts.unmaps == 1)
    }

    @Test func theTableIsBoundedAndTheOldestMakesRoom() throws {
        let bench = try Bench(pages: 64, limit: 8)
        let references = try (0..<64).map { try bench.grant($0) }
        bench.now = 10_000_000
        // All at once: eight are mapped, one more takes the place of the oldest, the others are copied.
        #expect(try bench.copy(references) == Array(repeating: 0, count: 64))
        #expect(try bench.mapped == 8)
        #expect(bench.counts.maps == 9 && bench.counts.unmaps == 1 && bench.table.copied == 55)
        // At the same moment nothing makes room.
        #expect(try bench.copy(references) == Array(repeating: 0, count: 64))
        #expect(bench.counts.unmaps == 1)
        // What is used stays, and the oldest goes.
        let used = Array(references[1...4])
        bench.now += 1_000_000_000
        #expect(try bench.copy(used + [references[60]]) == Array(repeating: 0, count: 5))
        bench.table.copied = 0
        #expect(try bench.copy(used) == Array(repeating: 0, count: 4) && bench.table.copied == 0)
        bench.kept = nil
        #expect(try bench.mapped == 0)
        for reference in references { #expect(bench.guest.endAccess(reference)) }
    }

    @Test func aMillionReferencesCostNoMoreThanTheirCopies() throws {
        let bench = try Bench(pages: 4, limit: 1056, batch: 1024)
        let references = try (0..<4).map { try bench.grant($0) }
        var number: UInt32 = 1000
        for _ in 0..<1000 {
            bench.now += 10_000
            // Absent ones: each that is tried costs a call that fails.
            _ = try bench.copy((0..<1000).map { number &+ UInt32($0) })
            number &+= 1000
        }
        #expect(bench.counts.errors <= 256 + 64 && bench.counts.maps == 0)
        #expect(try bench.copy(references) == [0, 0, 0, 0], "and the good ones are served")
        bench.kept = nil
        #expect(try bench.mapped == 0)
    }

    @Test func failuresOfTheKernelLoseNothing() throws {
        let bench = try Bench()
        let references = try (0..<4).map { try bench.grant($0) }
        bench.table.failsMap = true
        #expect(try bench.copy(references) == [0, 0, 0, 0] && bench.table.copied == 4)
        let more = try (4..<8).map { try bench.grant($0) }
        bench.table.failsMap = false
        #expect(try bench.copy(more) == [0, 0, 0, 0])
        bench.table.failsCopy = true
        #expect(throws: OperationError.self) { try bench.copy(more + references) }
        #expect(try bench.copy(more) == [0, 0, 0, 0], "what is mapped needs no call")
        bench.table.failsUnmap = true
        bench.kept = nil
        #expect(bench.counts.errors == 8 && bench.counts.unmaps == 0)
    }

    @Test func aBatchMapsABoundedNumber() throws {
        let bench = try Bench(pages: 128, limit: 1056)
        let references = try (0..<128).map { try bench.grant($0) }
        #expect(try bench.copy(references) == Array(repeating: 0, count: 128) && bench.counts.maps == 64)
        #expect(try bench.copy(references) == Array(repeating: 0, count: 128) && bench.counts.maps == 128)
        bench.kept = nil
        #expect(try bench.mapped == 0)
    }
}
