// SPDX-License-Identifier: BSD-2-Clause
// The grant table of a fake guest, for backends that keep its pages mapped.
import Base
import Glibc
import Memory
import Xen

@testable import BlockQueue

/// Copies and maps pages of one ``FakeGuest``.
final class GuestGrants: GrantTable {
    private unowned let guest: FakeGuest
    /// Pages that are mapped now, by reference.
    private(set) var mapped: [UInt32: Int] = [:]
    /// What was unmapped that was not mapped.
    private(set) var problems: [String] = []
    /// Asked for each page to be mapped: false refuses it.
    var allowsMapping: (UInt32) -> Bool = { _ in true }

    init(_ guest: FakeGuest) { self.guest = guest }

    func copy(_ batch: inout GrantCopyBatch) throws(OperationError) { guest.execute(&batch) }

    func map(_ references: [UInt32], of domain: DomainID, writable: Bool) throws(OperationError) -> GrantMapping {
        guard references.count == 1, let reference = references.first, domain == FakeGuest.domain,
            guest.hasPage(reference), !guest.revoked.contains(reference), allowsMapping(reference)
        else { throw OperationError(EINVAL, "map a page") }
        mapped[reference, default: 0] += 1
        let page = guest.sector(reference, 0)
        return GrantMapping(pages: SharedPages(base: page, byteCount: 4096), cookie: UInt64(reference))
    }

    func unmap(_ mapping: GrantMapping) throws(OperationError) {
        let reference = UInt32(truncatingIfNeeded: mapping.cookie)
        guard let count = mapped[reference], count > 0 else {
            problems.append("page \(reference) is unmapped and was not mapped")
            throw OperationError(EINVAL, "unmap a page")
        }
        mapped[reference] = count == 1 ? nil : count - 1
    }
}
