// SPDX-License-Identifier: BSD-2-Clause
// The second word of an extended L2 entry: which of the 32 subclusters of a cluster have data, and which read as zeroes.
// docs/interop/qcow2.txt, "Extended L2 Entries".
import ImageCore

/// Subclusters of one cluster, a bit each; the lowest bit is the first one.
public struct SubclusterMask: OptionSet, Sendable, Hashable {
    /// The bits.
    public let rawValue: UInt32
    /// Of these bits.
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// A cluster has that many.
    public static let count = 32
    /// All of a cluster.
    public static let all = SubclusterMask(rawValue: .max)

    /// Those of a range, which is cut to the cluster.
    public init(_ range: Range<Int>) {
        let range = range.clamped(to: 0..<Self.count)
        rawValue = range.isEmpty ? 0 : (UInt32.max >> UInt32(Self.count - range.count)) << UInt32(range.lowerBound)
    }

    /// Those that bytes of a cluster touch. `bits`: bytes of a subcluster, as a power of two.
    @inline(__always)
    public init(touchedBy bytes: Range<UInt64>, bits: UInt64) {
        self.init(Int(bytes.lowerBound >> bits)..<Int((bytes.upperBound + (1 << bits - 1)) >> bits))
    }

    /// Those that bytes of a cluster cover.
    public init(coveredBy bytes: Range<UInt64>, bits: UInt64) {
        let (first, end) = (Int((bytes.lowerBound + (1 << bits - 1)) >> bits), Int(bytes.upperBound >> bits))
        self.init(first..<max(first, end))
    }

    /// How many follow each other from `first` on, all in the set or all out of it as that one is.
    @inline(__always)
    public func run(from first: Int) -> Int {
        let rest = rawValue >> UInt32(first)
        let length = rest & 1 == 0 ? rest.trailingZeroBitCount : (~rest).trailingZeroBitCount
        return min(length, Self.count - first)
    }

    /// Runs of subclusters that follow each other.
    public var runs: [Range<Int>] {
        var (found, first): ([Range<Int>], Int) = ([], 0)
        while first < Self.count {
            let end = first + run(from: first)
            if contains(SubclusterMask(first..<first + 1)) { found.append(first..<end) }
            first = end
        }
        return found
    }
}

extension L2Entry {
    /// An extended entry.
    @inline(__always)
    public init(_ raw: UInt64, allocated: SubclusterMask, zeroed: SubclusterMask = []) {
        self.init(raw, bitmap: UInt64(zeroed.rawValue) << 32 | UInt64(allocated.rawValue))
    }

    /// Subclusters with data in the cluster.
    @inline(__always)
    public var allocated: SubclusterMask { SubclusterMask(rawValue: UInt32(truncatingIfNeeded: bitmap)) }
    /// Subclusters that read as zeroes, whatever stands in the cluster.
    @inline(__always)
    public var zeroed: SubclusterMask { SubclusterMask(rawValue: UInt32(truncatingIfNeeded: bitmap >> 32)) }
    /// The second word of an entry all of whose subclusters have data.
    public static let allAllocated = UInt64(UInt32.max)
    /// The second word of an entry all of whose subclusters read as zeroes.
    public static let allZeroed = UInt64(UInt32.max) << 32

    /// What no extended entry may say; nil: it is well.
    @inline(__always)
    public var bitmapFault: StaticString? {
        if isCompressed { return bitmap == 0 ? nil : "an L2 entry of a compressed cluster has subclusters" }
        if raw & Self.zero != 0 { return "an extended L2 entry has the zero flag of a standard one" }
        if bitmap >> 32 & bitmap != 0 { return "a subcluster has data and reads as zeroes, which cannot be" }
        return place == 0 && !allocated.isEmpty ? "subclusters have data, and their cluster has no place" : nil
    }
}

extension ImageReader {
    /// Those entries of an L2 table that are not 0, with their indexes.
    public func entries(
        ofTable place: UInt64, _ geometry: QCOWGeometry
    ) throws(ImageError) -> [(index: Int, entry: L2Entry)] {
        let words = try nonZeroWords(at: place, count: 1 << Int(geometry.l2Bits + geometry.wordBits))
        guard geometry.isExtended else { return words.map { ($0.index, L2Entry($0.word)) } }
        var found: [(index: Int, entry: L2Entry)] = []
        for (index, word) in words {
            if index & 1 == 0 {
                found.append((index >> 1, L2Entry(word)))
            } else if let last = found.last, last.index == index >> 1 {
                found[found.count - 1].entry = L2Entry(last.entry.raw, bitmap: word)
            } else {
                found.append((index >> 1, L2Entry(0, bitmap: word)))
            }
        }
        return found
    }
}
