// SPDX-License-Identifier: BSD-2-Clause
// A queue under test, and single requests on it with their buffers.
import CPluginHarness
import Glibc
import PluginAPI
import Testing

/// A request with an aligned buffer of its own.
final class Request {
    let handle: UnsafeMutablePointer<harness_request>
    let memory: UnsafeMutableRawPointer
    let buffer: UnsafeMutableRawBufferPointer
    static let room = 256 << 10

    init() {
        handle = harness_request_new()
        memory = .allocate(byteCount: Request.room, alignment: 4096)
        memset(memory, 0, Request.room)
        buffer = UnsafeMutableRawBufferPointer(start: memory, count: Request.room)
    }

    deinit {
        harness_request_free(handle)
        memory.deallocate()
    }

    var status: Int32 { handle.pointee.status }
    var isDone: Bool { handle.pointee.state == UInt32(HARNESS_DONE) }
    var bytes: [UInt8] { Array(buffer[..<Int(handle.pointee.req.length)]) }

    /// Sets operation and place; data goes through the buffer in parts that end at `cuts`.
    func set(_ op: Int, _ offset: UInt64, _ length: Int, flags: Int = 0, cuts: [Int] = []) {
        handle.pointee.req.op = UInt8(op)
        handle.pointee.req.flags = UInt16(flags)
        handle.pointee.req.offset = offset
        handle.pointee.req.length = UInt64(length)
        handle.pointee.req.iovcnt = 0
        guard op == XBB_OP_READ || op == XBB_OP_WRITE else { return }
        let ends = cuts + [length]
        withUnsafeMutableBytes(of: &handle.pointee.iov) { raw in
            let parts = raw.bindMemory(to: iovec.self)
            var start = 0
            for (index, end) in ends.enumerated() {
                parts[index] = iovec(iov_base: memory + start, iov_len: end - start)
                start = end
            }
        }
        handle.pointee.req.iovcnt = UInt32(ends.count)
    }
}

/// A queue; used by the thread that made it.
final class Queue {
    let handle: OpaquePointer
    let disk: Disk

    init(_ disk: Disk, index: UInt32 = 0, depth: UInt32 = 32) throws {
        var handle: OpaquePointer?
        var error = xbb_error()
        let code = harness_queue_open(disk.handle, index, depth, &handle, &error)
        guard code == 0, let handle else { throw Failure(description: error.text, code: code) }
        self.handle = handle
        self.disk = disk
    }

    deinit { harness_queue_close(handle) }

    func submit(_ requests: [Request]) -> Int {
        let list = requests.map { Optional($0.handle) }
        return Int(harness_submit(handle, list, UInt32(list.count)))
    }

    /// Runs the loop until at most `target` are in flight.
    @discardableResult
    func run(until target: UInt32 = 0, milliseconds: Int32 = 20_000, busy: Bool = false) -> UInt32 {
        harness_run(handle, target, milliseconds, busy)
    }

    /// Runs the loop for a time.
    func idle(milliseconds: Int32) { _ = harness_run(handle, .max, milliseconds, false) }

    /// Does one request and waits; its status.  A queue that takes nothing is asked again, as a host does.
    @discardableResult
    func perform(_ request: Request) -> Int32 {
        var offers = 1
        while submit([request]) == 0 {
            offers += 1
            guard offers < 100 else { return 1 }
        }
        run()
        return request.isDone ? request.status : 2
    }

    /// Reads, and gives the bytes or a negative errno.
    func read(_ offset: UInt64, _ length: Int) -> (status: Int32, bytes: [UInt8]) {
        let request = Request()
        memset(request.memory, 0xee, length)
        request.set(XBB_OP_READ, offset, length)
        return (perform(request), request.bytes)
    }

    func write(_ offset: UInt64, _ bytes: [UInt8], flags: Int = 0) -> Int32 {
        let request = Request()
        request.buffer.copyBytes(from: bytes)
        request.set(XBB_OP_WRITE, offset, bytes.count, flags: flags)
        return perform(request)
    }

    func command(_ op: Int, _ offset: UInt64 = 0, _ length: Int = 0, flags: Int = 0) -> Int32 {
        let request = Request()
        request.set(op, offset, length, flags: flags)
        return perform(request)
    }
}
