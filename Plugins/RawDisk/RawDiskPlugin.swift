// SPDX-License-Identifier: BSD-2-Clause
// xbb-rawdisk: block devices.  The entry point and the option schema.
import FileKit
import PluginKit

/// What can be configured.
enum RawDiskOption {
    static let discard = PluginOption.bool(
        "discard", default: true, help: "pass discards on to the device, if it can")
    static let lock = PluginOption.bool(
        "lock", default: true, help: "claim a device that is written, and refuse one that is in use (O_EXCL)")
    static let all: [any OptionSchema] = [discard, lock]
}

private let plugin = Plugin(
    name: "rawdisk", version: "1.0", description: "Block device", formats: ["raw"], options: RawDiskOption.all,
    hasFile: true, scratch: requestScratch
) { opening throws(PluginError) in try RawDiskDevice(opening) }

/// The one exported symbol.
@c(xbb_plugin_v1)
public func rawDiskPluginEntry() -> PluginEntry { plugin.entry }
