// SPDX-License-Identifier: BSD-2-Clause
// The disk of xbb-error: which requests fail, and the queue that does as it was told.
import Glibc
import PluginAPI
import PluginKit
import Synchronization
import TestingKit

/// A disk in memory with a rule for failures.
final class ErrorDevice {
    let host: PluginHost
    let misbehaviour: Misbehaviour
    private let memory: MemoryDisk
    private let isReadOnly: Bool
    /// XBB_OP_* that fail; -1: none, nil: any.
    private let op: Int?
    private let code: Int32
    private let isShort: Bool
    private let after, every, count: UInt64
    private let range: Range<UInt64>
    private let matched = Atomic<UInt64>(0)
    private let failed = Atomic<UInt64>(0)

    init(host: PluginHost, opening: Opening) throws(PluginError) {
        self.host = host
        memory = try MemoryDisk(
            size: try opening[ErrorOption.size], file: try opening[ErrorOption.keep] ? opening.label : nil)
        isReadOnly = opening.isReadOnly
        op = try opening[ErrorOption.op].number
        let failure = try opening[ErrorOption.error]
        code = failure.code
        isShort = failure == .short
        after = try opening[ErrorOption.after]
        every = max(try opening[ErrorOption.every], 1)
        count = try opening[ErrorOption.count]
        let (start, length) = (try opening[ErrorOption.start], try opening[ErrorOption.length])
        let (end, overflow) = start.addingReportingOverflow(length)
        range = start..<(length == 0 || overflow ? .max : end)
        misbehaviour = try opening[ErrorOption.misbehave]
    }

    func describe(_ info: inout xbb_info) {
        memory.describe(&info, isReadOnly: isReadOnly)
        if misbehaviour == .wrongSize { info.size += 1 }
    }

    /// Performs the request, or fails it if its turn has come.
    func perform(_ request: UnsafeMutablePointer<xbb_req>) -> Int32 {
        guard unsafe isHit(request) else { return unsafe memory.perform(request) }
        if misbehaviour == .crash { abort() }
        if isShort { unsafe _ = memory.perform(request, limit: request.pointee.length / 1024 * 512) }
        return -code
    }

    private func isHit(_ request: UnsafeMutablePointer<xbb_req>) -> Bool {
        if let op, unsafe Int(request.pointee.op) != op { return false }
        let (offset, length) = unsafe (request.pointee.offset, request.pointee.length)
        // A flush has no place, so it touches every range.
        if length > 0, offset >= range.upperBound || offset + length <= range.lowerBound { return false }
        let turn = matched.wrappingAdd(1, ordering: .relaxed).newValue
        guard turn > after, (turn - after) % every == 0 else { return false }
        return count == 0 || failed.wrappingAdd(1, ordering: .relaxed).newValue <= count
    }
}

/// A queue that performs requests at once.
@safe
final class ErrorQueue {
    private let device: ErrorDevice
    private let handle: OpaquePointer

    init(device: ErrorDevice, handle: OpaquePointer) {
        self.device = device
        unsafe self.handle = unsafe handle
    }

    func submit(_ requests: UnsafeBufferPointer<UnsafeMutablePointer<xbb_req>?>) -> UInt32 {
        let count = requests.count
        var accepted = count
        switch device.misbehaviour {
        case .acceptNothing: return 0
        case .shortAccept: accepted = min(count, 1)
        default: break
        }
        for index in 0..<accepted {
            guard let request = unsafe requests[index] else { continue }
            let status = unsafe device.perform(request)
            let reported = unsafe device.misbehaviour == .positiveStatus ? Int32(request.pointee.length) : status
            unsafe device.host.complete(handle, request, reported)
            if device.misbehaviour == .completeTwice { unsafe device.host.complete(handle, request, status) }
        }
        switch device.misbehaviour {
        case .completeRefused: return UInt32(count - 1)
        case .acceptTooMany: return UInt32(count + 1)
        default: return UInt32(accepted)
        }
    }
}
