// SPDX-License-Identifier: BSD-2-Clause
// xbb-error: a disk in memory that fails where it is told to, or breaks the rules of the ABI, to test the host.
import Glibc
import PluginAPI
import PluginKit

/// What can be configured.
enum ErrorOption {
    static let size = PluginOption.size(
        "size", default: "64M", in: 512...(16 << 30), help: "size of the disk, a multiple of 512")
    static let op = PluginOption.choice("op", default: FailingOperation.none, help: "which operations fail")
    static let error = PluginOption.choice(
        "error", default: Failure.eio, help: "how they fail; short: half of the data is moved before EIO")
    static let after = PluginOption.count(
        "after", default: 0, in: 0...(1 << 40), help: "let so many of them succeed first")
    static let every = PluginOption.count("every", default: 1, in: 1...(1 << 40), help: "then fail each n-th")
    static let count = PluginOption.count(
        "count", default: 0, in: 0...(1 << 40), help: "fail so many and no more; 0: no limit")
    static let start = PluginOption.size(
        "start", default: "0", in: 0...(1 << 40), help: "fail only what touches the range that starts here")
    static let length = PluginOption.size(
        "length", default: "0", in: 0...(1 << 40), help: "length of that range; 0: to the end of the disk")
    static let misbehave = PluginOption.choice(
        "misbehave", default: Misbehaviour.none, help: "break a rule of the ABI, to test the host")
    static let keep = PluginOption.bool(
        "keep", default: false, help: "the memory is the file at the disk's path, and outlives the process")
    static let all: [any OptionSchema] = [size, op, error, after, every, count, start, length, misbehave, keep]
}

/// The operations that can fail.
enum FailingOperation: String, OptionChoice {
    case none
    case any
    case read
    case write
    case flush
    case discard
    case writeZeroes = "write-zeroes"

    /// `XBB_OP_*`; -1: none, nil: any.
    var number: Int? {
        switch self {
        case .none: -1
        case .any: nil
        case .read: XBB_OP_READ
        case .write: XBB_OP_WRITE
        case .flush: XBB_OP_FLUSH
        case .discard: XBB_OP_DISCARD
        case .writeZeroes: XBB_OP_WRITE_ZEROES
        }
    }
}

/// The errors that can be asked for.
enum Failure: String, OptionChoice {
    case eio
    case enospc
    case einval
    case eopnotsupp
    case etimedout
    case enomem
    case erofs
    case enodev
    case eagain
    case short

    /// A positive errno value.
    var code: Int32 {
        switch self {
        case .eio, .short: EIO
        case .enospc: ENOSPC
        case .einval: EINVAL
        case .eopnotsupp: EOPNOTSUPP
        case .etimedout: ETIMEDOUT
        case .enomem: ENOMEM
        case .erofs: EROFS
        case .enodev: ENODEV
        case .eagain: EAGAIN
        }
    }
}

/// Breaches of the contract.
enum Misbehaviour: String, OptionChoice {
    case none
    case completeTwice = "complete-twice"
    case acceptNothing = "accept-nothing"
    case shortAccept = "short-accept"
    case acceptTooMany = "accept-too-many"
    case wrongSize = "wrong-size"
    case completeRefused = "complete-refused"
    case positiveStatus = "positive-status"
    /// What would fail kills the process instead.
    case crash
}

nonisolated(unsafe) private let plugin = unsafe makePlugin(
    name: "error", version: "1.0", description: "Disk in memory that fails on demand, for tests",
    formats: ["error", "raw"],
    options: ErrorOption.all, flags: XBB_PLUGIN_NO_FD
) { plugin in
    unsafe plugin.open = { open, out, failure in
        unsafe openBoxed(open, out, failure, options: ErrorOption.all) {
            host, opening throws(PluginError) in
            try ErrorDevice(host: host, opening: opening)
        }
    }
    unsafe plugin.close = { device in unsafe releaseBox(device, as: ErrorDevice.self) }
    unsafe plugin.get_info = { device, info in
        guard let device = unsafe unboxed(device, as: ErrorDevice.self), let info = unsafe info else { return -EINVAL }
        unsafe device.describe(&info.pointee)
        return 0
    }
    unsafe plugin.queue_open = { device, handle, _, out, _ in
        guard let device = unsafe unboxed(device, as: ErrorDevice.self), let handle = unsafe handle,
            let out = unsafe out
        else { return -EINVAL }
        unsafe out.pointee = unsafe box(ErrorQueue(device: device, handle: handle))
        return 0
    }
    unsafe plugin.queue_close = { queue in unsafe releaseBox(queue, as: ErrorQueue.self) }
    unsafe plugin.submit = { queue, requests, count in
        guard let queue = unsafe unboxed(queue, as: ErrorQueue.self), let requests = unsafe requests else { return 0 }
        return unsafe queue.submit(UnsafeBufferPointer(start: requests, count: Int(count)))
    }
}

/// The one exported symbol.
@c(xbb_plugin_v1)
public func errorPluginEntry() -> UnsafePointer<xbb_plugin>? { unsafe plugin }
