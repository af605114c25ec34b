// SPDX-License-Identifier: BSD-2-Clause
// Latencies in buckets that grow with the value.

/// Counts of latencies; a bucket is at most a quarter of its value wide.
public struct LatencyHistogram: Sendable, Equatable {
    /// Four buckets for each power of two from 1 ns to about 18 minutes.
    public static let bucketCount = 160
    /// How often each bucket was hit.
    public internal(set) var counts = [UInt64](repeating: 0, count: bucketCount)

    /// Nothing counted.
    public init() {}

    /// The bucket of a latency in ns.
    @inline(__always)
    static func bucket(of nanoseconds: UInt64) -> Int {
        if nanoseconds < 4 { return Int(nanoseconds) }
        let power = 63 - nanoseconds.leadingZeroBitCount
        let quarter = Int(truncatingIfNeeded: nanoseconds >> UInt64(power - 2)) & 3
        return min((power - 1) * 4 + quarter, bucketCount - 1)
    }

    /// The largest latency in ns that falls into a bucket.
    static func upperBound(of bucket: Int) -> UInt64 {
        if bucket < 4 { return UInt64(bucket) }
        let power = bucket / 4 + 1
        let quarter = UInt64(bucket % 4)
        return (4 + quarter + 1) << UInt64(power - 2) &- 1
    }

    /// All counts.
    public var total: UInt64 { counts.reduce(0, &+) }

    /// The buckets that were hit, each with the largest latency in ns that falls into it.
    public var buckets: [(bound: UInt64, count: UInt64)] {
        counts.indices.compactMap { counts[$0] == 0 ? nil : (Self.upperBound(of: $0), counts[$0]) }
    }

    /// How many latencies were less than each power of two, from `1 << powers.lowerBound` ns to `1 << powers.upperBound` ns:
    /// exact, as such powers are ends of buckets. The powers are from 2 to 40.
    public func counts(below powers: ClosedRange<Int>) -> [UInt64] {
        var next = 0
        var sum: UInt64 = 0
        return powers.map { power in
            let end = min((power - 1) * 4, Self.bucketCount)
            while next < end {
                sum &+= counts[next]
                next += 1
            }
            return sum
        }
    }

    /// The latency in ns that `fraction` of the requests did not exceed; 0 when nothing was counted.
    public func percentile(_ fraction: Double) -> UInt64 {
        let all = total
        if all == 0 { return 0 }
        // The counts may be an earlier process's, and so be any.
        let wanted = UInt64(exactly: (Double(all) * fraction).rounded(.up)) ?? .max
        var seen: UInt64 = 0
        for (bucket, count) in counts.enumerated() {
            seen &+= count
            if seen >= max(wanted, 1) { return Self.upperBound(of: bucket) }
        }
        return Self.upperBound(of: Self.bucketCount - 1)
    }

    /// Adds the counts of another histogram.
    public mutating func merge(_ other: LatencyHistogram) {
        for bucket in 0..<Self.bucketCount { counts[bucket] &+= other.counts[bucket] }
    }
}
