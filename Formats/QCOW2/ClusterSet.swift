// SPDX-License-Identifier: BSD-2-Clause
// A set of clusters of a file: a bit each, in chunks that exist only where there is a bit.

/// Clusters by their numbers.
public struct ClusterSet: Sendable {
    /// Words of 64 bits of a chunk.
    private static let chunkWords = 512
    private static let chunkBits: UInt64 = 15
    private var chunks: [UInt64: [UInt64]] = [:]
    /// Clusters in it.
    public private(set) var count: UInt64 = 0

    /// The empty set.
    public init() {}

    /// True if it is in.
    public func contains(_ cluster: UInt64) -> Bool {
        guard let words = chunks[cluster >> Self.chunkBits] else { return false }
        return words[Self.word(cluster)] & Self.bit(cluster) != 0
    }

    /// Puts it in; false if it was.
    @discardableResult
    public mutating func insert(_ cluster: UInt64) -> Bool {
        let (word, bit) = (Self.word(cluster), Self.bit(cluster))
        let isNew = chunks[cluster >> Self.chunkBits, default: Array(repeating: 0, count: Self.chunkWords)]
            .set(word, bit)
        if isNew { count += 1 }
        return isNew
    }

    /// Puts a range in; false if one of it was.
    @discardableResult
    public mutating func insert(_ clusters: Range<UInt64>) -> Bool {
        var areNew = true
        for cluster in clusters where !insert(cluster) { areNew = false }
        return areNew
    }

    /// Puts all of another set in.
    public mutating func formUnion(_ other: ClusterSet) {
        for (chunk, words) in other.chunks {
            var mine = chunks[chunk] ?? Array(repeating: 0, count: Self.chunkWords)
            for index in mine.indices {
                count += UInt64((words[index] & ~mine[index]).nonzeroBitCount)
                mine[index] |= words[index]
            }
            chunks[chunk] = mine
        }
    }

    /// Takes it out.
    public mutating func remove(_ cluster: UInt64) {
        guard contains(cluster) else { return }
        chunks[cluster >> Self.chunkBits]?[Self.word(cluster)] &= ~Self.bit(cluster)
        count -= 1
    }

    /// The largest one.
    public var highest: UInt64? {
        for chunk in chunks.keys.sorted(by: >) {
            guard let words = chunks[chunk], let word = words.lastIndex(where: { $0 != 0 }) else { continue }
            return chunk << Self.chunkBits + UInt64(word) << 6 + UInt64(63 - words[word].leadingZeroBitCount)
        }
        return nil
    }

    /// One of `range` is in the set.
    public func hasAny(in range: Range<UInt64>) -> Bool {
        var cluster = range.lowerBound
        while cluster < range.upperBound {
            guard let words = chunks[cluster >> Self.chunkBits] else {
                cluster = (cluster >> Self.chunkBits + 1) << Self.chunkBits
                continue
            }
            let found = words[Self.word(cluster)] & ~(Self.bit(cluster) - 1)
            if found != 0 { return cluster & ~63 + UInt64(found.trailingZeroBitCount) < range.upperBound }
            cluster = (cluster | 63) + 1
        }
        return false
    }

    /// The first cluster of `range` that is not in the set.
    public func firstAbsent(in range: Range<UInt64>) -> UInt64? {
        var cluster = range.lowerBound
        while cluster < range.upperBound {
            guard let words = chunks[cluster >> Self.chunkBits] else { return cluster }
            let free = ~words[Self.word(cluster)] & ~(Self.bit(cluster) - 1)
            if free != 0 {
                let found = cluster & ~63 + UInt64(free.trailingZeroBitCount)
                return found < range.upperBound ? found : nil
            }
            cluster = (cluster | 63) + 1
        }
        return nil
    }

    private static func word(_ cluster: UInt64) -> Int { Int(cluster >> 6) & (chunkWords - 1) }
    private static func bit(_ cluster: UInt64) -> UInt64 { 1 << (cluster & 63) }
}

extension [UInt64] {
    fileprivate mutating func set(_ word: Int, _ bit: UInt64) -> Bool {
        let isNew = self[word] & bit == 0
        self[word] |= bit
        return isNew
    }
}
