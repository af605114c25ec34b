// SPDX-License-Identifier: BSD-2-Clause
// A private copy of a slot becomes a validated request. Every bound of the protocol is checked here and nowhere else.
public import Memory

/// Sectors of one granted page (`struct blkif_request_segment`).
public struct BlockSegment: BitwiseCopyable, Sendable, Equatable {
    /// The grant reference of the page.
    public var reference: UInt32
    /// First and last sector in the page, 0 to 7, both included.
    public var firstSector: UInt8
    /// See ``firstSector``.
    public var lastSector: UInt8

    /// Sectors `firstSector` to `lastSector` of the page granted by `reference`.
    public init(reference: UInt32, firstSector: UInt8, lastSector: UInt8) {
        self.reference = reference
        self.firstSector = firstSector
        self.lastSector = lastSector
    }

    /// Number of sectors; 1 to 8 in a validated request.
    @inlinable public var sectorCount: Int { Int(lastSector) - Int(firstSector) + 1 }
}

/// A request as the host works with it.
public struct BlockRequest: BitwiseCopyable, Sendable {
    /// The frontend's own number, echoed in the response and never looked at.
    public var id: UInt64
    /// First sector of 512 bytes.
    public var firstSector: UInt64
    /// Sectors of 512 bytes; 0 for a flush without data.
    public var sectorCount: UInt64
    /// The operation byte as the frontend wrote it, echoed in the response.
    public var wireOperation: UInt8
    /// What is to be done; meaningless if parsing gave an error.
    public var operation: BlockOperation
    /// Number of segments.
    public var segmentCount: UInt8
    /// A discard that must erase (`BLKIF_DISCARD_SECURE`).
    public var secure: Bool
    /// The first `segmentCount` are valid.
    public var segments: InlineArray<11, BlockSegment>

    /// A request with nothing in it.
    public init() {
        id = 0
        firstSector = 0
        sectorCount = 0
        wireOperation = 0
        operation = .read
        segmentCount = 0
        secure = false
        segments = InlineArray(repeating: BlockSegment(reference: 0, firstSector: 0, lastSector: 0))
    }

    /// Parses a private copy of a slot in place and checks every rule.
    ///
    /// Returns the first rule that is broken, or nil. The id and the operation byte are set in either case, because
    /// a response needs them. What was in this request before is of no influence, so that it can be used again.
    @inlinable @inline(__always)
    public mutating func parse(_ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures) -> RequestError?
    {
        // Once for each layout with offsets that the compiler knows: it is a third of the instructions.
        if layout.idOffset == RingLayout.wide.idOffset {
            return parse(slot, known: RingLayout.wide, disk: disk)
        }
        return parse(slot, known: RingLayout.narrow, disk: disk)
    }

    @inlinable @inline(__always)
    mutating func parse(
        _ slot: borrowing SlotBytes, known layout: RingLayout, disk: OfferedFeatures
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
        return parseSegments(slot, layout: layout, disk: disk)
    }

    @inlinable @inline(__always)
    mutating func parseSegments(
        _ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures
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
            segments[index] = BlockSegment(reference: reference, firstSector: first, lastSector: last)
            total &+= UInt64(last &- first) &+ 1
            offset &+= 8
        }
        sectorCount = total
        guard Self.isOnDisk(first: firstSector, count: total, disk: disk) else { return .beyondEndOfDisk }
        segmentCount = count
        return nil
    }

    @inlinable @inline(__always)
    mutating func parseDiscard(
        _ slot: borrowing SlotBytes, layout: RingLayout, disk: OfferedFeatures
    ) -> RequestError? {
        if disk.discard == nil { return .unknownOperation }
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
