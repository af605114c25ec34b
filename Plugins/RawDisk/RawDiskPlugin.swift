// SPDX-License-Identifier: BSD-2-Clause
// xbb-rawdisk: block devices.  The entry point and the option schema.
import Glibc
import PluginAPI
import PluginKit

/// The place of each option in the schema.
enum RawDiskOption: Int, CaseIterable {
    case discard
}

private let options: [PluginOption] = [
    PluginOption("discard", .bool, default: "on", help: "pass discards on to the device, if it can")
]

nonisolated(unsafe) private let plugin = unsafe makePlugin(
    name: "rawdisk", version: "1.0", description: "Block device", formats: ["raw"], options: options
) { plugin in
    unsafe addDeviceCallbacks(to: &plugin)
    unsafe plugin.open = { open, out, failure in
        unsafe openBoxed(open, out, failure, optionCount: RawDiskOption.allCases.count) {
            host, opening throws(PluginError) in
            try RawDiskDevice(host: host, opening: opening)
        }
    }
}

/// The one exported symbol.
@c(xbb_plugin_v1)
public func rawDiskPluginEntry() -> UnsafePointer<xbb_plugin>? { unsafe plugin }
