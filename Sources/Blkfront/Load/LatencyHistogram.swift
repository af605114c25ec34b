// SPDX-License-Identifier: BSD-2-Clause
// A histogram of latencies whose memory does not depend on the length of the run.
import Memory

/// A histogram of durations in nanoseconds with a relative error below 1/32.
///
/// The width of buckets grows with the value: 32 buckets of equal width for each power of two. Recording takes a few
/// instructions and never allocates.
public struct LatencyHistogram: ~Copyable, Sendable {
    private static let subBits = 5
    private static let subCount = 1 << subBits
    private static let bucketCount = (64 - subBits + 1) * subCount

    private var buckets = FixedArray<UInt64>(zeroed: bucketCount)
    /// Durations recorded.
    public private(set) var count: UInt64 = 0
    /// Sum of all durations.
    public private(set) var total: UInt64 = 0
    /// The shortest duration; 0 if there is none.
    public var minimum: UInt64 { count == 0 ? 0 : smallest }
    /// The longest duration.
    public private(set) var maximum: UInt64 = 0
    private var smallest = UInt64.max

    /// An empty histogram.
    public init() {}

    /// Adds one duration.
    @inline(__always)
    public mutating func record(_ nanoseconds: UInt64) {
        buckets[Self.bucket(of: nanoseconds)] &+= 1
        count &+= 1
        total &+= nanoseconds
        smallest = min(smallest, nanoseconds)
        maximum = max(maximum, nanoseconds)
    }

    /// Adds all durations of another histogram.
    public mutating func add(_ other: borrowing LatencyHistogram) {
        for index in 0..<Self.bucketCount { buckets[index] &+= other.buckets[index] }
        count &+= other.count
        total &+= other.total
        smallest = min(smallest, other.smallest)
        maximum = max(maximum, other.maximum)
    }

    /// The mean; 0 if there is no duration.
    public var mean: UInt64 { count == 0 ? 0 : total / count }

    /// The duration that the given `share` (0 to 1) of all durations does not exceed; 0 if there is none.
    public func percentile(_ share: Double) -> UInt64 {
        guard count > 0 else { return 0 }
        let wanted = max(1, UInt64((Double(count) * min(max(share, 0), 1)).rounded(.up)))
        var seen: UInt64 = 0
        for index in 0..<Self.bucketCount {
            seen &+= buckets[index]
            if seen >= wanted { return min(Self.upperEdge(of: index), maximum) }
        }
        return maximum
    }

    @inline(__always)
    static func bucket(of value: UInt64) -> Int {
        if value < UInt64(subCount) { return Int(truncatingIfNeeded: value) }
        let exponent = 63 - value.leadingZeroBitCount
        let shift = exponent - subBits
        let sub = Int(truncatingIfNeeded: value >> UInt64(shift)) & (subCount - 1)
        return (shift + 1) * subCount + sub
    }

    static func upperEdge(of bucket: Int) -> UInt64 {
        if bucket < subCount { return UInt64(bucket) }
        let shift = bucket / subCount - 1
        let lower = UInt64(subCount + bucket % subCount) << UInt64(shift)
        return lower + ((1 << UInt64(shift)) - 1)
    }
}
