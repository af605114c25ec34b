// SPDX-License-Identifier: BSD-2-Clause
// Indirect requests against Xen's own struct blkif_request_indirect.
import Blkif
import CBlkifOracle
import Memory
import TestSupport
import Testing

private struct NoMemory: Error {}

@Suite("Indirect requests")
struct IndirectRequestTests {
    private let disk = OfferedFeatures(sectorCount: 1 << 20, maximumIndirectSegments: 4096)

    /// A slot written at the offsets of Xen's headers.
    private func slot(
        _ theirs: oracle_layout, operation: UInt8 = 0, count: UInt16, references: [UInt32]
    ) -> SlotBytes {
        var slot = SlotBytes()
        slot.store(UInt8(6), at: 0)
        slot.store(operation, at: theirs.indirect_op)
        slot.store(count, at: theirs.indirect_nr_segments)
        slot.store(UInt64(0x1122_3344_5566_7788), at: theirs.indirect_id)
        slot.store(UInt64(4711), at: theirs.indirect_sector_number)
        slot.store(UInt16(0xffff), at: theirs.indirect_handle)
        for (index, reference) in references.enumerated() {
            slot.store(reference, at: theirs.indirect_grefs + index * 4)
        }
        return slot
    }

    @Test("the fields stand where blkif.h puts them", arguments: [RingABI.x86_64, .x86_32])
    func layout(_ abi: RingABI) throws {
        let theirs = (abi == .x86_32 ? oracle_x86_32() : oracle_x86_64()).pointee.layout
        let references = (0..<8).map { UInt32(1000 + $0) }
        let bytes = slot(theirs, operation: 1, count: 4096, references: references)
        var request = BlockRequest()
        #expect(BlockRequest.isIndirect(bytes, disk: disk))
        let header = try request.beginIndirect(bytes, layout: RingLayout(abi), disk: disk).get()
        #expect((0..<8).map { header.references[$0] } == references)
        #expect(request.id == 0x1122_3344_5566_7788 && request.firstSector == 4711 && request.operation == .write)
        #expect(request.wireOperation == 1 && header.segmentCount == 4096 && header.pageCount == 8)
        #expect((0..<8).map { header.byteCount(ofPage: $0) } == Array(repeating: 4096, count: 8))
        let ours = RequestEncoder(layout: RingLayout(abi)).indirect(
            operation: 1, id: request.id, firstSector: 4711, segmentCount: 4096, references: references)
        var again = BlockRequest()
        #expect(
            (0..<8).map { try! again.beginIndirect(ours, layout: RingLayout(abi), disk: disk).get().references[$0] }
                == references)
    }

    @Test("a segment stands in memory as blkif.h has it", arguments: [RingABI.x86_64, .x86_32])
    func segmentLayout(_ abi: RingABI) throws {
        let theirs = (abi == .x86_32 ? oracle_x86_32() : oracle_x86_64()).pointee.layout
        guard let store = SegmentStore(requestCount: 3, capacity: 600) else { throw NoMemory() }
        let place = store.place(of: 2, page: 1) + 5 * theirs.segment_size
        store.memory.store([0x78, 0x56, 0x34, 0x12], at: place + theirs.segment_gref)
        store.memory.store([3], at: place + theirs.segment_first_sect)
        store.memory.store([6], at: place + theirs.segment_last_sect)
        #expect(store[2][517] == BlockSegment(reference: 0x1234_5678, firstSector: 3, lastSector: 6))
        #expect(store.place(of: 1, page: 0) == 600 * theirs.segment_size)
    }

    @Test("segments are checked where they were copied to")
    func segments() throws {
        guard let store = SegmentStore(requestCount: 1, capacity: 513) else { throw NoMemory() }
        let row = store[0]
        func check(_ change: (SegmentRow) -> Void = { _ in }, at sector: UInt64 = 0) -> RequestError? {
            for number in 0..<513 { row[number] = BlockSegment(reference: 9, firstSector: 0, lastSector: 7) }
            change(row)
            var request = BlockRequest()
            request.firstSector = sector
            let problem = request.endIndirect(segments: row, count: 513, disk: disk)
            if problem == nil { #expect(request.segmentCount == 513 && request.sectorCount == 513 * 8) }
            return problem
        }
        #expect(check() == nil && check(at: 1 << 20 - 513 * 8) == nil)
        #expect(check(at: 1 << 20 - 513 * 8 + 1) == .beyondEndOfDisk && check(at: .max) == .beyondEndOfDisk)
        #expect(check(at: .max - 513 * 8 + 1) == .beyondEndOfDisk)
        #expect(
            check({
                $0[512].firstSector = 7; $0[512].lastSector = 6
            }) == .segmentBackwards)
        #expect(check({ $0[512].lastSector = 8 }) == .segmentBeyondPage)
        #expect(
            check({
                $0[0].firstSector = 255; $0[0].lastSector = 255
            }) == .segmentBeyondPage)
    }

    @Test("what is wrong is named without a look at any page")
    func refusals() {
        let theirs = oracle_x86_64().pointee.layout
        func refusal(_ operation: UInt8, _ count: UInt16, _ disk: OfferedFeatures) -> RequestError? {
            var request = BlockRequest()
            let bytes = slot(theirs, operation: operation, count: count, references: [1])
            switch request.beginIndirect(bytes, layout: RingLayout(.x86_64), disk: disk) {
            case .success: return nil
            case .failure(let rule): return rule
            }
        }
        let few = OfferedFeatures(sectorCount: 1 << 20, maximumIndirectSegments: 32)
        let readOnly = OfferedFeatures(sectorCount: 1 << 20, isReadOnly: true, maximumIndirectSegments: 32)
        let wild = OfferedFeatures(sectorCount: 1 << 20, maximumIndirectSegments: .max)
        #expect(refusal(0, 32, few) == nil && refusal(0, 33, few) == .tooManySegments)
        #expect(refusal(0, 4096, wild) == nil && refusal(0, 4097, wild) == .tooManySegments)
        #expect(refusal(0, 0, few) == .noSegments)
        #expect(refusal(1, 1, readOnly) == .readOnlyDisk && refusal(0, 1, readOnly) == nil)
        for operation in UInt8(2)...255 { #expect(refusal(operation, 1, few) == .innerOperation) }
        #expect(
            !BlockRequest.isIndirect(slot(theirs, count: 1, references: [1]), disk: OfferedFeatures(sectorCount: 1)))
    }
}
