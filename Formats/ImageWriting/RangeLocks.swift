// SPDX-License-Identifier: BSD-2-Clause
// Who changes which clusters of a disk. What meets one that is being changed waits for it, and holds no thread meanwhile.

/// Ranges of guest clusters that are being changed, and who waits for them.
public struct RangeLocks<Waiter> {
    private struct Held {
        let range: ClosedRange<UInt64>
        let key: UInt64
        var waiters: [Waiter]
    }
    private var held: [Held] = []
    private var nextKey: UInt64 = 1

    /// Nothing is held.
    public init() {}

    /// No range is held.
    public var isEmpty: Bool { held.isEmpty }

    /// Takes a range; nil: a part of it is held, and the waiter comes with ``release(_:)`` of that part.
    public mutating func acquire(_ range: ClosedRange<UInt64>, orWait waiter: @autoclosure () -> Waiter) -> UInt64? {
        if let index = held.firstIndex(where: { $0.range.overlaps(range) }) {
            held[index].waiters.append(waiter())
            return nil
        }
        let key = nextKey
        nextKey &+= 1
        held.append(Held(range: range, key: key, waiters: []))
        return key
    }

    /// Gives a range back; who waited for it tries again.
    public mutating func release(_ key: UInt64) -> [Waiter] {
        guard let index = held.firstIndex(where: { $0.key == key }) else { return [] }
        let waiters = held[index].waiters
        held.swapAt(index, held.count - 1)
        held.removeLast()
        return waiters
    }
}
