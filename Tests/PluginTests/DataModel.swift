// SPDX-License-Identifier: BSD-2-Clause
// What a disk must hold after random requests: the same requests on an array of bytes.
import CPluginHarness
import Glibc
import PluginAPI
import TestSupport
import Testing

/// Random requests with up to `depth` in flight, none overlapping another, checked against an array.
struct DataModel {
    var bytes: [UInt8]
    /// Discarded without a promise of zeroes: any content is right.
    var isUnknown: [Bool]
    private var random: SplitMix64
    private(set) var counts: [Int: Int] = [:]

    init(size: Int, seed: UInt64) {
        bytes = [UInt8](repeating: 0, count: size)
        isUnknown = [Bool](repeating: false, count: size / 512)
        random = SplitMix64(seed: seed)
    }

    /// Runs `count` requests and reads everything at the end.
    mutating func run(on queue: Queue, count: Int, depth: Int, seed: UInt64) throws {
        let info = queue.disk.info
        var free = (0..<depth).map { _ in Request() }
        var flying: [Request] = []
        var left = count
        while left > 0 || !flying.isEmpty {
            var batch: [Request] = []
            let wanted = 1 + random.below(depth)
            while left > 0, batch.count < wanted, let request = free.popLast() {
                guard prepare(request, info, beside: flying + batch) else {
                    free.append(request)
                    break
                }
                batch.append(request)
                left -= 1
            }
            var offered = batch[...]
            while !offered.isEmpty {
                let accepted = queue.submit(Array(offered))
                flying += offered.prefix(accepted)
                offered = offered.dropFirst(accepted)
                if !offered.isEmpty { queue.run(until: UInt32(max(flying.count - 1, 0))) }
            }
            let inFlight = queue.run(until: UInt32(random.below(flying.count)), busy: random.below(2) == 0)
            guard Int(inFlight) < max(flying.count, 1) else {
                throw Failure(description: "nothing completes (\(seed))")
            }
            for request in flying where request.isDone {
                settle(request, info, seed)
                free.append(request)
            }
            flying.removeAll { $0.isDone }
        }
        try check(queue, seed)
    }

    /// Compares the whole disk.
    func check(_ queue: Queue, _ seed: UInt64) throws {
        for start in stride(from: 0, to: bytes.count, by: Request.room) {
            let length = min(Request.room, bytes.count - start)
            let request = Request()
            request.set(XBB_OP_READ, UInt64(start), length)
            try #require(queue.perform(request) == 0, "seed \(seed)")
            try #require(wrongSector(request, start, length) == nil, "seed \(seed)")
        }
    }

    private mutating func prepare(_ request: Request, _ info: xbb_info, beside others: [Request]) -> Bool {
        var operations = [XBB_OP_READ]
        if info.caps & XBB_CAP_WRITE != 0 { operations += [XBB_OP_WRITE, XBB_OP_WRITE] }
        if info.caps & XBB_CAP_FLUSH != 0, random.below(8) == 0 { operations.append(XBB_OP_FLUSH) }
        if info.caps & XBB_CAP_DISCARD != 0 { operations.append(XBB_OP_DISCARD) }
        if info.caps & XBB_CAP_WRITE_ZEROES != 0 { operations.append(XBB_OP_WRITE_ZEROES) }
        let op = operations[random.below(operations.count)]
        if op == XBB_OP_FLUSH {
            request.set(op, 0, 0)
            return true
        }
        let block = Int(max(info.logical_block, 512))
        for _ in 0..<16 {
            let length = block * (1 + random.below(random.below(8) == 0 ? 64 << 10 / block : 16))
            guard length <= bytes.count else { continue }
            let offset = block * random.below((bytes.count - length) / block + 1)
            let overlaps = others.contains { other in
                let (start, count) = (Int(other.handle.pointee.req.offset), Int(other.handle.pointee.req.length))
                return count > 0 && offset < start + count && start < offset + length
            }
            if overlaps { continue }
            var flags = 0
            if op == XBB_OP_WRITE, info.caps & XBB_CAP_FUA != 0, random.below(16) == 0 { flags |= XBB_REQ_FUA }
            if op == XBB_OP_WRITE_ZEROES, random.below(2) == 0 { flags |= XBB_REQ_MAY_UNMAP }
            let step = max(Int(info.mem_align), 1)
            var cuts = Set<Int>()
            for _ in 0..<random.below(6) { cuts.insert(random.below(length) / step * step) }
            cuts.remove(0)
            request.set(op, UInt64(offset), length, flags: flags, cuts: cuts.sorted())
            if op == XBB_OP_WRITE { fill(request, length) }
            if op == XBB_OP_READ { memset(request.memory, 0xee, length) }
            return true
        }
        return false
    }

    /// The first sector in which a read gave something else than the model has.
    private func wrongSector(_ request: Request, _ start: Int, _ length: Int) -> Int? {
        bytes.withUnsafeBytes { bytes in
            stride(from: 0, to: length, by: 512).first { index in
                guard !isUnknown[(start + index) / 512], let model = bytes.baseAddress else { return false }
                return memcmp(request.memory + index, model + start + index, 512) != 0
            }.map { (start + $0) / 512 }
        }
    }

    private mutating func fill(_ request: Request, _ length: Int) {
        // Every sector its own words, from few draws.
        for sector in stride(from: 0, to: length, by: 512) {
            var words = (random.next(), random.next(), random.next(), random.next())
            for place in stride(from: sector, to: sector + 512, by: 32) {
                memcpy(request.memory + place, &words, 32)
            }
        }
    }

    private mutating func settle(_ request: Request, _ info: xbb_info, _ seed: UInt64) {
        let (op, start) = (Int(request.handle.pointee.req.op), Int(request.handle.pointee.req.offset))
        let range = start..<start + Int(request.handle.pointee.req.length)
        counts[op, default: 0] += 1
        #expect(request.status == 0, "seed \(seed): operation \(op) at \(start)+\(range.count)")
        #expect(request.handle.pointee.completions == 1, "seed \(seed)")
        switch op {
        case XBB_OP_READ:
            #expect(wrongSector(request, start, range.count) == nil, "seed \(seed)")
        case XBB_OP_WRITE:
            bytes.withUnsafeMutableBytes { bytes in
                UnsafeMutableRawBufferPointer(rebasing: bytes[range]).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: request.buffer[..<range.count]))
            }
            mark(range, unknown: false)
        case XBB_OP_DISCARD:
            clear(range)
            mark(range, unknown: info.caps & XBB_CAP_DISCARD_ZEROES == 0)
        case XBB_OP_WRITE_ZEROES:
            clear(range)
            mark(range, unknown: false)
        default: break
        }
    }

    private mutating func clear(_ range: Range<Int>) {
        bytes.withUnsafeMutableBytes { bytes in
            _ = UnsafeMutableRawBufferPointer(rebasing: bytes[range]).initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    private mutating func mark(_ range: Range<Int>, unknown: Bool) {
        for sector in range.lowerBound / 512..<range.upperBound / 512 { isUnknown[sector] = unknown }
    }
}
