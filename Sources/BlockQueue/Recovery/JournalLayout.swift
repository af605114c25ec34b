// SPDX-License-Identifier: BSD-2-Clause
// Where everything stands in a journal: the one place that knows. docs/recovery.md describes the same for readers.
//
//   page 0        what was agreed on: magic, version, sizes, frontend, image
//   per queue     one page: requests taken, the one that is replayed alone, the ring;
//                 then a slot of 128 bytes for each request that can be in flight; then a trial of 8 bytes for each
import Memory

/// Offsets and sizes in bytes. All numbers are little-endian, as the ring's are.
package enum JournalLayout {
    /// "XBBJRNL" and a line feed, which a transfer as text would change.
    package static let magic: UInt64 = 0x0a4c_4e52_4a42_4258
    /// Raised when a reader of the old layout would read the new one wrongly.
    package static let version: UInt32 = 1
    package static let pageSize = 4096
    package static let slotSize = 128
    static let trialSize = 8
    package static let nameSize = 32
    package static let mostQueues = 64
    package static let mostRingPages = 32
    package static let mostEntries = 1024

    // The first page.
    package static let magicOffset = 0
    package static let versionOffset = 8
    /// 1 while everything below is complete.
    package static let stateOffset = 12
    package static let fileSizeOffset = 16
    package static let queueCountOffset = 24
    package static let ringPagesOffset = 28
    package static let entriesOffset = 32
    package static let slotSizeOffset = 36
    package static let queueSizeOffset = 40
    package static let domainOffset = 48
    /// 1 for the 32-bit x86 ABI, 0 for the others.
    package static let protocolOffset = 52
    /// Bit 0: read-only.
    package static let flagsOffset = 56
    package static let imageDeviceOffset = 64
    package static let imageNumberOffset = 72
    package static let formatOffset = 80
    package static let pluginOffset = 112
    /// Images of the chain that stand from ``chainOffset``; 0 in journals of workers that did not write them.
    package static let chainCountOffset = 144
    package static let chainOffset = 160
    package static let identitySize = 16
    package static let mostImages = 64

    // The page of a queue.
    static let consumedOffset = 0
    static let aloneOffset = 8
    package static let channelOffset = 64
    package static let referencesOffset = 68

    // A slot.
    /// 1 more than the number of the request since the connection began; 0: free.
    static let takenOffset = 0
    /// The index of its response and ``answeredBit``, or 0.
    static let answerOffset = 8
    static let bytesOffset = 16
    static let answeredBit: UInt64 = 1 << 32

    /// Bytes of a queue with `entries` slots.
    package static func queueSize(entries: Int) -> Int {
        let bytes = pageSize + entries * (slotSize + trialSize)
        return (bytes + pageSize - 1) & ~(pageSize - 1)
    }

    /// Bytes of a journal.
    package static func fileSize(queues: Int, entries: Int) -> Int { pageSize + queues * queueSize(entries: entries) }

    /// Bytes of the largest journal: 9 MiB.
    package static let mostBytes = fileSize(queues: mostQueues, entries: mostEntries)

    /// Where a slot begins in its queue.
    @inline(__always)
    static func slot(_ index: Int32) -> Int { pageSize &+ Int(index) &* slotSize }

    /// Where a slot's trial stands in its queue.
    static func trial(_ index: Int32, entries: Int) -> Int { pageSize + entries * slotSize + Int(index) * trialSize }
}
