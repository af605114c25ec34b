// SPDX-License-Identifier: BSD-2-Clause
// xbb-vhd: images of Hyper-V, XenServer and Virtual PC.  The entry point and the option schema.
import ImageKit
import PluginKit

/// What can be configured.
enum VHDOption {
    static let cache = PluginOption.size(
        "cache", default: "16M", in: (64 << 10)...(1 << 30), help: "memory for bitmaps of the image's blocks")
    static let lock = PluginOption.bool(
        "lock", default: true, help: "refuse an image that someone else uses (as QEMU does)")
    static let discard = PluginOption.choice(
        "discard", default: DiscardChoice.unmap,
        help: "what a guest's discards do: unmap punches holes into blocks, ignore does nothing")
    static let direct = PluginOption.choice(
        "direct", default: DirectChoice.auto,
        help: "bypass the page cache with O_DIRECT and asynchronous I/O; auto: if the host opened the image so")
    static let threads = PluginOption.count(
        "threads", default: 8, in: 1...64, help: "threads per disk for what cannot be done asynchronously")
    static let all: [any OptionSchema] = [cache, lock, discard, direct, threads]
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
    name: "vhd", version: "1.0", description: "VHD images: fixed, dynamic and differencing", formats: ["vhd"],
    options: VHDOption.all, hasFile: true, inspector: VHDInspector.self, scratch: RequestTag.scratch
) { opening throws(PluginError) in try VHDDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func vhdPluginEntry() -> PluginEntry { plugin.entry }
