// SPDX-License-Identifier: BSD-2-Clause
// The functions of the table that every StorageDevice has in common.
import Glibc
import PluginAPI
import PluginKit

/// Fills in all required callbacks but `open`, and `start`, `poll` and `stats`.
public func addDeviceCallbacks(to plugin: inout xbb_plugin) {
    unsafe plugin.req_ctx_size = requestScratchSize
    unsafe plugin.start = { device, failure in
        guard let device = unsafe unboxed(device, as: StorageDevice.self) else { return -EINVAL }
        return unsafe reporting(to: failure) { () throws(PluginError) in try device.start() }
    }
    unsafe plugin.close = { device in
        unsafe unboxed(device, as: StorageDevice.self)?.close()
        unsafe releaseBox(device, as: StorageDevice.self)
    }
    unsafe plugin.get_info = { device, info in
        guard let device = unsafe unboxed(device, as: StorageDevice.self), let info = unsafe info else {
            return -EINVAL
        }
        unsafe device.fillIn(&info.pointee)
        return 0
    }
    unsafe plugin.queue_open = { device, handle, parameters, out, failure in
        guard let device = unsafe unboxed(device, as: StorageDevice.self), let handle = unsafe handle,
            let parameters = unsafe parameters, let out = unsafe out
        else { return -EINVAL }
        return unsafe reporting(to: failure) { () throws(PluginError) in
            unsafe out.pointee = try UnsafeMutableRawPointer(
                device.openQueue(handle, index: parameters.pointee.index, depth: parameters.pointee.depth))
        }
    }
    unsafe plugin.queue_close = { queue in
        guard let open = unsafe queue?.assumingMemoryBound(to: OpenQueue.self) else { return }
        let host = unsafe open.pointee.device.takeUnretainedValue().host
        unsafe open.pointee.detach(from: host)
        unsafe open.deinitialize(count: 1)
        unsafe open.deallocate()
    }
    unsafe plugin.submit = { queue, requests, count in
        guard let open = unsafe queue?.assumingMemoryBound(to: OpenQueue.self), let requests = unsafe requests
        else { return 0 }
        return unsafe open.pointee.queue.submit(requests, count)
    }
    unsafe plugin.poll = { queue in
        guard let open = unsafe queue?.assumingMemoryBound(to: OpenQueue.self) else { return 0 }
        return unsafe open.pointee.queue.reap()
    }
    unsafe plugin.stats = { device, report, argument in
        guard let device = unsafe unboxed(device, as: StorageDevice.self), let report = unsafe report else {
            return -EINVAL
        }
        for (name, value) in device.statistics() { unsafe report(argument, name.cString, value) }
        return 0
    }
}
