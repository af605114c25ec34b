// SPDX-License-Identifier: BSD-2-Clause
// Every operation, at the limits of the disk and of the plugin, with scatter lists of every shape.
import PluginHost
import Glibc
import PluginAPI

extension Check {
    static let operations = [
        Check(.operations, "shapes", "reads and writes of all sizes, places and scatter lists") {
            bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            let queue = try bench.queue(disk)
            let raw = disk.info
            let operations = info.capabilities.contains(.write) ? [XBB_OP_WRITE, XBB_OP_READ] : [XBB_OP_READ]
            for (length, offset) in info.places(info.maxTransfer) {
                for cuts in info.scatterLists(length, mostSegments: Int(raw.max_iov)) {
                    for op in operations {
                        let request = Request(op, offset, length, cuts: cuts)
                        if op == XBB_OP_WRITE { request.put([UInt8](repeating: 0x5a, count: length)) }
                        try bench.perform(request, on: queue)
                    }
                }
            }
            bench.close(disk, [queue])
        },
        Check(.operations, "commands", "flush, discard and write zeroes, with the flags that were declared") {
            bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            let queue = try bench.queue(disk)
            var commands: [(Int, UInt64, [Int])] = []
            let fua = info.capabilities.contains(.fua) ? [0, XBB_REQ_FUA] : [0]
            if info.capabilities.contains(.discard) {
                let secure = info.capabilities.contains(.discardSecure) ? [XBB_REQ_SECURE] : []
                commands.append((XBB_OP_DISCARD, info.maxDiscard, fua + secure))
            }
            if info.capabilities.contains(.writeZeroes) {
                commands.append((XBB_OP_WRITE_ZEROES, info.maxWriteZeroes, fua + [XBB_REQ_MAY_UNMAP]))
            }
            for (op, most, flagSets) in commands {
                for (length, offset) in info.places(most) {
                    for flags in flagSets { try bench.perform(Request(op, offset, length, flags: flags), on: queue) }
                }
            }
            if info.capabilities.contains(.writeZeroes) {
                // It may be refused, but only with this error.
                let request = Request(XBB_OP_WRITE_ZEROES, 0, Int(info.logicalBlock), flags: XBB_REQ_NO_FALLBACK)
                try bench.perform(request, on: queue, expecting: [0, -EOPNOTSUPP])
            }
            if info.capabilities.contains(.flush) {
                let request = Request(XBB_OP_FLUSH, 0, 0)
                try bench.perform(request, on: queue)
            }
            if info.capabilities.contains(.fua), info.capabilities.contains(.write) {
                let request = Request(XBB_OP_WRITE, 0, Int(info.logicalBlock), flags: XBB_REQ_FUA)
                try bench.perform(request, on: queue)
            }
            bench.close(disk, [queue])
        },
        Check(.operations, "unknown", "unknown operations and flags fail, and nothing happens") {
            bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            let queue = try bench.queue(disk)
            for op in [0, 6, 7, 100, 255] {
                let request = Request(op, 0, Int(info.logicalBlock))
                bench.at("an unknown operation \(op)")
                let status = queue.perform(request)
                try require(
                    status == -EOPNOTSUPP,
                    "operation \(op) gave \(errorName(status)): accept what is unknown and complete it with -EOPNOTSUPP"
                )
            }
            for flags in [1 << 4, 1 << 8, 1 << 15] {
                let request = Request(XBB_OP_READ, 0, Int(info.logicalBlock), flags: flags)
                bench.at("a READ with an unknown flag")
                let status = queue.perform(request)
                // A host sends a flag only after the plugin announced it, so some plugins do not check.
                try require(
                    status == -EINVAL || status == 0,
                    "a READ with flag 0x\(String(flags, radix: 16)) gave \(errorName(status)), and -EINVAL was expected"
                )
            }
            bench.close(disk, [queue])
        },
        Check(.operations, "batches", "batches of mixed requests up to the depth of the queue") {
            bench throws(Failure) in
            let disk = try bench.disk()
            let info = try bench.info(disk)
            for depth in [1, 2, 32, 256] where depth <= info.queueDepth ?? 256 {
                let queue = try bench.queue(disk, depth: UInt32(depth))
                for size in [1, depth / 2, depth] where size > 0 {
                    let requests = (0..<size).map { index in
                        let block = UInt64(info.logicalBlock)
                        let request = Request(XBB_OP_READ, UInt64(index) % (info.size / block) * block, Int(block))
                        return request
                    }
                    bench.at("a batch of \(size) READs in a queue of depth \(depth)")
                    try bench.performAll(requests, on: queue)
                }
                bench.at("queue_close()")
                queue.close()
            }
            bench.close(disk, [])
        },
    ]
}

extension Bench {
    /// Submits requests until all are accepted and completed with status 0.
    func performAll(_ requests: [Request], on queue: Queue) throws(Failure) {
        var left = requests[...]
        var refusals = 0
        while !left.isEmpty {
            let accepted = queue.submit(Array(left))
            left = left.dropFirst(accepted)
            if left.isEmpty { break }
            let flying = requests.count - left.count - requests.count { $0.isDone }
            refusals = accepted == 0 && flying == 0 ? refusals + 1 : 0
            if refusals == 100 { throw Failure("submit() accepts nothing with nothing in flight, 100 times") }
            queue.run(until: UInt32(max(flying - 1, 0)))
        }
        let lost = queue.run()
        try require(lost == 0, "\(lost) of \(requests.count) accepted requests are never completed")
        for request in requests where request.status != 0 {
            throw Failure("a \(request.name) in a batch gave \(errorName(request.status))")
        }
    }
}

extension DeviceInfo {
    /// Every length up to `most`, at every place for it.
    func places(_ most: UInt64) -> [(length: Int, offset: UInt64)] {
        lengths(most).flatMap { length in offsets(for: length).map { (length, $0) } }
    }

    /// Lengths of requests: one block, multiples of it, odd ones, and the longest.
    func lengths(_ most: UInt64) -> [Int] {
        let block = Int(logicalBlock)
        let limit = Int(min(most, size, 1 << 20)) / block * block
        let candidates = [block, 2 * block, 3 * block, 4096, 4096 + block, 65536, 65536 + block, limit]
        return Set(candidates.filter { $0 <= limit && $0 % block == 0 }).sorted()
    }

    /// Offsets for a request: the first and the last ones, and an odd one.
    func offsets(for length: Int) -> [UInt64] {
        let last = size - UInt64(length)
        let block = UInt64(logicalBlock)
        let middle = last / 2 / block * block
        return Set([0, min(block, last), middle, last]).sorted()
    }

    /// Where the buffers of a request end within it.
    func scatterLists(_ length: Int, mostSegments: Int) -> [[Int]] {
        let step = Int(max(memoryAlignment, 1))
        let most = mostSegments == 0 ? 128 : min(mostSegments, 128)
        var lists: [[Int]] = [[]]
        func even(_ pieces: Int) -> [Int] {
            let piece = (length / pieces + step - 1) / step * step
            return Array(stride(from: piece, to: length, by: piece))
        }
        for pieces in Set([2, 3, 11, most]) where pieces <= most && pieces > 1 && length / pieces >= step {
            lists.append(even(pieces))
        }
        if most > 1, length > step { lists += [[step], [length - step]] }
        if most > 2, length > 2 * step { lists.append([step, length - step]) }
        return lists
    }
}
