// SPDX-License-Identifier: BSD-2-Clause
// xbb-file: raw disk images in regular files.  The entry point and the option schema.
import FileKit
import Glibc
import PluginAPI
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

nonisolated(unsafe) private let plugin = unsafe makePlugin(
    name: "file", version: "1.0", description: "Raw disk image in a regular file", formats: ["raw"],
    options: FileOption.all
) { plugin in
    unsafe addDeviceCallbacks(to: &plugin)
    unsafe plugin.open = { open, out, failure in
        unsafe openBoxed(open, out, failure, options: FileOption.all) {
            host, opening throws(PluginError) in
            try FileDevice(host: host, opening: opening)
        }
    }
    unsafe plugin.resize = { device, size, failure in
        guard let device = unsafe unboxed(device, as: StorageDevice.self) as? FileDevice else { return -EINVAL }
        return unsafe reporting(to: failure) { () throws(PluginError) in try device.resize(to: size) }
    }
    unsafe plugin.extents = { device, offset, length, report, argument, failure in
        guard let device = unsafe unboxed(device, as: StorageDevice.self) as? FileDevice, let report = unsafe report
        else { return -EINVAL }
        return unsafe reporting(to: failure) { () throws(PluginError) in
            try device.extents(from: offset, length: length) { offset, length, flags in
                unsafe report(argument, offset, length, flags) == 0
            }
        }
    }
}

/// The one exported symbol.
@c(xbb_plugin_v1)
public func filePluginEntry() -> UnsafePointer<xbb_plugin>? { unsafe plugin }
