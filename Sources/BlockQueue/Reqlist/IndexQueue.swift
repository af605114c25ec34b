// SPDX-License-Identifier: BSD-2-Clause
// Queues of reqlists and requests by their index in a pool.
import Memory

/// A first-in first-out queue of indices with a fixed capacity.
struct IndexQueue: ~Copyable {
    private var slots: FixedArray<Int32>
    private var head = 0
    private(set) var count = 0

    /// Room for at least `capacity` indices.
    init(capacity: Int) {
        var size = 1
        while size < capacity { size <<= 1 }
        slots = FixedArray(zeroed: size)
    }

    var isEmpty: Bool { count == 0 }

    /// A power of two less one. Not a field: so the compiler sees that a masked position is one of the slots.
    private var mask: Int {
        @inline(__always) get { slots.count &- 1 }
    }

    @inline(__always)
    mutating func append(_ index: Int32) {
        precondition(UInt(bitPattern: count) < UInt(bitPattern: slots.count))
        slots[(head &+ count) & mask] = index
        count &+= 1
    }

    /// Puts an index before all others.
    @inline(__always)
    mutating func prepend(_ index: Int32) {
        precondition(UInt(bitPattern: count) < UInt(bitPattern: slots.count))
        head = (head &- 1) & mask
        slots[head] = index
        count &+= 1
    }

    @inline(__always)
    mutating func popFirst() -> Int32? {
        if count == 0 { return nil }
        let index = slots[head]
        head = (head &+ 1) & mask
        count &-= 1
        return index
    }

    /// The index at a position from the front.
    @inline(__always)
    subscript(position: Int) -> Int32 {
        precondition(position >= 0 && position < count)
        return slots[(head &+ position) & mask]
    }

    @inline(__always)
    mutating func removeFirst(_ number: Int) {
        precondition(number >= 0 && number <= count)
        head = (head &+ number) & mask
        count &-= number
    }
}

/// A stack of free indices: the one that was used last is used first.
struct IndexStack: ~Copyable {
    private var slots: FixedArray<Int32>
    private(set) var count: Int

    /// All indices from 0 to `capacity - 1`, the lowest on top.
    init(full capacity: Int) {
        slots = FixedArray(zeroed: capacity)
        count = capacity
        for position in 0..<capacity { slots[position] = Int32(truncatingIfNeeded: capacity - 1 - position) }
    }

    /// All of them but those that are in use already.
    init(full capacity: Int, except used: [Int32]) {
        let used = Set(used)
        slots = FixedArray(zeroed: capacity)
        count = 0
        for index in (0..<Int32(capacity)).reversed() where !used.contains(index) { push(index) }
    }

    @inline(__always)
    mutating func pop() -> Int32? {
        if count == 0 { return nil }
        count &-= 1
        return slots[count]
    }

    @inline(__always)
    mutating func push(_ index: Int32) {
        slots[count] = index
        count &+= 1
    }
}
