// SPDX-License-Identifier: BSD-2-Clause
// xbb-error: a disk in memory that fails where it is told to, or breaks the rules of the ABI, to test the host.
import Glibc
import PluginAPI
import PluginKit

/// The place of each option in the schema.
enum ErrorOption: Int, CaseIterable {
    case size
    case op
    case error
    case after
    case every
    case count
    case start
    case length
    case misbehave
    case keep
}

/// The errors that can be asked for, in the order of the choices.
private let errors: [(name: StaticString, code: Int32)] = [
    ("eio", EIO), ("enospc", ENOSPC), ("einval", EINVAL), ("eopnotsupp", EOPNOTSUPP), ("etimedout", ETIMEDOUT),
    ("enomem", ENOMEM), ("erofs", EROFS), ("enodev", ENODEV), ("eagain", EAGAIN), ("short", EIO),
]

private let anySize: ClosedRange<UInt64> = 0...(1 << 40)

private let options: [PluginOption] = [
    PluginOption("size", .size(512...(16 << 30)), default: "64M", help: "size of the disk, a multiple of 512"),
    PluginOption(
        "op", .choice(["none", "any", "read", "write", "flush", "discard", "write-zeroes"]), default: "none",
        help: "which operations fail"),
    PluginOption(
        "error", .choice(errors.map(\.name)), default: "eio",
        help: "how they fail; short: half of the data is moved before EIO"),
    PluginOption("after", .uint(0...(1 << 40)), default: "0", help: "let so many of them succeed first"),
    PluginOption("every", .uint(1...(1 << 40)), default: "1", help: "then fail each n-th"),
    PluginOption("count", .uint(0...(1 << 40)), default: "0", help: "fail so many and no more; 0: no limit"),
    PluginOption("start", .size(anySize), default: "0", help: "fail only what touches the range that starts here"),
    PluginOption("length", .size(anySize), default: "0", help: "length of that range; 0: to the end of the disk"),
    PluginOption(
        "misbehave", .choice(Misbehaviour.names), default: "none", help: "break a rule of the ABI, to test the host"),
    PluginOption(
        "keep", .bool, default: "off", help: "the memory is the file at the disk's path, and outlives the process"),
]

/// Breaches of the contract, in the order of the choices.
enum Misbehaviour: UInt64 {
    case none
    case completeTwice
    case acceptNothing
    case shortAccept
    case acceptTooMany
    case wrongSize
    case completeRefused
    case positiveStatus
    /// What would fail kills the process instead.
    case crash

    static let names: [StaticString] = [
        "none", "complete-twice", "accept-nothing", "short-accept", "accept-too-many", "wrong-size",
        "complete-refused", "positive-status", "crash",
    ]
}

nonisolated(unsafe) private let plugin = unsafe makePlugin(
    name: "error", version: "1.0", description: "Disk in memory that fails on demand, for tests",
    formats: ["error", "raw"],
    options: options, flags: XBB_PLUGIN_NO_FD
) { plugin in
    unsafe plugin.open = { open, out, failure in
        unsafe openBoxed(open, out, failure, optionCount: ErrorOption.allCases.count) {
            host, opening throws(PluginError) in
            try ErrorDevice(host: host, opening: opening) { errors[Int(min($0, UInt64(errors.count - 1)))].code }
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
