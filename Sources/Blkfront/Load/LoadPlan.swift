// SPDX-License-Identifier: BSD-2-Clause
// The plan of a load run.

/// The order and the kind of a run's operations, in fio's words.
public enum LoadPattern: String, Sendable, CaseIterable {
    /// Reads one after the other
    case read
    /// Writes one after the other
    case write
    /// Reads anywhere
    case randread
    /// Writes anywhere
    case randwrite
    /// Reads and writes anywhere
    case randrw

    /// Offsets are random.
    public var isRandom: Bool { self == .randread || self == .randwrite || self == .randrw }
    /// The disk is changed.
    public var writes: Bool { self != .read && self != .randread }
}

/// The plan of a load run. Sizes and offsets are in bytes.
public struct LoadPlan: Sendable {
    /// Order and kind of operations.
    public var pattern = LoadPattern.randread
    /// The smallest length of an operation. It divides every offset and length, and is the size of a verified block.
    public var blockSize = 4096
    /// The largest length of an operation.
    public var maxBlockSize = 4096
    /// Operations in flight in each queue.
    public var depth = 1
    /// Start of the region that is used.
    public var offset: UInt64 = 0
    /// Length of the region; nil for the rest of the disk.
    public var size: UInt64?
    /// Ends the run after this many nanoseconds; nil for no time limit.
    public var duration: UInt64?
    /// Ends the run after this many reads and writes of all queues together. Without either limit, the run is one pass
    /// over the region.
    public var count: UInt64?
    /// Share of reads of ``LoadPattern/randrw``, in percent.
    public var readPercent = 50
    /// Writes blocks that can be checked, checks everything that is read, and reads everything back at the end.
    public var verify = false
    /// A flush after this many writes; 0 for none.
    public var flushEvery = 0
    /// Every this many writes, the write is a barrier; 0 for none.
    public var barrierEvery = 0
    /// A discard after this many writes; 0 for none. Discarded blocks are not checked until they are written again.
    public var discardEvery = 0
    /// The sector of the first page at which data begin, 0 to 7, so that segments do not start with their page.
    public var skew = 0
    /// Polls the ring this many times before it waits for an event.
    public var spins = 0
    /// Counts intervals of at least this many nanoseconds without any response; nil to count none.
    public var pauseThreshold: UInt64?
    /// The run fails after this many milliseconds without any answer.
    public var stallTimeout = 60_000
    /// Seed of the random numbers.
    public var seed: UInt64 = 1

    /// The defaults: random reads of 4 KiB, one at a time.
    public init() {}

    /// A message about the first rule that the plan breaks; nil if it breaks none.
    public var complaint: String? {
        if blockSize < 512 || blockSize % 512 != 0 { return "the block size must be a multiple of 512" }
        if maxBlockSize < blockSize || maxBlockSize % blockSize != 0 {
            return "the greatest block size must be a multiple of the smallest"
        }
        if maxBlockSize > 16 << 20 { return "blocks above 16 MiB are too large" }
        if depth < 1 || depth > 4096 { return "the depth must be 1 to 4096" }
        if readPercent < 0 || readPercent > 100 { return "the share of reads must be 0 to 100 percent" }
        if verify && blockSize > 40_960 { return "verified blocks must fit into one request: at most 40 KiB" }
        if skew < 0 || skew > 7 { return "the skew must be 0 to 7 sectors" }
        if offset % UInt64(blockSize) != 0 { return "the offset must be a multiple of the block size" }
        return nil
    }
}
