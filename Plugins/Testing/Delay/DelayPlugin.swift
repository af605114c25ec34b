// SPDX-License-Identifier: BSD-2-Clause
// xbb-delay: a disk in memory that completes late, from a thread of its own, and out of order if told so.
import Glibc
import PluginAPI
import PluginKit

/// What can be configured.
enum DelayOption {
    static let size = PluginOption.size(
        "size", default: "64M", in: 512...(16 << 30), help: "size of the disk, a multiple of 512")
    static let delay = PluginOption.count(
        "delay-us", default: 1000, in: 0...600_000_000, help: "microseconds from submission to completion")
    static let reorder = PluginOption.bool(
        "reorder", default: false, help: "a random delay up to twice that, and random order among those due")
    static let hold = PluginOption.count(
        "hold", default: 0, in: 0...65536, help: "complete as soon as so many wait, or after their delay; 0: never")
    static let seed = PluginOption.count("seed", default: 1, in: 0...(1 << 62), help: "of the random order")
    static let keep = PluginOption.bool(
        "keep", default: false, help: "the memory is the file at the disk's path, and outlives the process")
    static let all: [any OptionSchema] = [size, delay, reorder, hold, seed, keep]
}

nonisolated(unsafe) private let plugin = unsafe makePlugin(
    name: "delay", version: "1.0", description: "Disk in memory that completes late, for tests",
    formats: ["delay", "raw"],
    options: DelayOption.all, flags: XBB_PLUGIN_NO_FD
) { plugin in
    unsafe plugin.open = { open, out, failure in
        unsafe openBoxed(open, out, failure, options: DelayOption.all) {
            host, opening throws(PluginError) in
            try DelayDevice(host: host, opening: opening)
        }
    }
    unsafe plugin.start = { device, failure in
        guard let device = unsafe unboxed(device, as: DelayDevice.self) else { return -EINVAL }
        return unsafe reporting(to: failure) { () throws(PluginError) in try device.start() }
    }
    unsafe plugin.close = { device in
        unsafe unboxed(device, as: DelayDevice.self)?.stop()
        unsafe releaseBox(device, as: DelayDevice.self)
    }
    unsafe plugin.get_info = { device, info in
        guard let device = unsafe unboxed(device, as: DelayDevice.self), let info = unsafe info else { return -EINVAL }
        unsafe device.describe(&info.pointee)
        return 0
    }
    unsafe plugin.queue_open = { device, handle, _, out, _ in
        guard let device = unsafe unboxed(device, as: DelayDevice.self), let handle = unsafe handle,
            let out = unsafe out
        else { return -EINVAL }
        unsafe out.pointee = unsafe box(DelayQueue(device: device, handle: handle))
        return 0
    }
    unsafe plugin.queue_close = { queue in unsafe releaseBox(queue, as: DelayQueue.self) }
    unsafe plugin.submit = { queue, requests, count in
        guard let queue = unsafe unboxed(queue, as: DelayQueue.self), let requests = unsafe requests else { return 0 }
        unsafe queue.device.submit(queue.handle, UnsafeBufferPointer(start: requests, count: Int(count)))
        return count
    }
    unsafe plugin.cancel = { queue, request in
        guard let queue = unsafe unboxed(queue, as: DelayQueue.self) else { return }
        unsafe queue.device.hurry(queue.handle, request)
    }
}

/// The one exported symbol.
@c(xbb_plugin_v1)
public func delayPluginEntry() -> UnsafePointer<xbb_plugin>? { unsafe plugin }
