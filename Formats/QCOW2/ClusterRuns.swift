// SPDX-License-Identifier: BSD-2-Clause
// Clusters that are reserved and not yet in use, as runs, so that what is written together stands together.

/// Runs of clusters of a file, in the order in which they were added.
public struct ClusterRuns: Sendable {
    private var runs: [Range<UInt64>] = []
    private var first = 0
    /// Clusters in it.
    public private(set) var count: UInt64 = 0

    /// Nothing.
    public init() {}

    /// Adds a run, which joins the last one if it follows it.
    public mutating func add(_ run: Range<UInt64>) {
        guard !run.isEmpty else { return }
        count += UInt64(run.count)
        if first < runs.count, let last = runs.last, last.upperBound == run.lowerBound {
            runs[runs.count - 1] = last.lowerBound..<run.upperBound
        } else {
            runs.append(run)
        }
    }

    /// Takes exactly `wanted` clusters that follow each other; nil if the runs are shorter.
    public mutating func take(_ wanted: UInt64) -> UInt64? {
        // The first run is nearly always long enough: the rest are leftovers.
        for index in first..<runs.count where UInt64(runs[index].count) >= wanted {
            return cut(index, wanted)
        }
        return nil
    }

    /// All runs; nothing is left.
    public mutating func takeAll() -> [Range<UInt64>] {
        defer { self = ClusterRuns() }
        return Array(runs[first...])
    }

    private mutating func cut(_ index: Int, _ wanted: UInt64) -> UInt64 {
        let start = runs[index].lowerBound
        runs[index] = start + wanted..<runs[index].upperBound
        count -= wanted
        while first < runs.count, runs[first].isEmpty { first += 1 }
        if first > 64 || first == runs.count {
            runs.removeFirst(first)
            first = 0
        }
        return start
    }
}
