// SPDX-License-Identifier: BSD-2-Clause
// The plugins that test the host: null, error and delay.
import CPluginHarness
import Glibc
import PluginAPI
import PluginCheck
import Testing

@Suite struct NullPluginTests {
    @Test func readsAreZeroesAndEverythingIsTaken() throws {
        let disk = try Disk(Plugin("null"), nil, ["size": "2G"])
        #expect(disk.info.size == 2 << 30 && disk.info.max_queues == 64)
        let queue = try Queue(disk)
        let (status, bytes) = queue.read(4096, 8192)
        #expect(status == 0 && bytes.allSatisfy { $0 == 0 }, "old memory went to the guest")
        #expect(queue.write(0, [UInt8](repeating: 1, count: 512), flags: XBB_REQ_FUA) == 0)
        for op in [XBB_OP_FLUSH, XBB_OP_DISCARD, XBB_OP_WRITE_ZEROES] { #expect(queue.command(op, 0, 0) == 0) }
        #expect(queue.command(6, 0, 512) == -EOPNOTSUPP && queue.command(XBB_OP_READ, 0, 512, flags: 1) == -EINVAL)
        #expect(disk.extents(1 << 30) == [[1 << 30, 1 << 30, 3]])
        #expect(disk.breaches == 0)
    }

    @Test func sizesAreSectors() throws {
        #expect(throws: Failure.self) { try Disk(Plugin("null"), nil, ["size": "1000"]) }
        #expect(throws: Failure.self) { try Disk(Plugin("null"), nil, ["size": "0"]) }
    }
}

@Suite struct MemoryPluginTests {
    @Test(arguments: ["error", "delay"], [UInt64(1), 2, 3])
    func randomRequestsLeaveWhatTheModelSays(name: String, seed: UInt64) throws {
        var options = ["size": "2M"]
        if name == "delay" { options.merge(["delay-us": "200", "reorder": "on", "seed": "\(seed)"]) { $1 } }
        let disk = try Disk(Plugin(name), nil, options)
        var model = DataModel(size: 2 << 20, seed: seed)
        try model.run(on: Queue(disk), count: 400, depth: 16, seed: seed)
        #expect(disk.breaches == 0)
    }
}

@Suite struct DelayPluginTests {
    @Test func heldRequestsComeTogetherAndShuffled() throws {
        let disk = try Disk(
            Plugin("delay"), nil, ["delay-us": "600000000", "hold": "32", "reorder": "on", "seed": "5"])
        let queue = try Queue(disk, depth: 64)
        let requests = (0..<32).map { _ in Request() }
        for (index, request) in requests.enumerated() { request.set(XBB_OP_READ, UInt64(index * 512), 512) }
        #expect(queue.submit(Array(requests.dropLast())) == 31)
        queue.idle(milliseconds: 100)
        #expect(requests.allSatisfy { !$0.isDone })
        #expect(queue.submit([requests[31]]) == 1)
        #expect(queue.run() == 0)
        #expect(requests.allSatisfy { $0.status == 0 && $0.handle.pointee.foreign })
        let order = requests.map(\.handle.pointee.order)
        #expect(order.sorted() == Array(0..<32) && order != Array(0..<32), "completed in order")
        #expect(disk.breaches == 0)
    }

    @Test func withoutReorderTheOrderStays() throws {
        let disk = try Disk(Plugin("delay"), nil, ["delay-us": "600000000", "hold": "32"])
        let queue = try Queue(disk, depth: 64)
        let requests = (0..<32).map { _ in Request() }
        for request in requests { request.set(XBB_OP_FLUSH, 0, 0) }
        #expect(queue.submit(requests) == 32 && queue.run() == 0)
        #expect(requests.map(\.handle.pointee.order) == Array(0..<32))
    }

    @Test func cancelHurriesThemUp() throws {
        let disk = try Disk(Plugin("delay"), nil, ["delay-us": "600000000"])
        let (queue, other) = (try Queue(disk, index: 0), try Queue(disk, index: 1))
        let requests = (0..<3).map { _ in Request() }
        for request in requests { request.set(XBB_OP_WRITE, 0, 512) }
        #expect(queue.submit(Array(requests[0...1])) == 2 && other.submit([requests[2]]) == 1)
        harness_cancel(queue.handle, requests[1].handle)
        #expect(queue.run(until: 1) == 1 && requests[1].isDone && !requests[0].isDone)
        harness_cancel(queue.handle, nil)
        #expect(queue.run() == 0 && !requests[2].isDone)
        harness_cancel(other.handle, nil)
        #expect(other.run() == 0 && requests[2].status == 0)
    }
}

@Suite struct ErrorPluginTests {
    private func statuses(_ options: [String: String], _ ops: [(Int, UInt64)]) throws -> [Int32] {
        let disk = try Disk(Plugin("error"), nil, options)
        let queue = try Queue(disk)
        let result = ops.map { op, offset in queue.command(op, offset, op == XBB_OP_FLUSH ? 0 : 4096) }
        #expect(disk.breaches == 0)
        return result
    }

    @Test func failsTheRequestsThatItIsToldTo() throws {
        let reads = (0..<6).map { (XBB_OP_READ, UInt64($0 * 4096)) }
        #expect(try statuses([:], reads) == [0, 0, 0, 0, 0, 0])
        #expect(try statuses(["op": "any"], reads).allSatisfy { $0 == -EIO })
        #expect(try statuses(["op": "write"], reads).allSatisfy { $0 == 0 })
        #expect(
            try statuses(["op": "read", "after": "2", "error": "enospc"], reads) == [0, 0]
                + [Int32](repeating: -ENOSPC, count: 4))
        #expect(try statuses(["op": "read", "every": "3"], reads) == [0, 0, -EIO, 0, 0, -EIO])
        #expect(try statuses(["op": "read", "after": "1", "count": "2"], reads) == [0, -EIO, -EIO, 0, 0, 0])
        #expect(try statuses(["op": "any", "start": "8K", "length": "4K"], reads) == [0, 0, -EIO, 0, 0, 0])
        #expect(try statuses(["op": "any", "start": "9K"], reads) == [0, 0, -EIO, -EIO, -EIO, -EIO])
        let mixed = [
            (XBB_OP_READ, 0), (XBB_OP_WRITE, 0), (XBB_OP_FLUSH, 0), (XBB_OP_DISCARD, 0), (XBB_OP_WRITE_ZEROES, 0),
        ]
        .map { ($0.0, UInt64($0.1)) }
        #expect(try statuses(["op": "flush"], mixed) == [0, 0, -EIO, 0, 0])
        #expect(try statuses(["op": "discard", "error": "eopnotsupp"], mixed) == [0, 0, 0, -EOPNOTSUPP, 0])
        #expect(try statuses(["op": "write-zeroes"], mixed) == [0, 0, 0, 0, -EIO])
    }

    @Test func aShortWriteMovesHalfOfTheData() throws {
        let disk = try Disk(Plugin("error"), nil, ["op": "write", "error": "short"])
        let queue = try Queue(disk)
        #expect(queue.write(0, [UInt8](repeating: 7, count: 4096)) == -EIO)
        let bytes = queue.read(0, 4096).bytes
        #expect(bytes.prefix(2048).allSatisfy { $0 == 7 } && bytes.suffix(2048).allSatisfy { $0 == 0 })
    }

    @Test(arguments: ["complete-twice", "complete-refused", "positive-status", "accept-too-many"])
    func breachesAreSeenByASuspiciousHost(misbehaviour: String) throws {
        let disk = try Disk(Plugin("error"), nil, ["misbehave": misbehaviour])
        let queue = try Queue(disk)
        let requests = (0..<4).map { _ in Request() }
        for request in requests { request.set(XBB_OP_READ, 0, 512) }
        _ = queue.submit(requests)
        queue.run(milliseconds: 200)
        #expect(disk.breaches > 0)
    }

    @Test func acceptsLessWhereTold() throws {
        let requests = (0..<4).map { _ in Request() }
        for request in requests { request.set(XBB_OP_READ, 0, 512) }
        let none = try Disk(Plugin("error"), nil, ["misbehave": "accept-nothing"])
        #expect(try Queue(none).submit(requests) == 0)
        let one = try Disk(Plugin("error"), nil, ["misbehave": "short-accept"])
        let queue = try Queue(one)
        #expect(queue.submit(requests) == 1)
        queue.run()
        #expect(one.breaches == 0)
        #expect(try Disk(Plugin("error"), nil, ["misbehave": "wrong-size"]).info.size % 512 == 1)
    }
}
