// SPDX-License-Identifier: BSD-2-Clause
// Which bytes of a read have arrived. A server may send them in any order; what did not arrive would be old memory for a guest.

/// Intervals of a request's bytes that have arrived: in order, disjoint, and not touching each other. Eight at most.
public struct ReadCover: BitwiseCopyable, Sendable {
    /// Separate intervals at most: servers send a read from its beginning to its end, some with holes first.
    @inlinable public static var most: Int { 8 }

    /// What came of bytes that arrive.
    public enum Addition: BitwiseCopyable, Sendable {
        /// They are new.
        case added
        /// Some of them had arrived before.
        case overlaps
        /// They are new, and there is no room to remember them.
        case full
    }

    @usableFromInline var starts = InlineArray<8, UInt32>(repeating: 0)
    @usableFromInline var ends = InlineArray<8, UInt32>(repeating: 0)
    /// Intervals.
    @usableFromInline var count = 0

    /// Nothing has arrived.
    @inlinable public init() {}

    /// Adds the bytes from `start` to `end`, which is larger.
    @inlinable @inline(__always)
    public mutating func add(_ start: UInt32, to end: UInt32) -> Addition {
        // What follows the last interval is the usual case.
        if count == 0 {
            (starts[0], ends[0], count) = (start, end, 1)
            return .added
        }
        if start == ends[count &- 1] {
            ends[count &- 1] = end
            return .added
        }
        return insert(start, to: end)
    }

    @usableFromInline
    mutating func insert(_ start: UInt32, to end: UInt32) -> Addition {
        // The first interval that ends at the new one's start or behind it.
        var place = 0
        while place < count, ends[place] < start { place += 1 }
        let joinsLower = place < count && ends[place] == start
        // What stands above the new interval.
        let above = joinsLower ? place + 1 : place
        if above < count, starts[above] < end { return .overlaps }
        let joinsUpper = above < count && starts[above] == end
        switch (joinsLower, joinsUpper) {
        case (true, true):
            ends[place] = ends[above]
            remove(above)
        case (true, false): ends[place] = end
        case (false, true): starts[above] = start
        case (false, false):
            guard count < Self.most else { return .full }
            var index = count
            while index > place {
                (starts[index], ends[index]) = (starts[index - 1], ends[index - 1])
                index -= 1
            }
            (starts[place], ends[place]) = (start, end)
            count += 1
        }
        return .added
    }

    private mutating func remove(_ place: Int) {
        var index = place
        while index + 1 < count {
            (starts[index], ends[index]) = (starts[index + 1], ends[index + 1])
            index += 1
        }
        count -= 1
    }

    /// True if all of the first `length` bytes have arrived, and nothing else.
    @inlinable @inline(__always)
    public func isWhole(_ length: UInt32) -> Bool {
        length == 0 ? count == 0 : count == 1 && starts[0] == 0 && ends[0] == length
    }
}
