// SPDX-License-Identifier: BSD-2-Clause
// The services that a plugin may call (`struct xbb_host`).
import Base
import CLinux
import Glibc
import PluginAPI
import Synchronization
import Support

/// The process's only service table, valid for ever.
enum HostTable {
    /// The features of this host (`XBB_HOST_F_`).
    static let features: UInt64 = UInt64(XBB_HOST_F_MEM_MAP) | UInt64(XBB_HOST_F_STACKING)

    /// The table that load() gets. `nonisolated(unsafe)`: it is written once, here, before anybody can read it.
    ///
    /// The pointers come from the plugin: each function checks those that may be null. Handles are objects that this
    /// host made and keeps alive until the plugin gives them back, or for ever.
    nonisolated(unsafe) static let shared: UnsafePointer<xbb_host> = {
        let table = UnsafeMutablePointer<xbb_host>.allocate(capacity: 1)
        var host = xbb_host()
        host.struct_size = UInt32(MemoryLayout<xbb_host>.size)
        host.abi_major = UInt16(XBB_ABI_MAJOR)
        host.abi_minor = UInt16(XBB_ABI_MINOR)
        host.features = features
        unsafe host.log = { hdev, level, line in
            guard let line = unsafe line else { return }
            let text = unsafe String(cString: line)
            let severity: LogLevel =
                switch Int(level) {
                case Int(XBB_LOG_ERROR): .error
                case Int(XBB_LOG_WARN): .warning
                case Int(XBB_LOG_INFO): .info
                default: .debug
                }
            (unsafe HostDevice.from(hdev) ?? orphan).message(severity, text)
        }
        unsafe host.complete = { hq, req, status in
            guard let hq = unsafe hq else { return }
            // The queue is immortal, so no reference is taken here.
            unsafe Unmanaged<HostQueue>.fromOpaque(UnsafeRawPointer(hq))._withUnsafeGuaranteedRef {
                unsafe $0.port.complete(req, status)
            }
        }
        unsafe host.watch_add = { hq, fd, events, function, argument, out in
            guard let queue = unsafe HostQueue.from(hq), let function = unsafe function, let out = unsafe out else {
                return -EINVAL
            }
            guard let loop = queue.events else { return -EOPNOTSUPP }
            let (watch, result) = unsafe loop.watchAdd(fd, events, function, argument)
            guard let watch else { return result }
            unsafe out.pointee = OpaquePointer(Unmanaged.passRetained(watch).toOpaque())
            return 0
        }
        unsafe host.watch_set = { pointer, events in
            guard let pointer = unsafe pointer else { return }
            let watch = unsafe Unmanaged<PluginWatch>.fromOpaque(UnsafeRawPointer(pointer)).takeUnretainedValue()
            watch.events.watchSet(watch, events)
        }
        unsafe host.watch_del = { pointer in
            guard let pointer = unsafe pointer else { return }
            let watch = unsafe Unmanaged<PluginWatch>.fromOpaque(UnsafeRawPointer(pointer)).takeRetainedValue()
            watch.events.watchRemove(watch)
        }
        unsafe host.timer_add = { hq, function, argument, out in
            guard let queue = unsafe HostQueue.from(hq), let function = unsafe function, let out = unsafe out else {
                return -EINVAL
            }
            guard let loop = queue.events else { return -EOPNOTSUPP }
            let timer = unsafe loop.timerAdd(function, argument)
            unsafe out.pointee = OpaquePointer(Unmanaged.passRetained(timer).toOpaque())
            return 0
        }
        unsafe host.timer_set = { pointer, delay in
            guard let pointer = unsafe pointer else { return }
            let timer = unsafe Unmanaged<PluginTimer>.fromOpaque(UnsafeRawPointer(pointer)).takeUnretainedValue()
            timer.deadline = delay == 0 ? nil : clinux_monotonic_ns() &+ delay
        }
        unsafe host.timer_del = { pointer in
            guard let pointer = unsafe pointer else { return }
            let timer = unsafe Unmanaged<PluginTimer>.fromOpaque(UnsafeRawPointer(pointer)).takeRetainedValue()
            timer.events.timerRemove(timer)
        }
        unsafe host.post = { hq, function, argument in
            guard let queue = unsafe HostQueue.from(hq), let function = unsafe function else { return }
            unsafe queue.events?.post(function, argument)
        }
        unsafe host.notify = { hdev, what in
            unsafe HostDevice.from(hdev)?.notify(what)
        }
        unsafe host.extension = { _ in nil }
        unsafe host.child_open = { hdev, reference, out, failure in
            guard let device = unsafe HostDevice.from(hdev), let reference = unsafe reference, let out = unsafe out
            else {
                return unsafe xbb_set_error(failure, -EINVAL, "child_open() without a disk or a name")
            }
            do throws(OperationError) {
                unsafe out.pointee = try unsafe device.openChild(reference.pointee).immortalPointer()
                return 0
            } catch {
                return unsafe xbb_set_error(failure, -EACCES, error.description)
            }
        }
        unsafe host.child_fd = { child in unsafe HostChild.from(child)?.descriptor ?? -1 }
        unsafe host.child_info = { child, out in
            guard let child = unsafe HostChild.from(child), let out = unsafe out else { return -EINVAL }
            return unsafe child.describe(out)
        }
        unsafe host.child_submit = { hq, child, request, done, argument in
            guard let queue = unsafe HostQueue.from(hq), let child = unsafe HostChild.from(child),
                let request = unsafe request, let done = unsafe done
            else { return -EINVAL }
            for below in queue.childQueues where below.serves(child) {
                return unsafe below.submit(request, done, argument)
            }
            return -EOPNOTSUPP
        }
        unsafe host.child_device = { child in unsafe HostChild.from(child)?.handleOfOwnPlugin }
        unsafe host.keep = { hdev, key, file in unsafe HostDevice.from(hdev)?.keep(key, file) ?? -EINVAL }
        unsafe host.kept = { hdev, key in unsafe HostDevice.from(hdev)?.kept(key) ?? -EINVAL }
        unsafe table.initialize(to: host)
        return unsafe UnsafePointer(table)
    }()

    private static let orphan = HostDevice(log: Log(name: "xbb").limited(by: LogLimit()), onNotify: { _ in })
}
