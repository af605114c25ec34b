// SPDX-License-Identifier: BSD-2-Clause
// Grant copies: the bytes, and each rule that Xen and gntdev enforce.
import Base
import CXen
import Glibc
import Memory
import Testing
import Xen
import XenLoopback

@Suite struct GrantCopyTests {
    @Test func bytesGoBothWays() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let table = try lab.grants()
        let host = try hostMemory()
        let frame = try guest.allocateFrames(2)
        let pattern = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        guest.write(pattern, frame: frame)
        let source = try guest.grantAccess(to: 0, frame: frame, readOnly: true)
        let target = try guest.grantAccess(to: 0, frame: frame + 1, readOnly: false)

        #expect(
            try run([Copy(reference: source, domain: guest.id, hostOffset: 4096)], on: table, host: host) == [0])
        #expect(host.bytes(at: 4096, count: 4096) == pattern)
        let part = Copy(
            reference: target, domain: guest.id, offset: 512, length: 1536, hostOffset: 4096 + 100, toGuest: true)
        #expect(try run([part], on: table, host: host) == [0])
        #expect(guest.read(frame: frame + 1, count: 512) == [UInt8](repeating: 0, count: 512))
        #expect(guest.read(frame: frame + 1, offset: 512, count: 1536) == Array(pattern[100..<1636]))
        #expect(guest.read(frame: frame + 1, offset: 2048, count: 2048) == [UInt8](repeating: 0, count: 2048))
        #expect(guest.endAccess(source))
        #expect(guest.endAccess(target))
    }

    @Test func everyBadOperationHasItsStatusAndTheOthersAreDone() throws {
        let lab = try Lab()
        let guest = try lab.guest(pages: 16, entries: 64)
        let table = try lab.grants()
        let host = try hostMemory()
        let frame = try guest.allocateFrames(1)
        guest.write([1, 2, 3, 4], frame: frame)
        let good = try guest.grantAccess(to: 0, frame: frame, readOnly: true)
        let foreign = try guest.grantAccess(to: 7, frame: frame, readOnly: false)
        let ended = try guest.grantAccess(to: 0, frame: frame, readOnly: false)
        #expect(guest.endAccess(ended))
        guest.setEntry(40, flags: UInt16(GTF_permit_access), domain: 0, frame: 16)
        guest.setEntry(41, flags: UInt16(GTF_permit_access), domain: 0, frame: 0xffff_ffff)
        guest.setEntry(42, flags: UInt16(GTF_accept_transfer), domain: 0, frame: frame)
        guest.setEntry(43, flags: UInt16(GTF_transitive), domain: 0, frame: frame)

        func copy(_ reference: UInt32, toGuest: Bool = false, of domain: DomainID? = nil) -> Copy {
            Copy(reference: reference, domain: domain ?? guest.id, length: 4, toGuest: toGuest)
        }
        let rules: [(Copy, Int32)] = [
            (copy(good), GNTST_okay),
            (copy(good, toGuest: true), GNTST_general_error),  // read-only
            (copy(foreign), GNTST_general_error),
            (copy(ended), GNTST_general_error),
            (copy(50), GNTST_general_error),  // never granted
            (copy(64), GNTST_bad_gntref),
            (copy(0xffff_ffff), GNTST_bad_gntref),
            (copy(40), GNTST_bad_page),
            (copy(41, toGuest: true), GNTST_bad_page),
            (copy(42), GNTST_general_error),
            (copy(43), GNTST_general_error),
            (copy(good, of: 99), GNTST_bad_domain),
            (copy(good, of: 0), GNTST_general_error),
            (copy(good, of: 0x7ff0), GNTST_bad_domain),
        ]
        for (operation, status) in rules {
            // Alone, and between two good ones.
            #expect(try run([operation], on: table, host: host) == [Int16(status)], "\(operation)")
            host.clear(at: 0, count: 8192)
            var first = copy(good)
            var last = copy(good)
            first.hostOffset = 4096
            last.hostOffset = 4096 + 8
            #expect(
                try run([first, operation, last], on: table, host: host) == [0, Int16(status), 0], "\(operation)")
            #expect(host.bytes(at: 4096, count: 4) == [1, 2, 3, 4])
            #expect(host.bytes(at: 4104, count: 4) == [1, 2, 3, 4])
        }
        #expect(guest.read(frame: frame, count: 4) == [1, 2, 3, 4])
        let report = try #require(try lab.report(guest.id))
        #expect(report.copyingReferences == 0)
        #expect(report.mappedGrants == 0)
    }

    @Test func anOperationThatCrossesItsPageRefusesTheBatch() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let table = try lab.grants()
        let host = try hostMemory()
        let frame = try guest.allocateFrames(1)
        let reference = try guest.grantAccess(to: 0, frame: frame, readOnly: false)
        var batch = GrantCopyBatch(capacity: 2)
        for _ in 0..<2 {
            batch.append(
                reference: reference, of: guest.id, offset: 0, length: 4096, host: host, hostOffset: 0, toGuest: true)
        }
        host.store([9, 9, 9], at: 0)
        batch.segments[1].dest.foreign.offset = 1
        #expect(throws: OperationError(EINVAL, "grant copy of 2 operations")) { try table.copy(&batch) }
        #expect(guest.read(frame: frame, count: 3) == [0, 0, 0])
        #expect(batch.status(at: 0) == Int16(GNTST_general_error))
    }

    @Test func anEmptyOperationIsOkayWhateverItNames() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let table = try lab.grants()
        let host = try hostMemory()
        var batch = GrantCopyBatch(capacity: 2)
        for domain in [guest.id, 1234] {
            batch.append(
                reference: 77, of: domain, offset: 0, length: 1, host: host, hostOffset: 0, toGuest: false)
        }
        for index in 0..<2 { batch.segments[index].len = 0 }
        try table.copy(&batch)
        #expect(batch.status(at: 0) == 0)
        #expect(batch.status(at: 1) == 0)
    }

    @Test func withoutDataTheChecksStay() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let table = try lab.grants(copiesData: false)
        let host = try hostMemory()
        let frame = try guest.allocateFrames(1)
        guest.write([5], frame: frame)
        let good = try guest.grantAccess(to: 0, frame: frame, readOnly: true)
        let statuses = try run(
            [
                Copy(reference: good, domain: guest.id),
                Copy(reference: good, domain: guest.id, toGuest: true),
                Copy(reference: 100, domain: guest.id),
            ], on: table, host: host)
        #expect(statuses == [0, Int16(GNTST_general_error), Int16(GNTST_general_error)])
        #expect(host.bytes(at: 0, count: 1) == [0])
    }

    @Test func aBatchMayNameSeveralDomains() throws {
        let lab = try Lab()
        let guests = try (0..<3).map { _ in try lab.guest() }
        let table = try lab.grants()
        let host = try hostMemory()
        var copies: [Copy] = []
        for index in 0..<12 {
            let guest = guests[index % 3]
            let frame = try guest.allocateFrames(1)
            guest.write([UInt8(index)], frame: frame)
            copies.append(
                Copy(
                    reference: try guest.grantAccess(to: 0, frame: frame, readOnly: true), domain: guest.id,
                    length: 1, hostOffset: index))
        }
        #expect(try run(copies, on: table, host: host) == [Int16](repeating: 0, count: 12))
        #expect(host.bytes(at: 0, count: 12) == (0..<12).map { UInt8($0) })
    }

    @Test func aDestroyedDomainIsUnknownAndANewOneWithItsNumberIsSeen() throws {
        let lab = try Lab()
        let table = try lab.grants()
        let host = try hostMemory()
        for life in 1...3 {
            let guest = try LoopbackDomain(directory: lab.directory, domain: 5, pages: 4, grantEntries: 32)
            let frame = try guest.allocateFrames(1)
            guest.write([UInt8(life)], frame: frame)
            let reference = try guest.grantAccess(to: 0, frame: frame, readOnly: true)
            let copy = Copy(reference: reference, domain: 5, length: 1)
            #expect(try run([copy], on: table, host: host) == [0])
            #expect(host.bytes(at: 0, count: 1) == [UInt8(life)])
            #expect(try lab.report(5)?.grantHandles == 1)
            try guest.destroy()
            #expect(!guest.isAlive)
            #expect(try run([copy], on: table, host: host) == [Int16(GNTST_bad_domain)])
            #expect(guest.read(frame: frame, count: 1) == [UInt8(life)])
        }
    }

    @Test func aDriverDomainUsesOnlyWhatIsGrantedToIt() throws {
        let lab = try Lab()
        let driver = try LoopbackControl(directory: lab.directory).createDomain(pages: 1)
        let guest = try lab.guest()
        let host = try hostMemory()
        let frame = try guest.allocateFrames(1)
        let forDriver = try guest.grantAccess(to: driver, frame: frame, readOnly: true)
        let forZero = try guest.grantAccess(to: 0, frame: frame, readOnly: true)
        let copies = [Copy(reference: forDriver, domain: guest.id), Copy(reference: forZero, domain: guest.id)]
        #expect(try run(copies, on: lab.grants(of: driver), host: host) == [0, Int16(GNTST_general_error)])
        #expect(try run(copies, on: lab.grants(of: 0), host: host) == [Int16(GNTST_general_error), 0])
    }

    @Test func a257thHandleCannotCopyAndMarksOfAllSlotsAreSeen() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let host = try hostMemory()
        let frame = try guest.allocateFrames(1)
        let reference = try guest.grantAccess(to: 0, frame: frame, readOnly: true)
        let copy = Copy(reference: reference, domain: guest.id)
        var tables = try (0..<256).map { _ in try lab.grants() }
        for table in tables { #expect(try run([copy], on: table, host: host) == [0]) }
        let late = try lab.grants()
        #expect(try run([copy], on: late, host: host) == [Int16(GNTST_general_error)])
        #expect(try lab.report(guest.id)?.grantHandles == 256)
        tables.removeLast(100)
        try lab.eventually(guest.id) { $0?.grantHandles == 156 }
        #expect(try run([copy], on: late, host: host) == [0])
        #expect(guest.endAccess(reference))
    }
}
