// SPDX-License-Identifier: BSD-2-Clause
// Disks that are offered, requests of a frontend, and what blkif.h says of a request to somebody who has read the keys.
import Blkif
import Memory
import XenBus

/// Everything that the offer is made of, each with each.
struct OfferCase: CustomStringConvertible {
    var request = goodRequest
    var facts = goodFacts

    static let all: [OfferCase] = {
        var cases: [OfferCase] = []
        let discards: [DiscardSupport?] = [nil, DiscardSupport(granularity: 4096), DiscardSupport(isSecure: true)]
        for bits in 0..<16 {
            for discard in discards {
                for sectorCount: UInt64 in [1, 8, 2048, .max] {
                    var made = OfferCase()
                    made.request.isReadOnly = bits & 1 != 0
                    made.request.mayDiscard = bits & 2 != 0
                    made.facts = DeviceFacts(
                        sectorCount: sectorCount, isReadOnly: bits & 4 != 0, canFlush: bits & 8 != 0,
                        discard: discard)
                    cases.append(made)
                }
            }
        }
        return cases
    }()

    var offered: OfferedFeatures { OfferedFeatures(request: request, device: facts) }

    /// What a frontend reads.
    var keys: Node {
        StoreUpdate.node(
            BackendDescription(
                offered, physicalSectorSize: facts.physicalSectorSize, deviceType: request.deviceType,
                isRemovable: request.isRemovable
            ).entries)
    }

    var description: String { "\(request) \(facts)" }
}

/// A request as a frontend may send it.
struct OfferProbe {
    var operation: UInt8
    var segments = 1
    /// Sectors from the first one of the disk; a segment has one.
    var first: UInt64 = 0
    var count: UInt64 = 1
    var secure = false

    var isWithData: Bool { operation == 5 || segments > 0 }
    var writes: Bool { operation == 2 || operation == 5 || (operation != 0 && segments > 0) }

    /// What the keys in XenStore allow, by blkif.h and nothing that this backend knows.
    func isAllowed(by keys: Node) -> Bool {
        let sectors = UInt64(keys["sectors"] ?? "") ?? 0
        let info = Int(keys["info"] ?? "") ?? 0
        switch operation {
        case 0, 1: if segments == 0 { return false }
        case 2: if keys["feature-barrier"] != "1" { return false }
        case 3: if keys["feature-flush-cache"] != "1" { return false }
        case 5: if keys["feature-discard"] != "1" { return false }
        // Indirect requests, and what blkif.h does not know.
        case 6: if keys["feature-max-indirect-segments"] == "(removed)" { return false }
        default: return false
        }
        if info & 4 != 0 && writes { return false }
        return !isWithData || (count > 0 && first <= sectors && count <= sectors - first)
    }

    func slot(_ layout: RingLayout) -> SlotBytes {
        let encoder = RequestEncoder(layout: layout)
        if operation == 5 {
            return encoder.discard(id: 1, firstSector: first, sectorCount: count, secure: secure)
        }
        let segment = BlockSegment(reference: 8, firstSector: 3, lastSector: 3)
        return encoder.slot(
            operation: operation, id: 1, firstSector: first,
            segments: Array(repeating: segment, count: segments))
    }

    /// Every operation byte, with and without data, on the disk, at its end and behind it.
    static func all(sectorCount: UInt64) -> [OfferProbe] {
        var probes: [OfferProbe] = []
        for operation in UInt8.min...8 {
            for first in [0, sectorCount - 1, sectorCount, .max] {
                probes.append(OfferProbe(operation: operation, first: first))
                probes.append(OfferProbe(operation: operation, segments: 0, first: first))
                // With `discard-secure` 0 the flag is ignored, as blkback of Linux does.
                probes.append(OfferProbe(operation: operation, first: first, secure: true))
            }
        }
        probes.append(OfferProbe(operation: 5, count: 0))
        probes.append(OfferProbe(operation: 5, count: sectorCount))
        if sectorCount < .max { probes.append(OfferProbe(operation: 5, count: sectorCount + 1)) }
        return probes
    }
}
