// SPDX-License-Identifier: BSD-2-Clause
// A model of a disk under random requests: the same requests are made to an array of bytes.
import Glibc
import PluginAPI
import Support

/// Random requests with up to `depth` in flight, none of which overlap, checked against an array.
package struct DataModel {
    /// The content of a part of the disk that starts at `start`.
    package var bytes: [UInt8]
    /// Bytes that were discarded without a promise of zeroes: any content is correct.
    private var isUnknown: [Bool]
    private var random: SplitMix64
    private let start: UInt64
    private let seed: UInt64
    private let isGuarded: Bool
    /// Number of requests made, by operation.
    package private(set) var counts: [Int: Int] = [:]
    private static let readLength = 256 << 10

    /// A model of a disk of zeroes.
    package init(size: Int, seed: UInt64) {
        self.init(size: size, at: 0, seed: seed, guarded: false)
    }

    private init(size: Int, at start: UInt64, seed: UInt64, guarded: Bool) {
        bytes = [UInt8](repeating: 0, count: size)
        isUnknown = [Bool](repeating: false, count: size / 512)
        random = SplitMix64(seed: seed)
        self.start = start
        self.seed = seed
        isGuarded = guarded
    }

    /// A model of the disk's current content, `size` bytes from `start`, with guarded requests.
    package init(of queue: Queue, size: Int, at start: UInt64, seed: UInt64) throws(Failure) {
        self.init(size: size, at: start, seed: seed, guarded: true)
        try forEachPart { place, length throws(Failure) in
            bytes.replaceSubrange(place..<place + length, with: try read(queue, place, length))
        }
    }

    /// Runs `count` requests and reads everything at the end.
    package mutating func run(on queue: Queue, count: Int, depth: Int, seed: UInt64) throws(Failure) {
        let info = queue.disk.info
        var free = (0..<depth).map { _ in Request(guarded: isGuarded) }
        var flying: [Request] = []
        var left = count
        while left > 0 || !flying.isEmpty {
            var batch: [Request] = []
            let wanted = 1 + random.less(depth)
            while left > 0, batch.count < wanted, let request = free.popLast() {
                guard prepare(request, info, beside: flying + batch) else {
                    free.append(request)
                    break
                }
                batch.append(request)
                left -= 1
            }
            var offered = batch[...]
            var refusals = 0
            while !offered.isEmpty {
                let accepted = queue.submit(Array(offered))
                flying += offered.prefix(accepted)
                offered = offered.dropFirst(accepted)
                refusals = accepted == 0 && flying.allSatisfy(\.isDone) ? refusals + 1 : 0
                if refusals == 100 { throw Failure("submit() accepts nothing with nothing in flight, 100 times") }
                if !offered.isEmpty { queue.run(until: UInt32(max(flying.filter { !$0.isDone }.count - 1, 0))) }
            }
            let inFlight = queue.run(until: UInt32(random.less(flying.count)), busy: random.less(2) == 0)
            guard Int(inFlight) < max(flying.count, 1) else { throw failure("none of \(inFlight) requests completes") }
            for request in flying where request.isDone {
                try settle(request, info)
                free.append(request)
            }
            flying.removeAll { $0.isDone }
        }
        try check(queue, seed)
    }

    /// Writes all of it once.
    package mutating func overwrite(_ queue: Queue) throws(Failure) {
        let info = queue.disk.info
        guard info.caps & XBB_CAP_WRITE != 0 else { return }
        let piece = info.max_transfer == 0 ? 64 << 10 : Int(min(info.max_transfer, 64 << 10))
        for place in stride(from: 0, to: bytes.count, by: piece) {
            let request = Request(guarded: isGuarded)
            request.set(XBB_OP_WRITE, start + UInt64(place), min(piece, bytes.count - place))
            request.put(newBytes(request.length))
            _ = queue.perform(request)
            try settle(request, info)
        }
    }

    /// Compares the whole part.
    package func check(_ queue: Queue, _ seed: UInt64) throws(Failure) {
        try forEachPart { place, length throws(Failure) in
            try compare(try read(queue, place, length), at: place, "READ")
        }
    }

    private func failure(_ what: String) -> Failure { Failure("\(what) (seed \(seed))") }

    private func forEachPart(_ body: (Int, Int) throws(Failure) -> Void) throws(Failure) {
        for place in stride(from: 0, to: bytes.count, by: Self.readLength) {
            try body(place, min(Self.readLength, bytes.count - place))
        }
    }

    private func read(_ queue: Queue, _ place: Int, _ length: Int) throws(Failure) -> [UInt8] {
        let (status, bytes) = queue.read(start + UInt64(place), length)
        if status != 0 { throw failure("a READ of \(length) bytes at \(start + UInt64(place)) gave \(status)") }
        return bytes
    }

    private mutating func prepare(_ request: Request, _ info: xbb_info, beside others: [Request]) -> Bool {
        var operations = [XBB_OP_READ]
        if info.caps & XBB_CAP_WRITE != 0 { operations += [XBB_OP_WRITE, XBB_OP_WRITE] }
        if info.caps & XBB_CAP_FLUSH != 0, random.less(8) == 0 { operations.append(XBB_OP_FLUSH) }
        if info.caps & XBB_CAP_DISCARD != 0 { operations.append(XBB_OP_DISCARD) }
        if info.caps & XBB_CAP_WRITE_ZEROES != 0 { operations.append(XBB_OP_WRITE_ZEROES) }
        let op = operations[random.less(operations.count)]
        if op == XBB_OP_FLUSH {
            request.set(op, 0, 0)
            return true
        }
        let block = Int(max(info.logical_block, 512, info.mem_align))
        let longest = info.max_transfer == 0 ? 64 << 10 : Int(min(info.max_transfer, 64 << 10))
        let mostCuts = info.max_iov == 0 ? 6 : Int(min(info.max_iov, 6))
        for _ in 0..<16 {
            let length = min(block * (1 + random.less(random.less(8) == 0 ? 64 << 10 / block : 16)), longest)
            guard length <= bytes.count else { continue }
            let place = block * random.less((bytes.count - length) / block + 1)
            let offset = start + UInt64(place)
            let overlaps = others.contains { other in
                other.length > 0 && offset < other.offset + UInt64(other.length)
                    && other.offset < offset + UInt64(length)
            }
            if overlaps { continue }
            var flags = 0
            if op == XBB_OP_WRITE, info.caps & XBB_CAP_FUA != 0, random.less(16) == 0 { flags |= XBB_REQ_FUA }
            if op == XBB_OP_WRITE_ZEROES, random.less(2) == 0 { flags |= XBB_REQ_MAY_UNMAP }
            let step = max(Int(info.mem_align), 1)
            var cuts = Set<Int>()
            for _ in 0..<random.less(mostCuts) { cuts.insert(random.less(length) / step * step) }
            cuts.remove(0)
            request.set(op, offset, length, flags: flags, cuts: cuts.sorted())
            if op == XBB_OP_WRITE { request.put(newBytes(length)) }
            return true
        }
        return false
    }

    private func compare(_ read: [UInt8], at place: Int, _ what: String) throws(Failure) {
        for index in stride(from: 0, to: read.count, by: 512) where !isUnknown[(place + index) / 512] {
            let model = bytes[place + index..<place + index + 512]
            if read[index..<index + 512] == model { continue }
            let wrong = zip(read[index...], model).prefix { $0 == $1 }.count + index
            throw failure(
                "\(what) gives wrong data from byte \(start + UInt64(place + wrong)) on: "
                    + "\(read[wrong]) in place of \(bytes[place + wrong])")
        }
    }

    /// Different words for each sector, from few random numbers.
    private mutating func newBytes(_ length: Int) -> [UInt8] {
        var made: [UInt8] = []
        made.reserveCapacity(length)
        for _ in stride(from: 0, to: length, by: 512) {
            let words = (0..<4).map { _ in random.next() }
            let piece = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
            for _ in 0..<16 { made += piece }
        }
        return made
    }

    private mutating func settle(_ request: Request, _ info: xbb_info) throws(Failure) {
        if request.status != 0 { throw failure("a \(request.name) gave \(request.status) in place of 0") }
        counts[request.op, default: 0] += 1
        guard request.op != XBB_OP_FLUSH else { return }
        let place = Int(request.offset - start)
        let range = place..<place + request.length
        switch request.op {
        case XBB_OP_READ: try compare(request.bytes, at: place, "a \(request.name)")
        case XBB_OP_WRITE:
            bytes.replaceSubrange(range, with: request.bytes)
            mark(range, unknown: false)
        case XBB_OP_DISCARD:
            bytes.replaceSubrange(range, with: repeatElement(0, count: range.count))
            mark(range, unknown: info.caps & XBB_CAP_DISCARD_ZEROES == 0)
        case XBB_OP_WRITE_ZEROES:
            bytes.replaceSubrange(range, with: repeatElement(0, count: range.count))
            mark(range, unknown: false)
        default: break
        }
    }

    private mutating func mark(_ range: Range<Int>, unknown: Bool) {
        for sector in range.lowerBound / 512..<range.upperBound / 512 { isUnknown[sector] = unknown }
    }
}

extension SplitMix64 {
    /// A number below `bound`; 0 if `bound` is not positive.
    mutating func less(_ bound: Int) -> Int { bound > 0 ? Int(below(UInt64(bound))) : 0 }
}
