// SPDX-License-Identifier: BSD-2-Clause
// The cost of a request in the steps without effects.
import Blkif
import CLinux
import Memory
import Support

/// Keeps a value from being optimised away.
@inline(never)
func keep<T>(_ value: T) {}

/// Time of one iteration of `body` in ns: the best of five runs of `count` iterations.
func measure(_ count: Int, _ body: (Int) -> Void) -> Double {
    var best = Double.infinity
    for _ in 0..<5 {
        let start = clinux_monotonic_ns()
        body(count)
        best = min(best, Double(clinux_monotonic_ns() - start) / Double(count))
    }
    return best
}

func runSteps() {
    let count = 2_000_000
    let disk = OfferedFeatures(sectorCount: 1 << 30, discard: DiscardSupport())
    var results: [(String, JSON)] = []
    func report(_ name: String, _ nanoseconds: Double) {
        results.append((name, .integer(UInt64((nanoseconds * 100).rounded()))))
    }
    for segments in [1, 11] {
        let layout = RingLayout(.native)
        let list = (0..<segments).map { BlockSegment(reference: UInt32($0), firstSector: 0, lastSector: 7) }
        let slot = RequestEncoder(layout: layout).slot(operation: 0, id: 7, firstSector: 800, segments: list)
        let request = ParsedRequest()
        report(
            "parse_\(segments)_segments",
            measure(count) { number in
                var errors = 0
                for _ in 0..<number where request.parse(slot, layout: layout, disk: disk) != nil { errors += 1 }
                keep(errors)
            })
    }
    let pages = HostMemory(byteCount: 8 * 4096)
    if let pages {
        let shared = unsafe SharedPages(base: pages.address(at: 0, count: pages.byteCount), byteCount: pages.byteCount)
        var front = FrontRing(initializing: shared, abi: .native)
        var back = BackRing(attaching: shared, abi: .native)
        let slot = RequestEncoder(layout: front.layout).slot(
            operation: 0, id: 7, firstSector: 8,
            segments: [BlockSegment(reference: 1, firstSector: 0, lastSector: 7)])
        var copy = SlotBytes()
        report(
            "ring_round_trip_batch_32",
            measure(count) { number in
                var left = number
                while left > 0 {
                    for _ in 0..<32 { front.put(slot) }
                    keep(front.publish())
                    for _ in 0..<32 {
                        back.take(into: &copy)
                        back.respond(id: copy.load(UInt64.self, at: 8), wireOperation: 0, status: .okay)
                    }
                    keep(back.publish())
                    for _ in 0..<32 { keep(front.take()) }
                    left -= 32
                }
            })
    }
    print(JSON.object([("hundredths_of_ns", .object(results))]).serialized)
}
