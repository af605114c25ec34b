// SPDX-License-Identifier: BSD-2-Clause
// xbb-qcow: images of QEMU: qcow2 for reading and writing, qcow for reading.  The entry point and the option schema.
import ImageKit
import PluginKit

/// What can be configured.
enum QCOWOption {
    static let password = PluginOption.secret("password", default: "", help: "of images that are encrypted with AES")
    static let backingFormat = PluginOption.choice(
        "backing-format", default: BackingFormat.none,
        help: "the format of backing files of which the image does not say it; none: such an image is refused")
    static let dataFile = PluginOption.text(
        "data-file", default: "",
        help:
            "the path of the external data file that the image names and may write to; none: such an image is only read"
    )
    static let cache = PluginOption.size(
        "cache", default: "16M", in: (64 << 10)...(1 << 30), help: "memory for tables of the image")
    static let lock = PluginOption.bool(
        "lock", default: true, help: "refuse an image that someone else uses (as QEMU does)")
    static let discard = PluginOption.choice(
        "discard", default: DiscardChoice.unmap,
        help: "what a guest's discards do: unmap gives clusters back, ignore does nothing")
    static let direct = PluginOption.choice(
        "direct", default: DirectChoice.auto,
        help: "bypass the page cache for data with O_DIRECT and asynchronous I/O; auto: if the host opened the image so"
    )
    static let threads = PluginOption.count(
        "threads", default: 8, in: 1...64, help: "threads per disk for what cannot be done asynchronously")
    static let all: [any OptionSchema] = [password, backingFormat, dataFile, cache, lock, discard, direct, threads]
}

/// Formats that an administrator can give to a backing file.
enum BackingFormat: String, OptionChoice {
    case none
    case raw
    case qcow2
    case qcow
}

/// How the option `discard` can be set.
enum DiscardChoice: String, OptionChoice {
    case unmap
    case ignore
}

/// How the option `direct` can be set.
enum DirectChoice: String, OptionChoice {
    case auto
    case on
    case off
}

private let plugin = Plugin(
    name: "qcow", version: "1.1", description: "QCOW images; version 1 and encrypted ones read-only (libqcow)",
    formats: ["qcow2", "qcow"], options: QCOWOption.all, hasFile: true, inspector: QCOWInspector.self,
    scratch: RequestTag.scratch
) { opening throws(PluginError) in try QCOWDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func qcowPluginEntry() -> PluginEntry { plugin.entry }
