// SPDX-License-Identifier: BSD-2-Clause
// The segments of requests, apart from the requests: how many a request may have is no matter of its type.
public import Memory

/// Sectors of one granted page, byte for byte `struct blkif_request_segment`: indirect requests bring them as they are.
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

/// Room for the segments of a queue's requests: a row of ``capacity`` for each.
///
/// Rows that are never used take no memory, so that rows of 4096 segments cost nothing where requests have 11.
@safe
public struct SegmentStore: ~Copyable, Sendable {
    /// Where the rows stand; ``base`` points to its beginning.
    public let memory: HostMemory
    @usableFromInline nonisolated(unsafe) let base: UnsafeMutablePointer<BlockSegment>
    /// The most segments of a request, at least 11.
    public let capacity: Int
    /// Requests.
    public let requestCount: Int

    /// Room for `requestCount` requests of at most `capacity` segments; nil when the kernel refuses.
    public init?(requestCount: Int, capacity: Int) {
        let capacity = max(capacity, BlkifLimits.segmentsPerRequest)
        let bytes = requestCount.multipliedReportingOverflow(by: capacity * MemoryLayout<BlockSegment>.stride)
        guard requestCount > 0, !bytes.overflow, let memory = HostMemory(byteCount: bytes.partialValue) else {
            return nil
        }
        self.memory = memory
        unsafe base = memory.address(at: 0, count: bytes.partialValue).assumingMemoryBound(to: BlockSegment.self)
        self.capacity = capacity
        self.requestCount = requestCount
    }

    /// Where the segments of one of the pages of an indirect request go, in bytes of ``memory``: in its row, behind those of
    /// the pages before.
    public func place(of request: Int, page: Int) -> Int {
        precondition(
            UInt(bitPattern: request) < UInt(bitPattern: requestCount)
                && UInt(bitPattern: page) < UInt(bitPattern: BlkifLimits.indirectPagesPerRequest))
        return request * capacity * MemoryLayout<BlockSegment>.stride + page * 4096
    }

    /// The row of a request.
    @inlinable @inline(__always)
    public subscript(request: Int) -> SegmentRow {
        precondition(UInt(bitPattern: request) < UInt(bitPattern: requestCount))
        return unsafe SegmentRow(base + request &* capacity, capacity)
    }
}

/// The segments of one request. A view, valid while its store lives; indices are checked.
@safe
public struct SegmentRow {
    @usableFromInline let base: UnsafeMutablePointer<BlockSegment>
    /// The most segments that it holds.
    public let capacity: Int

    @inlinable @inline(__always)
    init(_ base: UnsafeMutablePointer<BlockSegment>, _ capacity: Int) {
        unsafe self.base = unsafe base
        self.capacity = capacity
    }

    /// The segment of a number.
    @inlinable
    public subscript(number: Int) -> BlockSegment {
        @inline(__always) get {
            precondition(UInt(bitPattern: number) < UInt(bitPattern: capacity))
            return unsafe base[number]
        }
        @inline(__always) nonmutating set {
            precondition(UInt(bitPattern: number) < UInt(bitPattern: capacity))
            unsafe base[number] = newValue
        }
    }
}
