// SPDX-License-Identifier: BSD-2-Clause
// xbb-error: a disk in memory that fails where it is told to, or breaks the rules of the ABI, to test the host.
import Glibc
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

    /// True for an operation that is meant.
    func contains(_ operation: Operation) -> Bool {
        switch self {
        case .none: false
        case .any: true
        case .read: operation == .read
        case .write: operation == .write
        case .flush: operation == .flush
        case .discard: operation == .discard
        case .writeZeroes: operation == .writeZeroes
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

private let plugin = Plugin(
    name: "error", version: "1.0", description: "Disk in memory that fails on demand, for tests",
    formats: ["error", "raw"], options: ErrorOption.all, hasFile: false
) { opening throws(PluginError) in try ErrorDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func errorPluginEntry() -> PluginEntry { plugin.entry }
