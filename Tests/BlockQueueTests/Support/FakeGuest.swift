// SPDX-License-Identifier: BSD-2-Clause
// A frontend in the test's own memory: a ring, pages behind grant references, and what the hypervisor does with them.
import Blkif
import CXen
import Glibc
import Memory
import Xen

@testable import BlockQueue

/// A guest with one ring and pages of its own.
final class FakeGuest {
    /// The reference of the guest's first page; the next page has the next one.
    static let firstReference: UInt32 = 5000
    static let domain: DomainID = 7

    let ringPages: TestPages
    let pages: TestPages
    let pageCount: Int
    private(set) var front: FrontRing
    let encoder: RequestEncoder
    /// References that copies must not use.
    var revoked: Set<UInt32> = []
    /// Asked for each copy: nil lets it happen, else its status.
    var failCopy: ((_ reference: UInt32, _ toGuest: Bool) -> Int16?)?
    /// Called for each copy that is done.
    var onCopy: ((_ reference: UInt32, _ toGuest: Bool) -> Void)?
    private(set) var copies = 0

    init(ringPageCount: Int, abi: RingABI, startIndex: UInt32, pageCount: Int) {
        ringPages = TestPages(pages: ringPageCount)
        pages = TestPages(pages: pageCount, filling: 0)
        self.pageCount = pageCount
        front = FrontRing(initializing: ringPages.shared, abi: abi, startIndex: startIndex)
        encoder = RequestEncoder(layout: RingLayout(abi))
    }

    func put(_ slot: SlotBytes) { front.put(slot) }
    func publish() -> Bool { front.publish() }
    func forgeRequestProducer(_ value: UInt32) { front.forgeRequestProducer(value) }
    var free: Int { front.free }

    /// All responses that can be seen now.
    func takeResponses() throws -> [BlockResponse] {
        let count = try front.available()
        return (0..<count).map { _ in front.take() }
    }

    /// A reference that the guest has granted once.
    func hasPage(_ reference: UInt32) -> Bool {
        reference >= Self.firstReference && reference < Self.firstReference + UInt32(pageCount)
    }

    /// The address of a sector of the page behind a reference.
    func sector(_ reference: UInt32, _ number: Int) -> UnsafeMutableRawPointer {
        let page = Int(reference) - Int(Self.firstReference)
        precondition(page >= 0 && page < pageCount && number >= 0 && number < 8)
        return pages.base + page * 4096 + number * 512
    }

    /// Does what the hypervisor does with a batch of copies.
    func execute(_ batch: inout GrantCopyBatch) {
        let segments = batch.segments
        for index in segments.indices { segments[index].status = status(of: &segments[index]) }
    }

    private func status(of operation: inout xengnttab_grant_copy_segment_t) -> Int16 {
        let reference = cxen_copy_reference(&operation)
        let toGuest = cxen_copy_to_guest(&operation) != 0
        copies += 1
        guard cxen_copy_domain(&operation) == Self.domain else { return Int16(GNTST_bad_domain) }
        let offset = Int(cxen_copy_offset(&operation))
        let length = Int(operation.len)
        if let status = failCopy?(reference, toGuest) { return status }
        guard hasPage(reference), !revoked.contains(reference) else { return Int16(GNTST_bad_gntref) }
        guard length > 0, offset + length <= 4096 else { return Int16(GNTST_bad_copy_arg) }
        let guest = pages.base + (Int(reference) - Int(Self.firstReference)) * 4096 + offset
        if toGuest {
            memcpy(guest, cxen_copy_host(&operation), length)
        } else {
            memcpy(cxen_copy_host(&operation), guest, length)
        }
        onCopy?(reference, toGuest)
        return 0
    }
}
