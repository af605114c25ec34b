// SPDX-License-Identifier: BSD-2-Clause
// A request as a test wants it, its bytes by our encoder and by C's structs, and a second opinion on what it means.
import CBlkifOracle
import Memory
import TestSupport

@testable import Blkif

/// The fields of a request on the wire, right or wrong.
struct RequestDescription {
    var operation: UInt8 = 0
    var id: UInt64 = 0
    var firstSector: UInt64 = 0
    var segments: [BlockSegment] = []
    /// What the frontend says, if not the number of segments.
    var segmentCount: UInt8?
    var handle: UInt16 = 0
    /// Of a discard.
    var discardSectors: UInt64 = 0
    var secure = false

    var isDiscard: Bool { operation == BlockOperation.discard.rawValue }
    /// The byte nr_segments.
    var countByte: UInt8 { segmentCount ?? UInt8(segments.count) }
    /// Sectors of all segments.
    var segmentSectors: UInt64 { segments.reduce(0) { $0 + UInt64($1.sectorCount) } }

    /// The slot as our encoder makes it.
    func slot(_ layout: RingLayout) -> SlotBytes {
        let encoder = RequestEncoder(layout: layout)
        if isDiscard {
            return encoder.discard(id: id, firstSector: firstSector, sectorCount: discardSectors, secure: secure)
        }
        return encoder.slot(
            operation: operation, id: id, firstSector: firstSector, segments: segments, segmentCount: segmentCount,
            handle: handle)
    }

    /// The slot as C's assignments to `struct blkif_request` make it.
    func slotOfC(_ abi: RingABI) -> SlotBytes {
        var request = oracle_request()
        request.operation = operation
        request.nr_segments = countByte
        request.flag = secure ? 1 : 0
        request.handle = isDiscard ? 0 : handle
        request.id = id
        request.sector_number = firstSector
        request.nr_sectors = discardSectors
        withUnsafeMutableBytes(of: &request.gref) { bytes in
            for (index, segment) in segments.enumerated() {
                bytes.storeBytes(of: segment.reference, toByteOffset: index * 4, as: UInt32.self)
            }
        }
        withUnsafeMutableBytes(of: &request.first_sect) { bytes in
            for (index, segment) in segments.enumerated() { bytes[index] = segment.firstSector }
        }
        withUnsafeMutableBytes(of: &request.last_sect) { bytes in
            for (index, segment) in segments.enumerated() { bytes[index] = segment.lastSector }
        }
        var slot = SlotBytes()
        withUnsafeMutableBytes(of: &slot) { abi.oracle.pointee.encode($0.baseAddress, &request) }
        return slot
    }

    /// Fills every byte that must not matter with noise: paddings, the handle, segments that are not counted, what
    /// stands behind the fields of a discard, and all behind the slot.
    func addNoise(to slot: inout SlotBytes, _ layout: RingLayout, _ random: inout SplitMix64) {
        slot.scramble(2..<layout.idOffset, &random)
        slot.scramble(layout.slotSize..<SlotBytes.byteCount, &random)
        if isDiscard {
            let flag = UInt8(truncatingIfNeeded: random.next()) & 0xFE | (secure ? 1 : 0)
            slot.store(flag, at: 1)
            slot.scramble(layout.segmentsOffset + 8..<layout.slotSize, &random)
            return
        }
        for index in 0..<11 {
            let offset = layout.segmentsOffset + 8 * index
            slot.scramble(index < Int(countByte) ? offset + 6..<offset + 8 : offset..<offset + 8, &random)
        }
    }
}

/// What a request must mean.
enum Meaning: Equatable {
    case error(RequestError)
    case request(operation: BlockOperation, sectors: UInt64, segments: [BlockSegment], secure: Bool)
}

/// Reads a slot through C's structs and applies the rules of blkif.h in the order in which we promise them. Written
/// apart from the parser, slowly and with arithmetic that cannot wrap.
func meaning(of slot: SlotBytes, abi: RingABI, disk: OfferedFeatures) -> (id: UInt64, wireOperation: UInt8, Meaning) {
    var request = oracle_request()
    withUnsafeBytes(of: slot) { abi.oracle.pointee.decode($0.baseAddress, &request) }
    return (request.id, request.operation, meaning(of: &request, disk))
}

private func meaning(of request: inout oracle_request, _ disk: OfferedFeatures) -> Meaning {
    func onDisk(_ count: UInt64) -> Bool {
        let (end, wrapped) = request.sector_number.addingReportingOverflow(count)
        return !wrapped && end <= disk.sectorCount
    }
    let operation: BlockOperation
    switch request.operation {
    case 0: operation = .read
    case 1: operation = .write
    case 2 where disk.hasBarrier: operation = .writeBarrier
    case 3 where disk.canFlush: operation = .flush
    case 5 where disk.discard != nil: operation = .discard
    default: return .error(.unknownOperation)
    }
    if operation == .discard {
        if disk.isReadOnly { return .error(.readOnlyDisk) }
        if request.nr_sectors == 0 { return .error(.emptyDiscard) }
        if !onDisk(request.nr_sectors) { return .error(.beyondEndOfDisk) }
        let secure = request.flag % 2 == 1
        return .request(operation: .discard, sectors: request.nr_sectors, segments: [], secure: secure)
    }
    let count = Int(request.nr_segments)
    if count > 11 { return .error(.tooManySegments) }
    if count == 0 && (operation == .read || operation == .write) { return .error(.noSegments) }
    if disk.isReadOnly && (operation == .writeBarrier || (count > 0 && operation != .read)) {
        return .error(.readOnlyDisk)
    }
    let references = withUnsafeBytes(of: &request.gref) { Array($0.bindMemory(to: UInt32.self)) }
    let firsts = withUnsafeBytes(of: &request.first_sect) { Array($0) }
    let lasts = withUnsafeBytes(of: &request.last_sect) { Array($0) }
    var segments: [BlockSegment] = []
    for index in 0..<count {
        if firsts[index] > lasts[index] { return .error(.segmentBackwards) }
        if lasts[index] > 7 { return .error(.segmentBeyondPage) }
        segments.append(
            BlockSegment(reference: references[index], firstSector: firsts[index], lastSector: lasts[index]))
    }
    let sectors = segments.reduce(0) { $0 + UInt64($1.lastSector) - UInt64($1.firstSector) + 1 }
    if count > 0 && !onDisk(sectors) { return .error(.beyondEndOfDisk) }
    return .request(operation: operation, sectors: sectors, segments: segments, secure: false)
}

extension ParsedRequest {
    /// What parsing made of a slot.
    func meaning(_ error: RequestError?) -> Meaning {
        if let error { return .error(error) }
        let valid = (0..<Int(request.segmentCount)).map { segments[$0] }
        return .request(
            operation: request.operation, sectors: request.sectorCount, segments: valid, secure: request.secure)
    }
}
