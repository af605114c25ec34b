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

    /// Reads the slot of an indirect request, and checks all that can be checked without its segments.
    ///
    /// The id and the operation byte are set in any case, because a response needs them.
    public mutating func beginIndirect(
        _ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures
    ) -> Result<IndirectRequest, RequestError> {
        wireOperation = slot.load(UInt8.self, at: 0)
        id = slot.load(UInt64.self, at: layout.idOffset)
        firstSector = slot.load(UInt64.self, at: layout.sectorOffset)
        sectorCount = 0
        segmentCount = 0
        secure = false
        guard let known = BlockOperation(rawValue: slot.load(UInt8.self, at: 1)), known == .read || known == .write
        else { return .failure(.unknownOperation) }
        operation = known
        let count = Int(slot.load(UInt16.self, at: 2))
        if count == 0 { return .failure(.noSegments) }
        let most = min(
            Int(disk.maximumIndirectSegments),
            BlkifLimits.indirectPagesPerRequest * BlkifLimits.segmentsPerIndirectPage)
        if count > most { return .failure(.tooManySegments) }
        if disk.isReadOnly && known == .write { return .failure(.readOnlyDisk) }
        // Behind the sector: the handle, two bytes of padding, then the references.
        let start = layout.sectorOffset + 12
        var references = InlineArray<8, UInt32>(repeating: 0)
        for page in 0..<BlkifLimits.indirectPagesPerRequest {
            references[page] = slot.load(UInt32.self, at: start + page * 4)
        }
        return .success(IndirectRequest(references: references, segmentCount: count))
    }

    /// Takes one segment of an indirect request in, as the 64 bits that stand in its page; a private copy of them.
    ///
    /// To be called for each segment in order, then ``endIndirect(disk:)``. Returns the rule that is broken, or nil.
    @inlinable @inline(__always)
    public mutating func addSegment(_ bits: UInt64, to row: SegmentRow) -> RequestError? {
        let first = UInt8(truncatingIfNeeded: bits >> 32)
        let last = UInt8(truncatingIfNeeded: bits >> 40)
        if first > last { return .segmentBackwards }
        if last >= BlkifLimits.sectorsPerPage { return .segmentBeyondPage }
        row[Int(segmentCount)] = BlockSegment(
            reference: UInt32(truncatingIfNeeded: bits), firstSector: first, lastSector: last)
        segmentCount &+= 1
        sectorCount &+= UInt64(last &- first) &+ 1
        return nil
    }

    /// All segments are there: checks where they lead to.
    public func endIndirect(disk: OfferedFeatures) -> RequestError? {
        Self.isOnDisk(first: firstSector, count: sectorCount, disk: disk) ? nil : .beyondEndOfDisk
    }
}
