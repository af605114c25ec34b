// SPDX-License-Identifier: BSD-2-Clause
// A private copy of a slot becomes a validated request. Every bound of the protocol is checked here and nowhere else.
public import Memory

/// A request as the host works with it.
public struct BlockRequest: BitwiseCopyable, Sendable {
    /// The frontend's own number, echoed in the response and never looked at.
    public var id: UInt64
    /// First sector of 512 bytes.
    public var firstSector: UInt64
    /// Sectors of 512 bytes; 0 for a flush without data.
    public var sectorCount: UInt64
    /// The operation byte that the response carries: as the frontend wrote it, of an indirect request the inner one.
    public var wireOperation: UInt8
    /// What is to be done; meaningless if parsing gave an error.
    public var operation: BlockOperation
    /// A discard that must erase (`BLKIF_DISCARD_SECURE`).
    public var secure: Bool
    /// Number of segments, which stand in the request's row of a ``SegmentStore``.
    public var segmentCount: UInt16

    /// A request with nothing in it.
    public init() {
        id = 0
        firstSector = 0
        sectorCount = 0
        wireOperation = 0
        operation = .read
        segmentCount = 0
        secure = false
    }

    /// Parses a private copy of a slot in place and checks every rule; its segments go to `row`.
    ///
    /// Returns the first rule that is broken, or nil. The id and the operation byte are set in either case, because
    /// a response needs them. What was in this request before is of no influence, so that it can be used again.
    @inlinable @inline(__always)
    public mutating func parse(
        _ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures, segments row: SegmentRow
    ) -> RequestError? {
        // Once for each layout with offsets that the compiler knows: it is a third of the instructions.
        if layout.idOffset == RingLayout.wide.idOffset {
            return parse(slot, known: RingLayout.wide, disk: disk, row)
        }
        return parse(slot, known: RingLayout.narrow, disk: disk, row)
    }

    @inlinable @inline(__always)
    mutating func parse(
        _ slot: borrowing SlotBytes, known layout: RingLayout, disk: OfferedFeatures, _ row: SegmentRow
    ) -> RequestError? {
        wireOperation = slot.load(UInt8.self, at: 0)
        id = slot.load(UInt64.self, at: layout.idOffset)
        firstSector = slot.load(UInt64.self, at: layout.sectorOffset)
        sectorCount = 0
        segmentCount = 0
        secure = false
        guard let known = BlockOperation(rawValue: wireOperation) else { return .unknownOperation }
        operation = known
        switch known {
        case .read, .write:
            break
        case .writeBarrier:
            if !disk.hasBarrier { return .unknownOperation }
        case .flush:
            if !disk.canFlush { return .unknownOperation }
        case .discard:
            return parseDiscard(slot, layout: layout, disk: disk)
        }
        return parseSegments(slot, layout: layout, disk: disk, row)
    }

    @inlinable @inline(__always)
    mutating func parseSegments(
        _ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures, _ row: SegmentRow
    ) -> RequestError? {
        let count = slot.load(UInt8.self, at: 1)
        if count > BlkifLimits.segmentsPerRequest { return .tooManySegments }
        if count == 0 {
            // A flush needs no data, and a barrier without data is how old frontends say flush.
            if operation == .read || operation == .write { return .noSegments }
            return operation == .writeBarrier && disk.isReadOnly ? .readOnlyDisk : nil
        }
        if disk.isReadOnly && operation != .read { return .readOnlyDisk }
        var total: UInt64 = 0
        var offset = layout.segmentsOffset
        for index in 0..<Int(count) {
            let bits = slot.load(UInt64.self, at: offset)
            let reference = UInt32(truncatingIfNeeded: bits)
            let first = UInt8(truncatingIfNeeded: bits >> 32)
            let last = UInt8(truncatingIfNeeded: bits >> 40)
            if first > last { return .segmentBackwards }
            if last >= BlkifLimits.sectorsPerPage { return .segmentBeyondPage }
            row[index] = BlockSegment(reference: reference, firstSector: first, lastSector: last)
            total &+= UInt64(last &- first) &+ 1
            offset &+= 8
        }
        sectorCount = total
        guard Self.isOnDisk(first: firstSector, count: total, disk: disk) else { return .beyondEndOfDisk }
        segmentCount = UInt16(count)
        return nil
    }

    @inlinable @inline(__always)
    mutating func parseDiscard(
        _ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures
    ) -> RequestError? {
        if !disk.canDiscard { return .unknownOperation }
        if disk.isReadOnly { return .readOnlyDisk }
        secure = slot.load(UInt8.self, at: 1) & 1 != 0
        sectorCount = slot.load(UInt64.self, at: layout.segmentsOffset)
        if sectorCount == 0 { return .emptyDiscard }
        guard Self.isOnDisk(first: firstSector, count: sectorCount, disk: disk) else { return .beyondEndOfDisk }
        return nil
    }

    /// True if `count` sectors from `first` are on the disk; never wraps.
    @inlinable @inline(__always)
    static func isOnDisk(first: UInt64, count: UInt64, disk: OfferedFeatures) -> Bool {
        count <= disk.sectorCount && first <= disk.sectorCount &- count
    }
}
