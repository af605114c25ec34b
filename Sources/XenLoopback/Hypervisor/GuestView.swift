// SPDX-License-Identifier: BSD-2-Clause
// A grant-table handle's view of a domain: its memory and its tables, mapped once.
import Base
import Glibc
import Xen

/// A domain's memory and tables in the process of a backend, with the slot of this handle for marking copies.
final class GuestView {
    let domain: DomainID
    /// The broker's number for this incarnation of the domain.
    let serial: UInt32
    let pageCount: Int
    let entryCount: Int
    let file: Descriptor
    let memory: SharedRegion
    let grants: SharedRegion
    let active: SharedRegion
    /// Offset of this handle's mark for entry 0.
    let marks: Int

    /// Asks the broker for the domain; ESRCH if there is none, ENOSPC if too many handles use it.
    init(_ domain: DomainID, over connection: HypervisorConnection) throws(OperationError) {
        let purpose = "use grants of domain \(domain)"
        let answer = try connection.call(.attach, [UInt32(domain)], for: purpose)
        let files = answer.descriptors
        guard files.count == 3 else { throw OperationError(EPROTO, purpose) }
        self.domain = domain
        serial = answer.word(0)
        pageCount = Int(answer.word(1))
        entryCount = Int(answer.word(2))
        file = files[0]
        memory = try SharedRegion(files[0], byteCount: max(pageCount, 1) * GrantTableLayout.pageBytes)
        grants = try SharedRegion(files[1], byteCount: GrantTableLayout.grantsBytes(entries: entryCount))
        active = try SharedRegion(files[2], byteCount: GrantTableLayout.activeBytes(entries: entryCount))
        marks = GrantTableLayout.markOffset(slot: Int(answer.word(3)), entries: entryCount)
    }

    /// False once the domain was destroyed.
    var isAlive: Bool { active.load32(at: GrantTableLayout.aliveOffset) != 0 }

    /// Marks an entry before a copy from or to it. A full fence must follow.
    @inline(__always)
    func mark(_ reference: Int) {
        active.store8(1, at: marks + reference * GrantTableLayout.entryBytes)
    }

    /// Clears the mark after the copy.
    @inline(__always)
    func unmark(_ reference: Int) {
        active.storeRelease8(0, at: marks + reference * GrantTableLayout.entryBytes)
    }

    /// Reads an entry that is marked.
    @inline(__always)
    func entry(_ reference: Int) -> GrantEntry {
        GrantEntry(grants.load64(at: reference * GrantTableLayout.entryBytes))
    }
}
