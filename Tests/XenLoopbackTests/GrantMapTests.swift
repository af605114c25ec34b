// SPDX-License-Identifier: BSD-2-Clause
// Grant maps, and what a frontend sees of grants that are in use.
import Base
import CXen
import Glibc
import Memory
import Testing
import Xen
import XenLoopback

@Suite struct GrantMapTests {
    private let reading = UInt16(GTF_reading)
    private let writing = UInt16(GTF_writing)

    @Test func pagesLieSideBySideInTheOrderOfTheReferences() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let table = try lab.grants()
        let first = try guest.allocateFrames(8)
        let order: [UInt32] = [3, 4, 5, 0, 7, 6, 0]
        var references: [UInt32] = []
        for frame in 0..<8 { guest.write([UInt8(frame) + 10], frame: first + UInt32(frame)) }
        for frame in order {
            references.append(try guest.grantAccess(to: 0, frame: first + frame, readOnly: false))
        }
        let mapping = try table.map(references, of: guest.id, writable: true)
        #expect(mapping.pages.byteCount == order.count * 4096)
        for (index, frame) in order.enumerated() {
            #expect(mapping.pages.load(at: index * 4096) == frame + 10)
        }
        for (index, frame) in order.enumerated() {
            mapping.pages.store(frame + 100, at: index * 4096)
            #expect(guest.pages(at: first + frame).load(at: 0) == frame + 100)
        }
        #expect(try lab.report(guest.id)?.mappedGrants == 7)
        try table.unmap(mapping)
        #expect(try lab.report(guest.id)?.mappedGrants == 0)
        #expect(throws: OperationError.self) { try table.unmap(mapping) }
    }

    @Test func oneBadReferenceAnywhereMapsNothing() throws {
        let lab = try Lab()
        let guest = try lab.guest(pages: 32, entries: 64)
        let table = try lab.grants()
        let first = try guest.allocateFrames(10)
        let good = try (0..<10).map { try guest.grantAccess(to: 0, frame: first + $0, readOnly: false) }
        let readOnly = try guest.grantAccess(to: 0, frame: first, readOnly: true)
        let foreign = try guest.grantAccess(to: 3, frame: first, readOnly: false)
        guest.setEntry(60, flags: UInt16(GTF_permit_access), domain: 0, frame: 32)
        guest.setEntry(61, flags: UInt16(GTF_permit_access) | UInt16(GTF_sub_page), domain: 0, frame: 1)
        for bad: UInt32 in [readOnly, foreign, 60, 61, 62, 64, 0xffff_ffff] {
            for position in 0...10 {
                var references = good
                references.insert(bad, at: position)
                let error = #expect(throws: OperationError.self) {
                    try table.map(references, of: guest.id, writable: true)
                }
                #expect(error?.code == EINVAL)
            }
            #expect(guest.entryFlags(good[0]) & (reading | writing) == 0)
        }
        #expect(throws: OperationError.self) { try table.map([], of: guest.id, writable: true) }
        #expect(throws: OperationError.self) { try table.map(good, of: 99, writable: true) }
        #expect(try lab.report(guest.id)?.mappedGrants == 0)
        for reference in good + [readOnly, foreign] { #expect(guest.endAccess(reference)) }
    }

    @Test func aReadOnlyMapCannotBeWritten() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let table = try lab.grants()
        let frame = try guest.allocateFrames(1)
        let reference = try guest.grantAccess(to: 0, frame: frame, readOnly: true)
        let mapping = try table.map([reference], of: guest.id, writable: false)
        #expect(guest.entryFlags(reference) & (reading | writing) == reading)
        // The kernel stores into the page on our behalf, and says EFAULT where we would get SIGSEGV.
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        #expect(write(ends[1], "x", 1) == 1)
        let page = try #require(UnsafeMutableRawPointer(bitPattern: UInt(mapping.cookie)))
        #expect(read(ends[0], page, 1) == -1)
        #expect(errno == EFAULT)
        close(ends[0])
        close(ends[1])
        try table.unmap(mapping)
    }

    @Test func useIsCountedAndShownInTheFlags() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let tables = [try lab.grants(), try lab.grants()]
        let frame = try guest.allocateFrames(1)
        let reference = try guest.grantAccess(to: 0, frame: frame, readOnly: false)
        func use() -> UInt16 { guest.entryFlags(reference) & (reading | writing) }

        let reader = try tables[0].map([reference], of: guest.id, writable: false)
        #expect(use() == reading)
        let writers = try tables.map { try $0.map([reference], of: guest.id, writable: true) }
        #expect(use() == reading | writing)
        try tables[0].unmap(writers[0])
        #expect(use() == reading | writing)
        #expect(guest.isInUse(reference))
        #expect(!guest.endAccess(reference))
        try tables[1].unmap(writers[1])
        #expect(use() == reading)
        #expect(!guest.endAccess(reference))
        try tables[0].unmap(reader)
        #expect(use() == 0)
        #expect(!guest.isInUse(reference))
        #expect(guest.endAccess(reference))
    }

    @Test func aPageMappedTwiceInOneCallIsCountedTwice() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let table = try lab.grants()
        let reference = try guest.grantAccess(to: 0, frame: try guest.allocateFrames(1), readOnly: false)
        let mapping = try table.map([reference, reference], of: guest.id, writable: true)
        #expect(try lab.report(guest.id)?.mappedGrants == 2)
        mapping.pages.store(7, at: 4096)
        #expect(mapping.pages.load(at: 0) == 7)
        try table.unmap(mapping)
        #expect(guest.endAccess(reference))
    }

    @Test func aRevokedGrantStaysMappedAsItWas() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let table = try lab.grants()
        let frame = try guest.allocateFrames(2)
        let reference = try guest.grantAccess(to: 0, frame: frame, readOnly: false)
        let mapping = try table.map([reference], of: guest.id, writable: false)
        guest.forceRevoke(reference)
        #expect(!guest.isInUse(reference))
        guest.write([42], frame: frame)
        #expect(mapping.pages.load(at: 0) == 42)
        // Xen goes by its active entry while the page is pinned: a further reader gets the old frame, a writer is
        // judged by what the entry says now.
        guest.setEntry(reference, flags: UInt16(GTF_permit_access | GTF_readonly), domain: 0, frame: frame + 1)
        let second = try table.map([reference], of: guest.id, writable: false)
        #expect(second.pages.load(at: 0) == 42)
        #expect(throws: OperationError.self) { try table.map([reference], of: guest.id, writable: true) }
        try table.unmap(mapping)
        try table.unmap(second)
        #expect(try lab.report(guest.id)?.mappedGrants == 0)
        #expect(guest.endAccess(reference))
    }

    @Test func aPinnedGrantIsRefusedToAnotherDomain() throws {
        let lab = try Lab()
        let driver = try LoopbackControl(directory: lab.directory).createDomain(pages: 1)
        let guest = try lab.guest()
        let reference = try guest.grantAccess(to: 0, frame: 0, readOnly: false)
        let table = try lab.grants()
        let mapping = try table.map([reference], of: guest.id, writable: false)
        guest.setEntry(reference, flags: UInt16(GTF_permit_access), domain: driver, frame: 0)
        let other = try lab.grants(of: driver)
        #expect(throws: OperationError.self) { try other.map([reference], of: guest.id, writable: false) }
        try table.unmap(mapping)
        try other.unmap(try other.map([reference], of: guest.id, writable: false))
    }

    @Test func memoryOfADestroyedDomainStaysWithWhoMapsIt() throws {
        let lab = try Lab()
        let table = try lab.grants()
        let mapping: GrantMapping
        let id: DomainID
        do {
            let guest = try lab.guest()
            id = guest.id
            guest.write([77], frame: 0)
            mapping = try table.map(
                [try guest.grantAccess(to: 0, frame: 0, readOnly: false)], of: id, writable: true)
        }
        try lab.eventually(id) { $0 == nil }
        #expect(mapping.pages.load(at: 0) == 77)
        mapping.pages.store(78, at: 0)
        #expect(mapping.pages.load(at: 0) == 78)
        let zombie = try #require(try lab.xen.domains().first { $0.id == id })
        #expect(!zombie.isAlive)
        #expect(zombie.mappedGrants == 1)
        #expect(throws: OperationError.self) { try table.map([8], of: id, writable: false) }
        try table.unmap(mapping)
        #expect(try lab.xen.domains().map(\.id) == [0])
    }

    @Test func closingTheTableUnmapsAndReleases() throws {
        let lab = try Lab()
        let guest = try lab.guest()
        let reference = try guest.grantAccess(to: 0, frame: 0, readOnly: false)
        do {
            let table = try lab.grants()
            _ = try table.map([reference], of: guest.id, writable: true)
            #expect(!guest.endAccess(reference))
        }
        try lab.eventually(guest.id) { $0?.mappedGrants == 0 && $0?.grantHandles == 0 }
        #expect(guest.endAccess(reference))
    }

    @Test func manyPagesInOneMap() throws {
        let lab = try Lab()
        let guest = try lab.guest(pages: 16384, entries: 32768)
        let table = try lab.grants()
        let first = try guest.allocateFrames(16384)
        var references = try (0..<16384).map { try guest.grantAccess(to: 0, frame: first + $0, readOnly: false) }
        let mapping = try table.map(references, of: guest.id, writable: true)
        #expect(try lab.report(guest.id)?.mappedGrants == 16384)
        mapping.pages.store(1, at: 16383 * 4096)
        #expect(guest.read(frame: first + 16383, count: 1) == [1])
        try table.unmap(mapping)
        references.append(references[0])
        #expect(throws: OperationError.self) { try table.map(references, of: guest.id, writable: true) }
        #expect(try lab.report(guest.id)?.mappedGrants == 0)
    }
}
