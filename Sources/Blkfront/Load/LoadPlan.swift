// SPDX-License-Identifier: BSD-2-Clause
// What a load run does.

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

/// What a load run does. Sizes and offsets are in bytes.
public struct LoadPlan: Sendable {
    /// Order and kind of operations.
    public var pattern = LoadPattern.randread
    /// The smallest length of an operation; every offset and length is a multiple of it, and so is a verified block.
    public var blockSize = 4096
    /// The greatest length of an operation.
    public var maxBlockSize = 4096
    /// Operations in flight for each queue.
    public var depth = 1
    /// Where the region begins that is used.
    public var offset: UInt64 = 0
    /// Length of the region; nil for the rest of the disk.
    public var size: UInt64?
    /// Ends the run after this many nanoseconds, nil for no such end.
    public var duration: UInt64?
    /// Ends the run after this many reads and writes, all queues together. With neither end, one pass over the region.
    public var count: UInt64?
    /// Share of reads of ``LoadPattern/randrw``, in percent.
    public var readPercent = 50
    /// Writes blocks that can be checked, checks all that is read, and reads all back at the end.
    public var verify = false
    /// A flush after so many writes, 0 for none.
    public var flushEvery = 0
    /// A barrier with the data of every so many writes, 0 for none.
    public var barrierEvery = 0
    /// A discard after so many writes, 0 for none. What was discarded is not checked until it is written again.
    public var discardEvery = 0
    /// Data begins at this sector of its first page, 0 to 7, so that segments do not begin with their page.
    public var skew = 0
    /// Looks at the ring this many times before it waits for an event.
    public var spins = 0
    /// Counts times of so many nanoseconds or more without any response, nil for none.
    public var pauseThreshold: UInt64?
    /// A run without any answer for so many milliseconds fails.
    public var stallTimeout = 60_000
    /// Where the random numbers begin.
    public var seed: UInt64 = 1

    /// The defaults: random reads of 4 KiB, one at a time.
    public init() {}

    /// The first rule that the plan breaks, as a message.
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
