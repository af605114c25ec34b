// SPDX-License-Identifier: BSD-2-Clause
// Pages of a guest that stay mapped: they are copied from and to, and nobody else sees them.
import Blkif
import Glibc
import Memory
import PluginAPI
import Testing
import Xen

@testable import BlockQueue

@Suite("Pages that stay mapped")
struct MappedPageTests {
    /// A rig whose guest's pages are mapped at their first use.
    private func rig() throws -> (EngineRig, GuestGrants) {
        let rig = try EngineRig { $0.indirectSegments = 32 }
        let table = GuestGrants(rig.guest)
        rig.grants = PersistentGrants(
            table, of: FakeGuest.domain, batchCapacity: 512, mapAtUse: 1, pages: 1056, report: { _ in })
        return (rig, table)
    }

    @Test("what the storage gets is private memory and never a guest's page, mapped or not (XSA-229)")
    func storageGetsPrivateMemory() throws {
        let (rig, table) = try rig()
        let guest = UInt(bitPattern: rig.guest.pages.base)
        let pages = guest..<guest + UInt(rig.guest.pages.byteCount)
        let own = UInt(bitPattern: rig.memory.address(at: 0, count: 1))
        let memory = own..<own + UInt(rig.memory.byteCount)
        for round in 0..<3 {
            var sent = [rig.write(0, 40), rig.read(100, 16), rig.flush(300, 8), rig.barrier(400, 8)]
            sent.append(rig.sendIndirect(.write, 1000, rig.segments(200)))
            for _ in 0..<20 where rig.unanswered > 0 {
                rig.settle()
                for request in rig.plugin.held {
                    for vector in request.vectors {
                        let start = UInt(bitPattern: vector.baseAddress)
                        #expect(
                            memory.contains(start) && start + UInt(vector.count) <= memory.upperBound, "round \(round)")
                        #expect(!pages.contains(start), "round \(round): a page of the guest is with the storage")
                    }
                }
                rig.plugin.completeAll()
            }
            #expect(rig.statuses(sent).allSatisfy { $0 == 0 })
            sent.forEach(rig.givePagesBack)
        }
        #expect(!table.mapped.isEmpty, "the pages were mapped meanwhile")
        rig.expectIdle()
    }

    @Test("a page that its guest changes while the storage writes changes nothing that is written")
    func changedWhileItIsWritten() throws {
        let (rig, _) = try rig()
        // Mapped by the first write, used from there by the second.
        let first = rig.write(0, 8)
        rig.run()
        rig.givePagesBack(first)
        let second = rig.write(8, 8)
        rig.settle()
        for place in rig.addresses(second.segments) { memset(place, 0x5a, 512) }
        // The plugin compares what it was given with what it has at the end.
        rig.plugin.completeAll()
        rig.run()
        #expect(rig.isOnDisk(second))
        rig.expectIdle()
    }

    @Test("every page is unmapped once, also where some cannot be mapped and the backend is killed (XSA-365, XSA-371)")
    func everyPageIsUnmappedOnce() throws {
        for failing in 0..<12 {
            let (rig, table) = try rig()
            var number = 0
            table.allowsMapping = { _ in
                number += 1
                return number % 12 != failing
            }
            let sent = (0..<8).map { $0 % 2 == 0 ? rig.write($0 * 16, 16) : rig.read($0 * 16, 16) }
            rig.turn(steps: failing % 8)
            try rig.succeed()
            rig.run()
            #expect(rig.statuses(sent).allSatisfy { $0 == 0 })
            rig.grants?.unmapAll()
            #expect(table.mapped.isEmpty && table.problems == [], "\(table.mapped)")
            #expect(rig.problems == [])
        }
    }
}
