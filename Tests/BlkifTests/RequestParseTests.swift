// SPDX-License-Identifier: BSD-2-Clause
// Every rule of the protocol at its exact boundary, in every ABI.
import Memory
import Testing

@testable import Blkif

/// One request, the disk it goes to, and what becomes of it.
private struct Row: CustomTestStringConvertible, Sendable {
    var name: String
    var request: RequestDescription
    var disk: OfferedFeatures
    var expected: RequestError?

    var testDescription: String { name }
}

private let media: UInt64 = 1000
private let disk = OfferedFeatures(sectorCount: media, discard: DiscardSupport())
private let readOnly = OfferedFeatures(sectorCount: media, isReadOnly: true, discard: DiscardSupport())

private func segment(_ first: UInt8, _ last: UInt8) -> BlockSegment {
    BlockSegment(reference: 0xDEAD_BEEF, firstSector: first, lastSector: last)
}

private func row(
    _ name: String, _ operation: BlockOperation, at sector: UInt64 = 0, _ segments: [BlockSegment],
    count: UInt8? = nil, disk: OfferedFeatures = disk, _ expected: RequestError?
) -> Row {
    let request = RequestDescription(
        operation: operation.rawValue, id: 0x0123_4567_89AB_CDEF, firstSector: sector, segments: segments,
        segmentCount: count, handle: 0xCA00)
    return Row(name: name, request: request, disk: disk, expected: expected)
}

private func discard(
    _ name: String, at sector: UInt64 = 0, _ count: UInt64, disk: OfferedFeatures = disk, _ expected: RequestError?
) -> Row {
    let request = RequestDescription(
        operation: BlockOperation.discard.rawValue, id: .max, firstSector: sector, discardSectors: count)
    return Row(name: name, request: request, disk: disk, expected: expected)
}

private let page = segment(0, 7)

private let segmentRows: [Row] = [
    row("last sector 7", .read, [segment(7, 7)], nil),
    row("last sector 8", .read, [segment(7, 8)], .segmentBeyondPage),
    row("first and last sector 8", .read, [segment(8, 8)], .segmentBeyondPage),
    row("last sector 255", .read, [segment(0, 255)], .segmentBeyondPage),
    row("one sector", .read, [segment(3, 3)], nil),
    row("first one behind last", .read, [segment(4, 3)], .segmentBackwards),
    row("first 255, last 0", .read, [segment(255, 0)], .segmentBackwards),
    row("first 1, last 0", .read, [segment(1, 0)], .segmentBackwards),
    row(
        "bad segment is the last of 11", .read, Array(repeating: page, count: 10) + [segment(0, 8)],
        .segmentBeyondPage),
    row(
        "backwards segment is the last of 11", .read, Array(repeating: page, count: 10) + [segment(1, 0)],
        .segmentBackwards),
    row("bad segment behind those that are counted", .read, [page, segment(9, 8)], count: 1, nil),
    row("0 segments of a read", .read, [], .noSegments),
    row("0 segments of a write", .write, [], .noSegments),
    row("0 segments although one is there", .read, [page], count: 0, .noSegments),
    row("0 segments of a flush", .flush, [], nil),
    row("0 segments of a barrier", .writeBarrier, [], nil),
    row("1 segment", .read, [page], nil),
    row("11 segments", .read, Array(repeating: page, count: 11), nil),
    row("12 segments", .read, Array(repeating: page, count: 11), count: 12, .tooManySegments),
    row("128 segments", .read, Array(repeating: page, count: 11), count: 128, .tooManySegments),
    row("255 segments", .write, Array(repeating: page, count: 11), count: 255, .tooManySegments),
    row("12 segments of a flush", .flush, [], count: 12, .tooManySegments),
    row("12 segments of a barrier", .writeBarrier, [], count: 12, .tooManySegments),
]

private let rangeRows: [Row] = [
    row("last sector of the disk", .read, at: media - 1, [segment(0, 0)], nil),
    row("one sector behind the disk", .read, at: media, [segment(0, 0)], .beyondEndOfDisk),
    row("two sectors at the last one", .read, at: media - 1, [segment(0, 1)], .beyondEndOfDisk),
    row("88 sectors that fit exactly", .write, at: media - 88, Array(repeating: page, count: 11), nil),
    row("88 sectors, one too far", .write, at: media - 87, Array(repeating: page, count: 11), .beyondEndOfDisk),
    row("sector 2^32", .read, at: 1 << 32, [segment(0, 0)], .beyondEndOfDisk),
    row("sector 2^63", .read, at: 1 << 63, [segment(0, 0)], .beyondEndOfDisk),
    row("sector 2^64-1", .read, at: .max, [segment(0, 0)], .beyondEndOfDisk),
    row("end wraps to 0", .read, at: .max - 7, [page], .beyondEndOfDisk),
    row("end wraps into the disk", .read, at: .max - 3, [page], .beyondEndOfDisk),
    row("flush with data beyond the end", .flush, at: media, [page], .beyondEndOfDisk),
    row("barrier with data beyond the end", .writeBarrier, at: media, [page], .beyondEndOfDisk),
    row("flush without data, sector of no meaning", .flush, at: .max, [], nil),
    row("barrier without data, sector of no meaning", .writeBarrier, at: .max, [], nil),
    row("empty disk", .read, [segment(0, 0)], disk: OfferedFeatures(sectorCount: 0), .beyondEndOfDisk),
    row("disk of one sector", .read, [segment(5, 5)], disk: OfferedFeatures(sectorCount: 1), nil),
    row("disk smaller than the request", .read, [page], disk: OfferedFeatures(sectorCount: 7), .beyondEndOfDisk),
    row(
        "last sector of the largest disk", .read, at: .max - 1, [segment(0, 0)],
        disk: OfferedFeatures(sectorCount: .max),
        nil),
    row("largest disk, wrap", .read, at: .max - 6, [page], disk: OfferedFeatures(sectorCount: .max), .beyondEndOfDisk),
    row(
        "largest disk, sector 2^64-1", .read, at: .max, [page], disk: OfferedFeatures(sectorCount: .max),
        .beyondEndOfDisk),
    row("disk of 2^63 sectors", .read, at: (1 << 63) - 8, [page], disk: OfferedFeatures(sectorCount: 1 << 63), nil),
    row(
        "disk of 2^63 sectors, one too far", .read, at: (1 << 63) - 7, [page],
        disk: OfferedFeatures(sectorCount: 1 << 63),
        .beyondEndOfDisk),
]

private let discardRows: [Row] = [
    discard("discard of one sector", 1, nil),
    discard("discard of no sectors", 0, .emptyDiscard),
    discard("discard of no sectors behind the disk", at: .max, 0, .emptyDiscard),
    discard("discard of the whole disk", media, nil),
    discard("discard of one sector more", media + 1, .beyondEndOfDisk),
    discard("discard of the last sector", at: media - 1, 1, nil),
    discard("discard behind the disk", at: media, 1, .beyondEndOfDisk),
    discard("discard of 2^64-1 sectors", .max, .beyondEndOfDisk),
    discard("discard that wraps to 0", at: 1, .max, .beyondEndOfDisk),
    discard("discard that wraps into the disk", at: .max - 1, 3, .beyondEndOfDisk),
    discard("discard of 2^63 sectors from 2^63", at: 1 << 63, 1 << 63, .beyondEndOfDisk),
    discard("discard of 2^32 sectors", 1 << 32, .beyondEndOfDisk),
    discard("discard of 2^64-1 sectors of as many", .max, disk: everything, nil),
    discard("discard of 2^64-1 sectors from 1 of as many", at: 1, .max, disk: everything, .beyondEndOfDisk),
]

private let everything = OfferedFeatures(sectorCount: .max, discard: DiscardSupport())

private let permissionRows: [Row] = [
    row("read of a read-only disk", .read, [page], disk: readOnly, nil),
    row("write to a read-only disk", .write, [page], disk: readOnly, .readOnlyDisk),
    row("barrier to a read-only disk", .writeBarrier, [page], disk: readOnly, .readOnlyDisk),
    row("barrier without data to a read-only disk", .writeBarrier, [], disk: readOnly, .readOnlyDisk),
    row("flush with data to a read-only disk", .flush, [page], disk: readOnly, .readOnlyDisk),
    row("flush without data to a read-only disk", .flush, [], disk: readOnly, nil),
    discard("discard to a read-only disk", 1, disk: readOnly, .readOnlyDisk),
    row(
        "barrier that was not offered", .writeBarrier, [page],
        disk: OfferedFeatures(sectorCount: media, hasBarrier: false), .unknownOperation),
    row(
        "flush that was not offered", .flush, [], disk: OfferedFeatures(sectorCount: media, canFlush: false),
        .unknownOperation),
    discard(
        "discard that was not offered", 1, disk: OfferedFeatures(sectorCount: media, discard: nil),
        .unknownOperation),
    row(
        "barrier with only flush offered", .writeBarrier, [],
        disk: OfferedFeatures(sectorCount: media, hasBarrier: false, canFlush: true), .unknownOperation),
    row(
        "flush with only barrier offered", .flush, [],
        disk: OfferedFeatures(sectorCount: media, hasBarrier: true, canFlush: false), .unknownOperation),
    row(
        "read and write need no offer", .write, [page],
        disk: OfferedFeatures(sectorCount: media, hasBarrier: false, canFlush: false), nil),
]

@Suite("Rules of requests")
struct RequestParseTests {
    @Test("Each rule at its boundary", arguments: segmentRows + rangeRows + discardRows + permissionRows)
    private func table(row: Row) {
        for abi in RingABI.allCases {
            let layout = RingLayout(abi)
            let slot = row.request.slot(layout)
            #expect(slot.matches(row.request.slotOfC(abi), count: layout.slotSize), "encoders differ, \(abi)")

            let request = ParsedRequest()
            let error = request.parse(slot, layout: layout, disk: row.disk)
            #expect(error == row.expected, "\(abi)")
            #expect(request.id == row.request.id && request.wireOperation == row.request.operation, "\(abi)")
            #expect(
                meaning(of: slot, abi: abi, disk: row.disk) == (
                    request.id, row.request.operation, request.meaning(error)
                ))
            guard error == nil else { continue }
            #expect(request.operation.rawValue == row.request.operation)
            #expect(request.firstSector == row.request.firstSector)
            if row.request.isDiscard {
                #expect(request.sectorCount == row.request.discardSectors && request.segmentCount == 0)
            } else {
                let segments = row.request.segments.prefix(Int(row.request.countByte))
                #expect(request.sectorCount == segments.reduce(0) { $0 + UInt64($1.sectorCount) })
                #expect(Int(request.segmentCount) == segments.count)
                #expect((0..<segments.count).map { request.segments[$0] } == Array(segments))
            }
        }
    }

    @Test("All 256 operations", arguments: RingABI.allCases)
    func operations(abi: RingABI) {
        let layout = RingLayout(abi)
        let known: Set<UInt8> = [0, 1, 2, 3, 5]
        for operation in UInt8.min...UInt8.max {
            let id = 0xFFEE_DDCC_BBAA_9900 | UInt64(operation)
            let slot = RequestEncoder(layout: layout).slot(
                operation: operation, id: id, firstSector: 1,
                segments: [BlockSegment(reference: 8, firstSector: 0, lastSector: 0)])
            let request = ParsedRequest()
            let error = request.parse(slot, layout: layout, disk: disk)
            #expect(error == (known.contains(operation) ? nil : .unknownOperation), "operation \(operation)")
            #expect(request.id == id && request.wireOperation == operation)
        }
    }

    @Test("Only bit 0 of the flag makes a discard secure", arguments: RingABI.allCases)
    func secureFlag(abi: RingABI) {
        let layout = RingLayout(abi)
        for flag in UInt8.min...UInt8.max {
            var slot = RequestEncoder(layout: layout).discard(id: 1, firstSector: 0, sectorCount: 1)
            slot.store(flag, at: 1)
            let request = ParsedRequest()
            #expect(request.parse(slot, layout: layout, disk: disk) == nil)
            #expect(request.secure == (flag & 1 == 1))
        }
    }

    /// Requests live in a pool and are parsed in place, again and again.
    @Test("Nothing of an earlier request is left", arguments: RingABI.allCases)
    func reuse(abi: RingABI) {
        let layout = RingLayout(abi)
        let encoder = RequestEncoder(layout: layout)
        let first = encoder.discard(id: 1, firstSector: 5, sectorCount: 77, secure: true)
        let eleven = encoder.slot(
            operation: BlockOperation.write.rawValue, id: 2, firstSector: 9, segments: Array(repeating: page, count: 11)
        )
        let second: [(String, SlotBytes, OfferedFeatures)] = [
            ("read", encoder.slot(operation: 0, id: 3, firstSector: 1, segments: [page]), disk),
            ("flush", encoder.slot(operation: 3, id: 3, firstSector: 0, segments: []), disk),
            ("unknown", encoder.slot(operation: 99, id: 3, firstSector: 2, segments: [page]), disk),
            (
                "not offered", encoder.slot(operation: 3, id: 3, firstSector: 2, segments: []),
                OfferedFeatures(sectorCount: media, canFlush: false)
            ),
            ("too many", encoder.slot(operation: 1, id: 3, firstSector: 2, segments: [page], segmentCount: 12), disk),
            ("read-only", encoder.slot(operation: 1, id: 3, firstSector: 2, segments: [page]), readOnly),
            ("discard, read-only", encoder.discard(id: 3, firstSector: 2, sectorCount: 8), readOnly),
            ("discard", encoder.discard(id: 3, firstSector: 2, sectorCount: 8), disk),
        ]
        for (name, slot, limits) in second {
            let fresh = ParsedRequest()
            let expected = fresh.parse(slot, layout: layout, disk: limits)
            for before in [first, eleven] {
                let used = ParsedRequest()
                _ = used.parse(before, layout: layout, disk: disk)
                #expect(used.parse(slot, layout: layout, disk: limits) == expected)
                #expect(used.secure == fresh.secure, "\(name), \(abi)")
                #expect(used.sectorCount == fresh.sectorCount, "\(name), \(abi)")
                #expect(used.firstSector == fresh.firstSector, "\(name), \(abi)")
                #expect(used.segmentCount == fresh.segmentCount, "\(name), \(abi)")
                #expect(used.id == 3 && used.wireOperation == fresh.wireOperation, "\(name), \(abi)")
            }
        }
    }
}
