// SPDX-License-Identifier: BSD-2-Clause
// One request with segments of its own.
public import Memory

/// One request and its segments, for logs, tools and tests; a queue has a ``SegmentStore`` for all of its requests.
@safe @dynamicMemberLookup
public final class ParsedRequest {
    /// What was parsed last.
    public private(set) var request = BlockRequest()
    private let base: UnsafeMutablePointer<BlockSegment>
    private let capacity: Int

    /// Room for `capacity` segments.
    public init(capacity: Int = BlkifLimits.segmentsPerRequest) {
        self.capacity = max(capacity, BlkifLimits.segmentsPerRequest)
        unsafe base = .allocate(capacity: self.capacity)
        unsafe base.initialize(
            repeating: BlockSegment(reference: 0, firstSector: 0, lastSector: 0), count: self.capacity)
    }

    deinit {
        unsafe base.deallocate()
    }

    /// The row of its segments.
    public var segments: SegmentRow { unsafe SegmentRow(base, capacity) }

    /// A member of the request.
    public subscript<Value>(dynamicMember member: KeyPath<BlockRequest, Value>) -> Value { request[keyPath: member] }

    /// Reads a slot: ``BlockRequest/read(_:layout:disk:segments:)``.
    public func read(_ slot: SlotBytes, layout: RingLayout, disk: OfferedFeatures) -> RequestError? {
        request.read(slot, layout: layout, disk: disk, segments: segments)
    }

    /// Parses a slot: ``BlockRequest/parse(_:layout:disk:segments:)``.
    public func parse(_ slot: SlotBytes, layout: RingLayout, disk: OfferedFeatures) -> RequestError? {
        request.parse(slot, layout: layout, disk: disk, segments: segments)
    }
}
