// SPDX-License-Identifier: BSD-2-Clause
// A slot of any bytes, read by the parser and through C's structs.
import CBlkifOracle
import Memory
import TestSupport

@testable import Blkif

private nonisolated(unsafe) let parsed = ParsedRequest(capacity: Int(BlkifLimits.mostIndirectSegments))

/// Parses one slot, and says where the parser and C differ.
func compareSlot() -> [String] {
    guard let flags = FuzzInput.take(2), let size = FuzzInput.take(8) else { return [] }
    let abi: RingABI = flags & 1 != 0 ? .x86_32 : .x86_64
    let disk = OfferedFeatures(
        sectorCount: size >> (flags >> 8), isReadOnly: flags & 2 != 0,
        discard: flags & 4 != 0 ? DiscardSupport() : nil, hasBarrier: flags & 8 != 0, canFlush: flags & 16 != 0,
        maximumIndirectSegments: flags & 32 != 0 ? UInt32(size & 0x1fff) : 0)
    let layout = RingLayout(abi)
    var slot = SlotBytes()
    for offset in 0..<SlotBytes.byteCount { slot.store(UInt8(FuzzInput.take(1) ?? 0), at: offset) }
    if slot.load(UInt8.self, at: 0) == BlkifLimits.indirectOperation, disk.maximumIndirectSegments > 0 {
        return compareIndirect(slot, layout, abi, disk)
    }
    let error = parsed.parse(slot, layout: layout, disk: disk)
    let second = meaning(of: slot, abi: abi, disk: disk)
    let first = (parsed.id, parsed.wireOperation, parsed.meaning(error))
    return first == second ? [] : ["\(abi), \(disk): the parser says \(first), and C \(second)"]
}

/// An indirect request by the offsets of `struct blkif_request_indirect`.
private func compareIndirect(
    _ slot: SlotBytes, _ layout: RingLayout, _ abi: RingABI, _ disk: OfferedFeatures
) -> [String] {
    let fields = abi.oracle.pointee.layout
    let count = Int(slot.load(UInt16.self, at: fields.indirect_nr_segments))
    let inner = slot.load(UInt8.self, at: fields.indirect_op)
    let first = slot.load(UInt64.self, at: fields.indirect_sector_number)
    let isPossible =
        inner < 2 && count > 0 && count <= min(Int(disk.maximumIndirectSegments), 4096)
        && !(disk.isReadOnly && inner == 1)
    var request = BlockRequest()
    let begun = request.beginIndirect(slot, layout: layout, disk: disk)
    guard request.id == slot.load(UInt64.self, at: fields.indirect_id), request.wireOperation == inner else {
        return ["\(abi): the response of an indirect request is another one's"]
    }
    guard case .success(let indirect) = begun else {
        return isPossible ? ["\(abi): refused: operation \(inner) of \(count) segments"] : []
    }
    guard isPossible, indirect.segmentCount == count else { return ["\(abi): operation \(inner), \(count) segments"] }
    for page in 0..<(count + 511) / 512 {
        guard indirect.references[page] == slot.load(UInt32.self, at: fields.indirect_grefs + page * 4) else {
            return ["\(abi): page \(page) is \(indirect.references[page])"]
        }
    }
    // What the pages say, as far as the input says it.
    var total: UInt64 = 0
    var isRight = true
    for number in 0..<count {
        let bits = FuzzInput.take(2) ?? 0
        let segment = BlockSegment(
            reference: UInt32(number), firstSector: UInt8(bits & 255), lastSector: UInt8(bits >> 8))
        parsed.segments[number] = segment
        isRight = isRight && segment.firstSector <= segment.lastSector && segment.lastSector < 8
        if isRight { total += UInt64(segment.lastSector - segment.firstSector) + 1 }
    }
    let (end, wraps) = first.addingReportingOverflow(total)
    isRight = isRight && !wraps && end <= disk.sectorCount
    let error = request.endIndirect(segments: parsed.segments, count: count, disk: disk)
    guard (error == nil) == isRight else {
        return ["\(abi): \(count) segments of \(total) sectors give \(error as Any)"]
    }
    return error == nil && request.sectorCount != total ? ["\(abi): \(request.sectorCount) sectors of \(total)"] : []
}
