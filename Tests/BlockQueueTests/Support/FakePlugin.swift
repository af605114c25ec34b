// SPDX-License-Identifier: BSD-2-Clause
// A plugin that does what the test says, when the test says it, and checks what it is asked for.
import Glibc
import PluginAPI

@testable import BlockQueue
@testable import PluginHost
@testable import PluginPort

/// A request that the plugin has.
struct HeldRequest {
    let sub: Int32
    let op: Int
    let flags: Int
    let offset: UInt64
    let length: UInt64
    /// Where its data are; none without data.
    let vectors: [UnsafeMutableRawBufferPointer]
    /// Of the data of a write, as it was submitted.
    let checksum: UInt64
    /// Writes that had completed when it was submitted: what a flush covers.
    let writesBefore: UInt64

    /// First sector and number of sectors of 512 bytes.
    var sector: Int { Int(offset / 512) }
    var sectorCount: Int { Int(length / 512) }
}

/// Takes requests from the engine and holds them until it is told what becomes of them.
final class FakePlugin {
    let disk: FakeDisk
    let info: DeviceInfo
    let port: CompletionPort
    private(set) var held: [HeldRequest] = []
    /// Everything that was ever submitted, the oldest first.
    private(set) var log: [HeldRequest] = []
    var keepsLog = true
    /// How many more requests it takes; nil for all.
    var takes: Int?
    /// Sectors of a failing write that reach the disk nevertheless.
    var sectorsOfFailedWrite = 0
    /// Rules of the ABI that the host broke.
    private(set) var problems: [String] = []
    private(set) var submissions = 0
    /// Called for each request that fails.
    var onFailure: ((HeldRequest) -> Void)?

    init(disk: FakeDisk, info: DeviceInfo, port: CompletionPort) {
        self.disk = disk
        self.info = info
        self.port = port
    }

    /// Takes a request, or not. As ``PluginQueue/submit(_:)`` does, its state says who has it.
    func accept(_ sub: Int32) -> Bool {
        if let takes {
            if takes == 0 { return false }
            self.takes = takes - 1
        }
        let req = port.request(sub).forPlugin.pointee
        let vectors = (0..<Int(req.iovcnt)).compactMap { number in
            req.iov.map { UnsafeMutableRawBufferPointer(start: $0[number].iov_base, count: $0[number].iov_len) }
        }
        let isWrite = Int(req.op) == Int(XBB_OP_WRITE)
        let entry = HeldRequest(
            sub: sub, op: Int(req.op), flags: Int(req.flags), offset: req.offset, length: req.length, vectors: vectors,
            checksum: isWrite ? Self.checksum(vectors) : 0, writesBefore: disk.writes)
        check(entry, req)
        held.append(entry)
        if keepsLog { log.append(entry) }
        submissions += 1
        return true
    }

    /// Completes the request at `position` of ``held``: with success if the disk can, else with `status`.
    func complete(_ position: Int, _ status: Int32 = 0, on worker: Worker? = nil) {
        let request = held.remove(at: position)
        var result = status
        if result == 0, request.op == Int(XBB_OP_READ) || request.op == Int(XBB_OP_WRITE),
            disk.touchesBad(request.offset, request.length)
        {
            result = -EIO
        }
        perform(request, result)
        if result != 0 { onFailure?(request) }
        let port = port
        let sub = request.sub
        scribble(sub)
        let finish = { port.complete(Self.pointer(port, sub), result) }
        if let worker { worker.run(finish) } else { finish() }
    }

    /// A request belongs to the plugin until complete(): it may use its fields as it likes.
    private func scribble(_ sub: Int32) {
        let req = Self.pointer(port, sub)
        req.pointee.iov = UnsafePointer(bitPattern: 0x10)
        req.pointee.iovcnt = 77
        req.pointee.offset = .max
        req.pointee.length = .max
        req.pointee.flags = 0xffff
        req.pointee.op = 0xff
    }

    /// What the plugin knows of a request.
    static func pointer(_ port: CompletionPort, _ sub: Int32) -> UnsafeMutablePointer<xbb_req> {
        port.request(sub).forPlugin
    }

    func completeAll(_ status: Int32 = 0) {
        while !held.isEmpty { complete(0, status) }
    }

    private func perform(_ request: HeldRequest, _ status: Int32) {
        switch request.op {
        case Int(XBB_OP_READ):
            var offset = request.offset
            for vector in request.vectors {
                guard let buffer = vector.baseAddress else { return }
                if status == 0 {
                    disk.read(offset, UInt64(vector.count), buffer)
                } else {
                    // Whatever a failed read leaves behind must reach nobody.
                    memset(buffer, 0xEE, vector.count)
                }
                offset += UInt64(vector.count)
            }
        case Int(XBB_OP_WRITE):
            if Self.checksum(request.vectors) != request.checksum {
                problems.append("the data of a write at \(request.sector) changed while the plugin had it")
            }
            let length = status == 0 ? request.length : min(request.length, UInt64(sectorsOfFailedWrite) * 512)
            // One write of the disk, whatever the vectors are.
            var bytes: [UInt8] = []
            for vector in request.vectors { bytes += Array(vector) }
            if length > 0 {
                bytes.withUnsafeMutableBytes { all in
                    guard let buffer = all.baseAddress else { return }
                    disk.write(
                        request.offset, length, buffer, durable: status == 0 && request.flags & Int(XBB_REQ_FUA) != 0)
                }
            }
        case Int(XBB_OP_FLUSH):
            if status == 0 { disk.flush(upTo: request.writesBefore) }
        case Int(XBB_OP_DISCARD):
            if status == 0 { disk.discard(request.offset, request.length) }
        case Int(XBB_OP_WRITE_ZEROES):
            if status == 0 {
                let zeroes = [UInt8](repeating: 0, count: Int(request.length))
                zeroes.withUnsafeBytes { all in
                    guard let buffer = all.baseAddress else { return }
                    disk.write(request.offset, request.length, buffer, durable: false)
                }
            }
        default:
            problems.append("operation \(request.op) was never offered")
        }
    }

    /// The guarantees that the comment above `struct xbb_req` gives.
    private func check(_ request: HeldRequest, _ req: xbb_req) {
        func expect(_ condition: Bool, _ rule: String) {
            if !condition { problems.append("\(rule): \(request)") }
        }
        let unit = UInt64(info.logicalBlock)
        let data = request.op == Int(XBB_OP_READ) || request.op == Int(XBB_OP_WRITE)
        if request.op == Int(XBB_OP_FLUSH) {
            expect(request.offset == 0 && request.length == 0, "a flush has no range")
            expect(info.capabilities.contains(.flush), "a flush needs XBB_CAP_FLUSH")
        } else {
            expect(request.length > 0, "length > 0")
            expect(request.offset + request.length <= info.size, "offset + length <= size")
            expect(request.offset % unit == 0 && request.length % unit == 0, "whole blocks")
        }
        if data {
            expect(!request.vectors.isEmpty && request.vectors.allSatisfy { $0.baseAddress != nil }, "an iovec")
            expect(request.vectors.count <= info.maxVectors ?? .max, "iovcnt <= max_iov")
            expect(request.length <= info.maxTransfer, "length <= max_transfer")
            expect(request.vectors.reduce(0) { $0 + UInt64($1.count) } == request.length, "sum of iov_len == length")
            let alignment = Int(info.memoryAlignment)
            for vector in request.vectors {
                expect(Int(bitPattern: vector.baseAddress) % alignment == 0, "address aligned to mem_align")
                expect(vector.count % alignment == 0, "iov_len a multiple of mem_align")
                expect(vector.count % Int(unit) == 0, "iov_len whole blocks")
            }
        } else {
            expect(req.iovcnt == 0, "no iovec")
        }
        switch request.op {
        case Int(XBB_OP_WRITE): expect(info.capabilities.contains(.write), "a write needs XBB_CAP_WRITE")
        case Int(XBB_OP_DISCARD):
            expect(info.capabilities.contains(.discard), "a discard needs XBB_CAP_DISCARD")
            expect(request.length <= info.maxDiscard, "length <= max_discard")
        case Int(XBB_OP_WRITE_ZEROES):
            expect(info.capabilities.contains(.writeZeroes), "to write zeroes needs XBB_CAP_WRITE_ZEROES")
            expect(request.length <= info.maxWriteZeroes, "length <= max_write_zeroes")
        default: break
        }
        let fua = request.op == Int(XBB_OP_WRITE) && info.capabilities.contains(.fua) ? Int(XBB_REQ_FUA) : 0
        let secure =
            request.op == Int(XBB_OP_DISCARD) && info.capabilities.contains(.discardSecure) ? Int(XBB_REQ_SECURE) : 0
        let unmap = request.op == Int(XBB_OP_WRITE_ZEROES) ? Int(XBB_REQ_MAY_UNMAP) : 0
        expect(request.flags & ~(fua | secure | unmap) == 0, "flags only where the capability was declared")
        expect(
            req.hints == 0 && req.reserved0 == 0 && req.reserved1 == 0 && req.reserved2 == (0, 0),
            "reserved fields are zero")
        expect(held.count < info.queueDepth ?? .max, "no more in flight than queue_depth")
    }

    private static func checksum(_ vectors: [UnsafeMutableRawBufferPointer]) -> UInt64 {
        var sum: UInt64 = 0
        for vector in vectors {
            for offset in stride(from: 0, to: vector.count, by: 512) {
                sum = (sum &* 31) &+ vector.load(fromByteOffset: offset, as: UInt64.self)
                sum = (sum &* 31) &+ vector.load(fromByteOffset: offset + 504, as: UInt64.self)
            }
        }
        return sum
    }
}
