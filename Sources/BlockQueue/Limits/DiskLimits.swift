// SPDX-License-Identifier: BSD-2-Clause
// The limits of a disk as values, and what a request costs.

/// The limits of a disk: of bytes and of requests, all, reads and writes.
package struct DiskLimits: Sendable, Equatable {
    /// One limit; see ``BucketRule``.
    package struct Limit: Sendable, Equatable, BitwiseCopyable {
        /// In a second; 0: none.
        package var rate: UInt64 = 0
        /// In a second during a burst; 0: none.
        package var burst: UInt64 = 0
        /// How long a burst lasts at most, in seconds; 0 is 1.
        package var seconds: UInt64 = 0

        /// No limit.
        package init() {}
    }

    /// Bytes of all requests, of reads and of writes, then the requests likewise.
    private var limits = InlineArray<6, Limit>(repeating: Limit())
    /// A request of more bytes counts as several; 0: each is one.
    package var requestSize: UInt64 = 0

    /// None.
    package init() {}

    /// Bytes: 0 all, 1 reads, 2 writes; requests: 3 all, 4 reads, 5 writes.
    package subscript(index: Int) -> Limit {
        get { limits[index] }
        set { limits[index] = newValue }
    }

    /// How many ``subscript(_:)`` has.
    package static var count: Int { 6 }

    /// There is one.
    package var isSet: Bool { (0..<Self.count).contains { limits[$0].rate > 0 } }

    package static func == (left: DiskLimits, right: DiskLimits) -> Bool {
        left.requestSize == right.requestSize && (0..<count).allSatisfy { left[$0] == right[$0] }
    }
}

/// What a request counts for the limits of its disk.
struct RequestCost: Sendable, Equatable, BitwiseCopyable {
    /// Bytes that it reads or writes.
    var bytes: UInt64
    /// It counts as a write; else as a read.
    var isWrite: Bool

    /// Of the limits, those that hold for it: indices of ``DiskLimits``.
    var limits: InlineArray<4, Int> { isWrite ? [0, 2, 3, 5] : [0, 1, 3, 4] }
}
