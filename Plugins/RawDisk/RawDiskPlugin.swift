// SPDX-License-Identifier: BSD-2-Clause
// xbb-rawdisk: block devices.  The entry point and the option schema.
import Glibc
import FileKit
import PluginAPI
import PluginKit

/// What can be configured.
enum RawDiskOption {
    static let discard = PluginOption.bool(
        "discard", default: true, help: "pass discards on to the device, if it can")
    static let all: [any OptionSchema] = [discard]
}

nonisolated(unsafe) private let plugin = unsafe makePlugin(
    name: "rawdisk", version: "1.0", description: "Block device", formats: ["raw"], options: RawDiskOption.all
) { plugin in
    unsafe addDeviceCallbacks(to: &plugin)
    unsafe plugin.open = { open, out, failure in
        unsafe openBoxed(open, out, failure, options: RawDiskOption.all) {
            host, opening throws(PluginError) in
            try RawDiskDevice(host: host, opening: opening)
        }
    }
}

/// The one exported symbol.
@c(xbb_plugin_v1)
public func rawDiskPluginEntry() -> UnsafePointer<xbb_plugin>? { unsafe plugin }
