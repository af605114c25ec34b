// SPDX-License-Identifier: BSD-2-Clause
// What a frontend is told of its disk, and what of its requests gets through.
import Blkif
import Memory
import TestSupport
import XenBus

private nonisolated(unsafe) let request = ParsedRequest()

/// One disk, and requests at its edges.
func compareOffer() -> [String] {
    var random = SplitMix64(seed: 0)
    let bits = random.below(256)
    var made = OfferCase()
    made.request.isReadOnly = bits & 1 != 0
    made.request.mayDiscard = bits & 2 != 0
    let support = DiscardSupport(
        granularity: UInt32(truncatingIfNeeded: random.next()), alignment: UInt32(random.below(1 << 16)),
        isSecure: bits & 4 != 0)
    made.facts = DeviceFacts(
        sectorCount: random.onceIn(3) ? random.next() : UInt64(random.below(4096)),
        physicalSectorSize: random.onceIn(2) ? 4096 : UInt32(truncatingIfNeeded: random.next()),
        isReadOnly: bits & 8 != 0, canFlush: bits & 16 != 0, discard: bits & 32 != 0 ? support : nil)
    let (keys, offered) = (made.keys, made.offered)
    let layout = RingLayout(bits & 64 != 0 ? .x86_32 : .x86_64)
    while !FuzzInput.isOver {
        var probe = OfferProbe(operation: UInt8(random.below(9)))
        probe.segments = random.below(12)
        probe.first = random.onceIn(2) ? made.facts.sectorCount &+ UInt64(random.below(5)) &- 2 : random.next()
        probe.count = UInt64(probe.segments)
        if probe.operation == 5 { probe.count = random.onceIn(2) ? UInt64(random.below(64)) : random.next() }
        probe.secure = random.onceIn(2)
        let problem = request.parse(probe.slot(layout), layout: layout, disk: offered)
        if (problem == nil) != probe.isAllowed(by: keys) { return ["\(probe) of \(made): \(problem as Any), \(keys)"] }
    }
    return []
}
