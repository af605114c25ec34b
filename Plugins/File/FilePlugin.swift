// SPDX-License-Identifier: BSD-2-Clause
// xbb-file: raw disk images in regular files.  The entry point and the option schema.
import Glibc
import PluginAPI
import PluginKit

/// The place of each option in the schema.
enum FileOption: Int, CaseIterable {
    case direct
    case threads
    case lock
    case discard
}

/// How the option `direct` can be set, in the order of its choices.
enum DirectChoice: UInt64 {
    case auto
    case on
    case off
}

private let options: [PluginOption] = [
    PluginOption(
        "direct", .choice(["auto", "on", "off"]), default: "auto",
        help: "bypass the page cache with O_DIRECT and asynchronous I/O; auto: if the host opened the image so"),
    PluginOption(
        "threads", .uint(1...64), default: "8", help: "threads per disk for files that cannot do asynchronous I/O"),
    PluginOption("lock", .bool, default: "on", help: "refuse an image that someone else writes to (as QEMU does)"),
    PluginOption("discard", .bool, default: "on", help: "let the guest punch holes into the file"),
]

nonisolated(unsafe) private let plugin = unsafe makePlugin(
    name: "file", version: "1.0", description: "Raw disk image in a regular file", formats: ["raw"], options: options
) { plugin in
    unsafe addDeviceCallbacks(to: &plugin)
    unsafe plugin.open = { open, out, failure in
        unsafe openBoxed(open, out, failure, optionCount: FileOption.allCases.count) {
            host, opening throws(PluginError) in
            try FileDevice(host: host, opening: opening)
        }
    }
    unsafe plugin.resize = { device, size, failure in
        guard let device = unsafe unboxed(device, as: StorageDevice.self) as? FileDevice else { return -EINVAL }
        do throws(PluginError) {
            try device.resize(to: size)
            return 0
        } catch {
            return unsafe error.report(to: failure)
        }
    }
    unsafe plugin.extents = { device, offset, length, report, argument, failure in
        guard let device = unsafe unboxed(device, as: StorageDevice.self) as? FileDevice, let report = unsafe report
        else { return -EINVAL }
        do throws(PluginError) {
            try device.extents(from: offset, length: length) { offset, length, flags in
                unsafe report(argument, offset, length, flags) == 0
            }
            return 0
        } catch {
            return unsafe error.report(to: failure)
        }
    }
}

/// The one exported symbol.
@c(xbb_plugin_v1)
public func filePluginEntry() -> UnsafePointer<xbb_plugin>? { unsafe plugin }
