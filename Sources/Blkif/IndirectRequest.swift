// SPDX-License-Identifier: BSD-2-Clause
// Requests whose segments stand in pages of their own (`BLKIF_OP_INDIRECT`).
import Memory

extension BlkifLimits {
    /// `BLKIF_OP_INDIRECT`
    @inlinable public static var indirectOperation: UInt8 { 6 }
    /// `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`
    @inlinable public static var indirectPagesPerRequest: Int { 8 }
    /// Segments in one page: `XEN_PAGE_SIZE / sizeof(struct blkif_request_segment)`.
    @inlinable public static var segmentsPerIndirectPage: Int { 512 }
    /// The most segments of a request: those of eight pages.
    public static var mostIndirectSegments: UInt32 { UInt32(indirectPagesPerRequest * segmentsPerIndirectPage) }
    /// Bytes of a segment in such a page.
    @inlinable public static var segmentSize: Int { 8 }
}

/// What a slot says of an indirect request: which pages hold its segments. They are fetched before it can be parsed.
///
/// ```
/// struct blkif_request_indirect {   x86_64  x86_32
///     uint8_t        operation;          0       0
///     uint8_t        indirect_op;        1       1
///     uint16_t       nr_segments;        2       2
///     uint64_t       id;                 8       4
///     blkif_sector_t sector_number;     16      12
///     blkif_vdev_t   handle;            24      20
///     grant_ref_t    indirect_grefs[8]; 28      24
/// };
/// ```
public struct IndirectRequest: BitwiseCopyable, Sendable {
    /// Grant references of the pages; those that ``pageCount`` counts are valid.
    public let references: InlineArray<8, UInt32>
    /// Segments, 1 to the number that was offered.
    public let segmentCount: Int
    /// Pages that hold them.
    public var pageCount: Int {
        (segmentCount + BlkifLimits.segmentsPerIndirectPage - 1) / BlkifLimits.segmentsPerIndirectPage
    }

    /// Bytes of a page's beginning that hold segments; `page` is less than ``pageCount``.
    public func byteCount(ofPage page: Int) -> Int {
        let left = segmentCount - page * BlkifLimits.segmentsPerIndirectPage
        return min(left, BlkifLimits.segmentsPerIndirectPage) * BlkifLimits.segmentSize
    }
}

extension BlockRequest {
    /// True if a slot is one for ``beginIndirect(_:layout:disk:)``.
    public static func isIndirect(_ slot: borrowing SlotBytes, disk: OfferedFeatures) -> Bool {
        let operation = slot.load(UInt8.self, at: 0)
        return disk.maximumIndirectSegments > 0 && operation == BlkifLimits.indirectOperation
    }

    /// Reads a slot of either kind without any page of the guest: for reports, and for requests that are not done. An
    /// indirect one has neither segments nor a length then. Returns the first rule that is broken, or nil.
    public mutating func read(
        _ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures, segments row: SegmentRow
    ) -> RequestError? {
        guard Self.isIndirect(slot, disk: disk) else {
            return parse(slot, layout: layout, disk: disk, segments: row)
        }
        switch beginIndirect(slot, layout: layout, disk: disk) {
        case .success: return nil
        case .failure(let problem): return problem
        }
    }

    /// Reads the slot of an indirect request, and checks all that can be checked without its segments.
    ///
    /// The id and the operation for the response are set in any case. The response carries the inner operation, as
    /// xen-blkback's does: a Linux frontend compares it with that, and gives the disk up where it finds 6
    /// (`blkif_interrupt()`); other frontends look at the id alone.
    public mutating func beginIndirect(
        _ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures
    ) -> Result<IndirectRequest, RequestError> {
        wireOperation = slot.load(UInt8.self, at: 1)
        id = slot.load(UInt64.self, at: layout.idOffset)
        firstSector = slot.load(UInt64.self, at: layout.sectorOffset)
        sectorCount = 0
        segmentCount = 0
        secure = false
        guard let known = BlockOperation(rawValue: wireOperation), known == .read || known == .write
        else { return .failure(.innerOperation) }
        operation = known
        let count = Int(slot.load(UInt16.self, at: 2))
        if count == 0 { return .failure(.noSegments) }
        if count > Int(min(disk.maximumIndirectSegments, BlkifLimits.mostIndirectSegments)) {
            return .failure(.tooManySegments)
        }
        if disk.isReadOnly && known == .write { return .failure(.readOnlyDisk) }
        // Behind the sector: the handle, two bytes of padding, then the references.
        let start = layout.sectorOffset + 12
        var references = InlineArray<8, UInt32>(repeating: 0)
        for page in 0..<BlkifLimits.indirectPagesPerRequest {
            references[page] = slot.load(UInt32.self, at: start + page * 4)
        }
        return .success(IndirectRequest(references: references, segmentCount: count))
    }

    /// Takes the first `count` segments of `row` in, which were copied there out of the guest's pages
    /// (``SegmentStore/place(of:page:)``), and checks every rule. Returns the rule that is broken, or nil.
    public mutating func endIndirect(
        segments row: SegmentRow, count: Int, disk: OfferedFeatures
    ) -> RequestError? {
        var total: UInt64 = 0
        for number in 0..<count {
            let segment = row[number]
            if segment.firstSector > segment.lastSector { return .segmentBackwards }
            if segment.lastSector >= BlkifLimits.sectorsPerPage { return .segmentBeyondPage }
            total &+= UInt64(segment.lastSector &- segment.firstSector) &+ 1
        }
        sectorCount = total
        guard Self.isOnDisk(first: firstSector, count: total, disk: disk) else { return .beyondEndOfDisk }
        segmentCount = UInt16(truncatingIfNeeded: count)
        return nil
    }
}
