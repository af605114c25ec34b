// SPDX-License-Identifier: BSD-2-Clause
// Where the statistics of a disk stand in their file: the one place that knows. docs/recovery.md describes the same.
//
//   page 0        magic, version, whose they are, names of the counters, what xbbctl changed
//   per queue     three pages of cells of 8 bytes: counters, histograms, errors, the last error

/// Offsets and sizes: of cells in cells, of the first page in bytes. All numbers are little-endian.
enum StatisticsLayout {
    // The cells of a queue.
    static let counterCells = 64
    private static let histogramCells = LatencyClass.allCases.count * LatencyHistogram.bucketCount
    /// Errnos that are told apart; all above count as 0.
    static let errnoCount = 136
    static let firstErrorCell = counterCells + histogramCells
    /// A number that is odd while the five behind it change and 0 before the first error.
    static let lastErrorCell = firstErrorCell + StorageOperation.allCases.count * errnoCount
    static let cellCount = 1536
    static let queueBytes = cellCount * 8

    @inline(__always)
    static func index(_ latency: LatencyClass, _ bucket: Int) -> Int {
        counterCells + latency.rawValue * LatencyHistogram.bucketCount + bucket
    }

    static func index(_ operation: StorageOperation, _ code: Int32) -> Int {
        let known = code > 0 && code < Int32(errnoCount) ? Int(code) : 0
        return firstErrorCell + operation.rawValue * errnoCount + known
    }

    // The first page.
    /// "XBBSTAT" and a line feed.
    static let magic: UInt64 = 0x0a54_4154_5342_4258
    /// Raised when a reader of the old layout would read the new one wrongly: it begins anew then.
    static let version: UInt32 = 1
    static let pageSize = 4096
    static let magicOffset = 0
    static let versionOffset = 8
    /// 1 while all is complete.
    static let stateOffset = 12
    /// Which disk they are of: a random number that the backend's node has, too.
    static let identityOffset = 16
    /// Queues that have cells.
    static let queueCountOffset = 24
    /// Which of two texts of changes counts, 0 or 1.
    static let currentChangesOffset = 28
    /// Until when the disk has taken more than its limits allow, in ns of the monotonic clock.
    static let limitDebtOffset = 32
    /// The names of the counters in their order, each with a line feed behind it: bytes, then text.
    static let namesOffset = 64
    static let namesSize = 1984
    /// Two texts of what xbbctl changed, "name=value" lines: bytes, then text.
    static let changesOffset = 2048
    static let changesSize = 1024
    static let mostQueues = 64

    /// Bytes of a file with the cells of so many queues.
    static func fileSize(queues: Int) -> Int { pageSize + queues * queueBytes }
}
