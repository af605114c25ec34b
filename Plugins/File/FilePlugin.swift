// SPDX-License-Identifier: BSD-2-Clause
// xbb-file: raw disk images in regular files.  The entry point and the option schema.
import FileKit
import PluginKit

/// What can be configured.
enum FileOption {
    static let direct = PluginOption.choice(
        "direct", default: DirectChoice.auto,
        help: "bypass the page cache with O_DIRECT and asynchronous I/O; auto: if the host opened the image so")
    static let threads = PluginOption.count(
        "threads", default: 8, in: 1...64, help: "threads per disk for files that cannot do asynchronous I/O")
    static let lock = PluginOption.bool(
        "lock", default: true, help: "refuse an image that someone else writes to (as QEMU does)")
    static let discard = PluginOption.bool(
        "discard", default: true, help: "let the guest punch holes into the file")
    static let all: [any OptionSchema] = [direct, threads, lock, discard]
}

/// How the option `direct` can be set.
enum DirectChoice: String, OptionChoice {
    case auto
    case on
    case off
}

private let plugin = Plugin(
    name: "file", version: "1.0", description: "Raw disk image in a regular file", formats: ["raw"],
    options: FileOption.all, hasFile: true, scratch: requestScratch
) { opening throws(PluginError) in try FileDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func filePluginEntry() -> PluginEntry { plugin.entry }
