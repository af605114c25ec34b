// SPDX-License-Identifier: BSD-2-Clause
// xbb-qcow: QCOW images of QEMU, versions 1 to 3, read-only.  The entry point and the option schema.
import Glibc
import PluginAPI
import PluginKit

/// What can be configured.
enum QCOWOption {
    static let password = PluginOption.secret("password", default: "", help: "of images that are encrypted with AES")
    static let backingFormat = PluginOption.choice(
        "backing-format", default: BackingFormat.none,
        help: "the format of backing files of which the image does not say it; none: such an image is refused")
    static let cache = PluginOption.size(
        "cache", default: "1M", in: (64 << 10)...(256 << 20),
        help: "memory for tables of the image, for each thread that reads")
    static let lock = PluginOption.bool(
        "lock", default: true, help: "refuse an image that someone writes to (as QEMU does)")
    static let all: [any OptionSchema] = [password, backingFormat, cache, lock]
}

/// Formats that an administrator can give to a backing file.
enum BackingFormat: String, OptionChoice {
    case none
    case raw
    case qcow2
    case qcow
}

nonisolated(unsafe) private let plugin = unsafe makePlugin(
    name: "qcow", version: "1.0", description: "QCOW images, read-only (libqcow)", formats: ["qcow2", "qcow"],
    options: QCOWOption.all, flags: XBB_PLUGIN_BLOCKING | XBB_PLUGIN_RDONLY
) { plugin in
    unsafe plugin.probe = { request in
        guard let request = unsafe request else { return 0 }
        return unsafe QCOWProbe.score(request)
    }
    unsafe plugin.inspect = { open, image, failure in
        unsafe reporting(to: failure) { () throws(PluginError) in
            guard let image = unsafe image, let opening = unsafe Opening(open, options: QCOWOption.all)
            else { throw PluginError(EINVAL, "inspect() without an image") }
            try unsafe QCOWProbe.inspect(opening, &image.pointee)
        }
    }
    unsafe plugin.open = { open, out, failure in
        unsafe openBoxed(open, out, failure, options: QCOWOption.all) {
            host, opening throws(PluginError) in
            try QCOWDevice(host: host, opening: opening)
        }
    }
    unsafe plugin.close = { device in
        unsafe unboxed(device, as: QCOWDevice.self)?.close()
        unsafe releaseBox(device, as: QCOWDevice.self)
    }
    unsafe plugin.get_info = { device, info in
        guard let device = unsafe unboxed(device, as: QCOWDevice.self), let info = unsafe info else { return -EINVAL }
        unsafe device.describe(&info.pointee)
        return 0
    }
    unsafe plugin.queue_open = { device, handle, parameters, out, _ in
        guard let device = unsafe unboxed(device, as: QCOWDevice.self), let handle = unsafe handle,
            let parameters = unsafe parameters, let out = unsafe out
        else { return -EINVAL }
        unsafe out.pointee = unsafe box(device.openQueue(handle, index: parameters.pointee.index))
        return 0
    }
    unsafe plugin.queue_close = { queue in unsafe releaseBox(queue, as: QCOWQueue.self) }
    unsafe plugin.submit = { queue, requests, count in
        guard let queue = unsafe unboxed(queue, as: QCOWQueue.self), let requests = unsafe requests else { return 0 }
        unsafe queue.submit(UnsafeBufferPointer(start: requests, count: Int(count)))
        return count
    }
    unsafe plugin.stats = { device, report, argument in
        guard let device = unsafe unboxed(device, as: QCOWDevice.self), let report = unsafe report else {
            return -EINVAL
        }
        for (name, value) in device.statistics() { unsafe report(argument, name.cString, value) }
        return 0
    }
}

/// The one exported symbol.
@c(xbb_plugin_v1)
public func qcowPluginEntry() -> UnsafePointer<xbb_plugin>? { unsafe plugin }
