// SPDX-License-Identifier: BSD-2-Clause
// Blocks that are being written, on disks whose blocks are larger than a sector.

/// Which blocks of a disk each list writes. A write of a part of a block reads the block first: what another list wrote in
/// between would be lost, so neither begins before the other has ended. Whole blocks exclude nothing but parts of them.
struct BlockLocks {
    private struct Range {
        /// In sectors of 512 bytes.
        var first: UInt64 = 0
        var end: UInt64 = 0
        /// Where ``held`` names it; -1 for none.
        var position: Int32 = -1
        var isPartial = false
    }
    /// One for each list that there can be.
    private var ranges: [Range]
    private var held: [Int] = []
    private var partialCount = 0

    /// Room for so many lists.
    init(listCount: Int) {
        ranges = Array(repeating: Range(), count: listCount)
        held.reserveCapacity(listCount)
    }

    /// Ranges that are locked.
    var count: Int { held.count }

    /// Locks the sectors for a list; false if another list must end before. True again for a list that has them.
    ///
    /// `isPartial`: the list may read blocks and write them back.
    mutating func lock(_ list: Int, first: UInt64, end: UInt64, isPartial: Bool) -> Bool {
        if ranges[list].position >= 0 { return true }
        if isPartial || partialCount > 0 {
            for other in held where excludes(other, first: first, end: end, isPartial: isPartial) { return false }
        }
        ranges[list] = Range(first: first, end: end, position: Int32(held.count), isPartial: isPartial)
        held.append(list)
        if isPartial { partialCount += 1 }
        return true
    }

    /// The lists that must end before.
    func conflicts(first: UInt64, end: UInt64, isPartial: Bool) -> [Int] {
        held.filter { excludes($0, first: first, end: end, isPartial: isPartial) }
    }

    private func excludes(_ other: Int, first: UInt64, end: UInt64, isPartial: Bool) -> Bool {
        (isPartial || ranges[other].isPartial) && ranges[other].first < end && first < ranges[other].end
    }

    /// Lets the sectors of a list go; false if it has none.
    @discardableResult
    mutating func unlock(_ list: Int) -> Bool {
        let position = Int(ranges[list].position)
        if position < 0 { return false }
        let last = held.removeLast()
        if last != list {
            held[position] = last
            ranges[last].position = Int32(position)
        }
        if ranges[list].isPartial { partialCount -= 1 }
        ranges[list].position = -1
        return true
    }
}
