// SPDX-License-Identifier: BSD-2-Clause
// The C functions of a plugin's table. Each checks what it is given, and calls the disk or queue behind it.
import Glibc
import PluginAPI

extension xbb_plugin {
    /// Fills in the functions; those that the plugin does not have stay NULL.
    mutating func fillInCallbacks(
        inspects: Bool, polls: Bool, cancels: Bool, resizes: Bool, maps: Bool, counts: Bool,
        drains: Bool
    ) {
        unsafe load = { table in unsafe PluginHost.load(table) }
        unsafe fillInDisk()
        unsafe fillInQueue()
        if polls {
            unsafe poll = { queue in
                guard let queue = unsafe queue else { return 0 }
                return unsafe Unmanaged<QueueBox>.fromOpaque(queue)._withUnsafeGuaranteedRef { box in
                    UInt32(truncatingIfNeeded: box.poll())
                }
            }
        }
        if cancels {
            unsafe cancel = { queue, request in
                unsafe unboxed(queue, as: QueueBox.self)?.cancel?(request.map { unsafe RequestID($0) })
            }
        }
        if inspects { unsafe fillInInspection() }
        if resizes {
            unsafe resize = { device, size, failure in
                guard let resize = unsafe unboxed(device, as: DiskBox.self)?.resize else { return -EINVAL }
                return unsafe reporting(to: failure) { () throws(PluginError) in try resize(size) }
            }
        }
        if maps {
            unsafe extents = { device, offset, length, report, argument, failure in
                guard let map = unsafe unboxed(device, as: DiskBox.self)?.map, let report = unsafe report
                else { return -EINVAL }
                return unsafe reporting(to: failure) { () throws(PluginError) in
                    try map(offset, length) { range in
                        unsafe report(argument, range.offset, range.length, range.kind.rawValue) == 0
                    }
                }
            }
        }
        if drains {
            unsafe drain_begin = { device in
                guard let begin = unsafe unboxed(device, as: DiskBox.self)?.beginDrain else { return -EINVAL }
                return reporting(to: nil) { () throws(PluginError) in try begin() }
            }
            unsafe drain_end = { device in unsafe unboxed(device, as: DiskBox.self)?.endDrain?() }
        }
        if counts {
            unsafe stats = { device, report, argument in
                guard let statistics = unsafe unboxed(device, as: DiskBox.self)?.statistics, let report = unsafe report
                else { return -EINVAL }
                for (name, value) in statistics() { unsafe report(argument, name.cString, value) }
                return 0
            }
        }
    }

    private mutating func fillInDisk() {
        unsafe open = { open, out, failure in
            unsafe reporting(to: failure) { () throws(PluginError) in
                guard let plugin = unsafe LoadedPlugin.current, PluginHost.current != nil else {
                    throw .invalid("open() without a successful load()")
                }
                guard let out = unsafe out, let opening = unsafe Opening(open, options: plugin.options) else {
                    throw .invalid("the host passed another number of options than the schema has")
                }
                unsafe out.pointee = unsafe box(try plugin.open(opening))
            }
        }
        unsafe start = { device, failure in
            guard let disk = unsafe unboxed(device, as: DiskBox.self) else { return -EINVAL }
            return unsafe reporting(to: failure) { () throws(PluginError) in try disk.start() }
        }
        unsafe close = { device in
            unsafe unboxed(device, as: DiskBox.self)?.close()
            unsafe releaseBox(device, as: DiskBox.self)
        }
        unsafe get_info = { device, info in
            guard let disk = unsafe unboxed(device, as: DiskBox.self), let info = unsafe info else { return -EINVAL }
            unsafe disk.describe(&info.pointee)
            return 0
        }
    }

    private mutating func fillInQueue() {
        unsafe queue_open = { device, handle, parameters, out, failure in
            guard let disk = unsafe unboxed(device, as: DiskBox.self), let handle = unsafe handle,
                let parameters = unsafe parameters, let out = unsafe out, let host = PluginHost.current
            else { return -EINVAL }
            let which = unsafe QueueParameters(
                index: Int(parameters.pointee.index), depth: Int(parameters.pointee.depth),
                queue: HostQueue(handle, of: host))
            return unsafe reporting(to: failure) { () throws(PluginError) in
                unsafe out.pointee = unsafe box(try disk.openQueue(which))
            }
        }
        unsafe queue_close = { queue in
            unsafe unboxed(queue, as: QueueBox.self)?.close()
            unsafe releaseBox(queue, as: QueueBox.self)
        }
        unsafe submit = { queue, requests, count in
            guard let queue = unsafe queue, let requests = unsafe requests else { return 0 }
            return unsafe Unmanaged<QueueBox>.fromOpaque(queue)._withUnsafeGuaranteedRef { box in
                unsafe box.submit(requests, count)
            }
        }
    }

    private mutating func fillInInspection() {
        unsafe probe = { request in
            guard let inspector = unsafe LoadedPlugin.current?.inspector, let head = unsafe ImageHead(request) else {
                return 0
            }
            return Int32(clamping: inspector.score(head))
        }
        unsafe inspect = { open, image, failure in
            unsafe reporting(to: failure) { () throws(PluginError) in
                guard let plugin = unsafe LoadedPlugin.current, let inspector = plugin.inspector,
                    let image = unsafe image, let opening = unsafe Opening(open, options: plugin.options)
                else { throw .invalid("inspect() without an image") }
                try unsafe inspector.inspect(opening).fill(&image.pointee)
            }
        }
        unsafe `extension` = { id in
            guard let id = unsafe id, unsafe strcmp(id, ComparisonCall.name) == 0,
                unsafe LoadedPlugin.current?.inspector?.canCompare == true
            else { return nil }
            return unsafe UnsafeRawPointer(immortalComparison)
        }
        unsafe examine = { open, flags, tell, argument, failure in
            unsafe reporting(to: failure) { () throws(PluginError) in
                guard let plugin = unsafe LoadedPlugin.current, let inspector = plugin.inspector, flags == 0,
                    let tell = unsafe tell, let opening = unsafe Opening(open, options: plugin.options)
                else { throw .invalid("examine() without an image, or with unknown flags") }
                try inspector.examine(opening) { fact in
                    unsafe fact.name.withCString { name in
                        guard let words = fact.words else { return unsafe tell(argument, name, fact.value, nil) == 0 }
                        return unsafe words.withCString { unsafe tell(argument, name, fact.value, $0) == 0 }
                    }
                }
            }
        }
    }
}

/// Runs the body of a control call.
///
/// - Returns: 0, or what it failed with, whose words go to the host.
private func reporting(
    to failure: UnsafeMutablePointer<xbb_error>?, _ body: () throws(PluginError) -> Void
) -> Int32 {
    do throws(PluginError) {
        try body()
        return 0
    } catch {
        return unsafe error.report(to: failure)
    }
}
