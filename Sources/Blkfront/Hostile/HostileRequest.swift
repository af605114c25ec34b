// SPDX-License-Identifier: BSD-2-Clause
// Requests that a backend must refuse, each for one reason, with the expected answer.
public import Blkif
public import Memory

/// A slot that breaks one rule of the protocol, and the status of the response to it.
public struct HostileRequest: Sendable {
    /// What is wrong, as a sentence for test reports.
    public let name: String
    /// The bytes for the ring, with the id that was asked for.
    public let slot: SlotBytes
    /// What the backend must answer.
    public let expected: BlockStatus

    /// One request for each broken rule, for a disk with the size and features of `disk`. Valid segments use
    /// `reference`, a grant for reading and writing.
    ///
    /// All requests have the id `id`: put one on the ring at a time, or make a table for each id.
    public static func table(layout: RingLayout, disk: OfferedFeatures, id: UInt64, reference: UInt32)
        -> [HostileRequest]
    {
        let encoder = RequestEncoder(layout: layout)
        let end = disk.sectorCount
        let page = BlockSegment(reference: reference, firstSector: 0, lastSector: 7)
        var table: [HostileRequest] = []

        func add(
            _ name: String, _ operation: UInt8, sector: UInt64 = 0, segments: [BlockSegment]? = nil,
            count: UInt8? = nil, expected: BlockStatus = .error
        ) {
            let slot = encoder.slot(
                operation: operation, id: id, firstSector: sector, segments: segments ?? [page], segmentCount: count)
            table.append(HostileRequest(name: name, slot: slot, expected: expected))
        }

        for operation: UInt8 in [4, 6, 7, 127, 128, 255] where operation != 6 || disk.maximumIndirectSegments == 0 {
            add("operation \(operation)", operation, expected: .notSupported)
        }
        for (word, operation) in [("read", UInt8(0)), ("write", UInt8(1))] {
            add("\(word) without segments", operation, segments: [])
            for count: UInt8 in [12, 13, 128, 255] { add("\(word) with \(count) segments", operation, count: count) }
            for (first, last) in [(1, 0), (7, 6), (255, 0), (0, 8), (0, 255), (8, 8), (255, 255)] {
                let segment = BlockSegment(
                    reference: reference, firstSector: UInt8(first), lastSector: UInt8(last))
                add("\(word) of sectors \(first) to \(last) of a page", operation, segments: [segment])
                add("\(word) whose second segment is \(first) to \(last)", operation, segments: [page, segment])
            }
            for sector in [end, end &- 7, end &+ 1, 1 << 55, 1 << 62, 1 << 63, .max - 7, .max] where sector != 0 {
                add("\(word) at sector \(sector)", operation, sector: sector)
            }
        }
        if disk.isReadOnly {
            add("write to a read-only disk", BlockOperation.write.rawValue)
            if disk.hasBarrier { add("barrier to a read-only disk", BlockOperation.writeBarrier.rawValue) }
        }
        if !disk.hasBarrier {
            add("barrier that was not offered", BlockOperation.writeBarrier.rawValue, expected: .notSupported)
        }
        if !disk.canFlush {
            add("flush that was not offered", BlockOperation.flush.rawValue, segments: [], expected: .notSupported)
        }
        return table + discards(encoder, disk, id)
    }

    /// One indirect request for each broken rule, for a disk that offers such requests.
    ///
    /// `list` is a grant of a page with 512 valid segments of one sector each, and `bad` a reference that cannot be read.
    public static func indirectTable(
        layout: RingLayout, disk: OfferedFeatures, id: UInt64, list: UInt32, bad: UInt32
    ) -> [HostileRequest] {
        let encoder = RequestEncoder(layout: layout)
        var table: [HostileRequest] = []
        func add(
            _ name: String, _ operation: UInt8, sector: UInt64 = 0, count: UInt16 = 20, references: [UInt32]? = nil
        ) {
            let slot = encoder.indirect(
                operation: operation, id: id, firstSector: sector, segmentCount: count,
                references: references ?? Array(repeating: list, count: 8))
            table.append(HostileRequest(name: "indirect \(name)", slot: slot, expected: .error))
        }
        for operation: UInt8 in [2, 3, 4, 5, BlkifLimits.indirectOperation, 7, 255] {
            add("operation \(operation)", operation)
        }
        let most = UInt16(clamping: disk.maximumIndirectSegments)
        let end = disk.sectorCount
        for (word, operation) in [("read", UInt8(0)), ("write", UInt8(1))] {
            for count: UInt16 in [0, most &+ 1, 4097, 8 * 512 + 512, .max] {
                add("\(word) of \(count) segments", operation, count: count)
            }
            for sector in [end, end &- 19, end &+ 1, 1 << 55, 1 << 62, 1 << 63, .max - 19, .max] where sector != 0 {
                add("\(word) at sector \(sector)", operation, sector: sector)
            }
            for page in 0..<(Int(most) + 511) / 512 {
                var references = Array(repeating: list, count: 8)
                references[page] = bad
                add("\(word) with a bad page \(page)", operation, count: most, references: references)
            }
        }
        if disk.isReadOnly { add("write to a read-only disk", 1) }
        return table
    }

    private static func discards(_ encoder: RequestEncoder, _ disk: OfferedFeatures, _ id: UInt64) -> [HostileRequest] {
        func discard(_ name: String, _ sector: UInt64, _ count: UInt64, _ expected: BlockStatus) -> HostileRequest {
            HostileRequest(
                name: name, slot: encoder.discard(id: id, firstSector: sector, sectorCount: count), expected: expected)
        }
        if disk.discard == nil { return [discard("discard that was not offered", 0, 8, .notSupported)] }
        if disk.isReadOnly { return [discard("discard of a read-only disk", 0, 8, .error)] }
        let end = disk.sectorCount
        return [
            discard("discard of no sectors", 0, 0, .error),
            discard("discard behind the end", end, 1, .error),
            discard("discard across the end", end &- 1, 2, .error),
            discard("discard of everything and one", 0, end &+ 1, .error),
            discard("discard whose end wraps to 0", .max, 1, .error),
            discard("discard whose end wraps onto the disk", .max - 7, 16, .error),
            discard("discard of 2^64 - 1 sectors", 1, .max, .error),
            discard("discard of 2^63 sectors", 0, 1 << 63, .error),
        ]
    }
}
