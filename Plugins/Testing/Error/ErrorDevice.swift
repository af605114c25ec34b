// SPDX-License-Identifier: BSD-2-Clause
// The disk of xbb-error: which requests fail, and the queue that does as it was told.
import Glibc
import PluginAPI
import PluginKit
import Synchronization
import TestingKit

/// A disk in memory with a rule for failures.
final class ErrorDevice: StorageDisk {
    let misbehaviour: Misbehaviour
    let info: DiskInfo
    private let memory: MemoryDisk
    private let op: FailingOperation
    private let failure: Outcome
    private let isShort: Bool
    private let after, every, count: UInt64
    private let range: Range<UInt64>
    private let matched = Atomic<UInt64>(0)
    private let failed = Atomic<UInt64>(0)

    init(_ opening: Opening) throws(PluginError) {
        memory = try MemoryDisk(
            size: try opening[ErrorOption.size], file: try opening[ErrorOption.keep] ? opening.label : nil)
        op = try opening[ErrorOption.op]
        let chosen = try opening[ErrorOption.error]
        failure = .failed(chosen.code)
        isShort = chosen == .short
        after = try opening[ErrorOption.after]
        every = max(try opening[ErrorOption.every], 1)
        count = try opening[ErrorOption.count]
        let (start, length) = (try opening[ErrorOption.start], try opening[ErrorOption.length])
        let (end, overflow) = start.addingReportingOverflow(length)
        range = start..<(length == 0 || overflow ? .max : end)
        misbehaviour = try opening[ErrorOption.misbehave]
        var info = memory.info
        if misbehaviour == .wrongSize { info.size += 1 }
        self.info = info
    }

    func openQueue(_ parameters: QueueParameters) -> ErrorQueue { ErrorQueue(self, parameters.queue) }

    /// Performs the request, or fails it if its turn has come.
    func perform(_ request: borrowing Request) -> Outcome {
        guard isHit(request) else { return memory.perform(request) }
        if misbehaviour == .crash { abort() }
        if isShort { _ = memory.perform(request, limit: request.length / 1024 * 512) }
        return failure
    }

    private func isHit(_ request: borrowing Request) -> Bool {
        guard op.contains(request.operation) else { return false }
        let (offset, length) = (request.offset, request.length)
        // A flush has no place, so it touches every range.
        if length > 0, offset >= range.upperBound || offset + length <= range.lowerBound { return false }
        let turn = matched.wrappingAdd(1, ordering: .relaxed).newValue
        guard turn > after, (turn - after) % every == 0 else { return false }
        return count == 0 || failed.wrappingAdd(1, ordering: .relaxed).newValue <= count
    }
}

/// A queue that performs requests at once.
final class ErrorQueue: StorageQueue {
    private let device: ErrorDevice
    private let host: HostQueue

    init(_ device: ErrorDevice, _ host: HostQueue) {
        self.device = device
        self.host = host
    }

    func submit(_ batch: inout RequestBatch) {
        switch device.misbehaviour {
        case .none, .wrongSize, .crash:
            while let request = batch.next() {
                let outcome = device.perform(request)
                request.complete(outcome)
            }
        default:
            unsafe batch.acceptUnchecked { requests, count in
                unsafe misbehave(UnsafeBufferPointer(start: requests, count: count))
            }
        }
    }

    /// What a `Request` does not let one do.
    private func misbehave(_ requests: UnsafeBufferPointer<UnsafeMutablePointer<xbb_req>?>) -> Int {
        let count = requests.count
        var accepted = count
        switch device.misbehaviour {
        case .acceptNothing: return 0
        case .shortAccept: accepted = min(count, 1)
        default: break
        }
        for index in 0..<accepted {
            guard let pointer = unsafe requests[index] else { continue }
            let request = unsafe Request(pointer, queue: host.handle, complete: host.complete)
            let (status, length) = (device.perform(request).status, request.length)
            unsafe _ = request.release()
            let reported = device.misbehaviour == .positiveStatus ? Int32(clamping: length) : status
            unsafe host.complete(host.handle, pointer, reported)
            if device.misbehaviour == .completeTwice { unsafe host.complete(host.handle, pointer, status) }
        }
        switch device.misbehaviour {
        case .completeRefused: return count - 1
        case .acceptTooMany: return count + 1
        default: return accepted
        }
    }
}
