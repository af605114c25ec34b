// SPDX-License-Identifier: BSD-2-Clause
// A plugin as a value, and the table of C functions behind it.
import Glibc
import PluginAPI

/// What `xbb_plugin_v1()` returns.
public typealias PluginEntry = UnsafePointer<xbb_plugin>

/// A storage plugin. There is one in a library, as a global constant:
///
///     private let plugin = Plugin(name: "example", ...) { opening throws(PluginError) in try Example(opening) }
///     @c(xbb_plugin_v1) public func entry() -> PluginEntry { plugin.entry }
@safe
public struct Plugin: @unchecked Sendable {
    /// The table, made once.
    @safe public let entry: PluginEntry

    /// A plugin whose disks are opened by `open`, which is called with the rights of root and before there are threads.
    ///
    /// - Parameters:
    ///   - formats: which disks are its own, by the format that is configured; its name, if nothing is said.
    ///   - options: all that `open` reads.
    ///   - hasFile: there is an image or device; else `opening.fd` is -1.
    ///   - isNetwork: makes sockets after `start()`.
    public init<Disk: StorageDisk>(
        name: StaticString, version: StaticString, description: StaticString, formats: [StaticString] = [],
        options: [any OptionSchema] = [], hasFile: Bool, isNetwork: Bool = false,
        open: @escaping @Sendable (Opening) throws(PluginError) -> Disk
    ) {
        unsafe Opener.current = Opener(options: options) { opening throws(PluginError) in
            DiskBox(try open(opening), isReadOnly: opening.isReadOnly)
        }
        let flags = (hasFile ? 0 : XBB_PLUGIN_NO_FD) | (isNetwork ? XBB_PLUGIN_NETWORK : 0)
        entry = unsafe makePlugin(
            name: name, version: version, description: description, formats: formats.isEmpty ? [name] : formats,
            options: options, flags: UInt32(flags), fillIn: { plugin in unsafe fillInCallbacks(&plugin) })
    }
}

/// How the plugin of this library opens a disk: C functions have no place for it.
struct Opener: Sendable {
    let options: [any OptionSchema]
    let open: @Sendable (Opening) throws(PluginError) -> AnyDiskBox
    nonisolated(unsafe) static var current: Opener?
}

/// What the ABI's `void *dev` points to.
class AnyDiskBox {
    func start() throws(PluginError) {}
    func describe(_ info: inout xbb_info) {}
    func openQueue(_ parameters: QueueParameters, _ handle: OpaquePointer) throws(PluginError) -> AnyQueueBox {
        throw PluginError(ENOSYS, "no queues")
    }
    func close() {}
}

private final class DiskBox<Disk: StorageDisk>: AnyDiskBox {
    private let disk: Disk
    private let isReadOnly: Bool

    init(_ disk: Disk, isReadOnly: Bool) {
        self.disk = disk
        self.isReadOnly = isReadOnly
    }

    override func start() throws(PluginError) { try disk.start() }
    override func close() { disk.close() }

    override func describe(_ info: inout xbb_info) {
        disk.info.fill(&info, isReadOnly: isReadOnly)
    }

    override func openQueue(_ parameters: QueueParameters, _ handle: OpaquePointer) throws(PluginError) -> AnyQueueBox {
        unsafe QueueBox(try disk.openQueue(parameters), handle, disk.info.allowed(isReadOnly: isReadOnly))
    }
}

/// What the ABI's `void *q` points to.
class AnyQueueBox {
    func submit(_ requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>, _ count: UInt32) -> UInt32 { 0 }
    func close() {}
}

@safe
private final class QueueBox<Queue: StorageQueue>: AnyQueueBox {
    private let queue: Queue
    private let handle: OpaquePointer
    private let capabilities: Capabilities
    private let complete: HostComplete?

    init(_ queue: Queue, _ handle: OpaquePointer, _ capabilities: Capabilities) {
        self.queue = queue
        unsafe self.handle = unsafe handle
        self.capabilities = capabilities
        unsafe complete = PluginHost.current?.complete
    }

    override func submit(_ requests: UnsafePointer<UnsafeMutablePointer<xbb_req>?>, _ count: UInt32) -> UInt32 {
        guard let complete = unsafe complete else { return 0 }
        var batch = unsafe RequestBatch(
            requests, count: Int(count), queue: handle, complete: complete, capabilities: capabilities)
        queue.submit(&batch)
        return UInt32(batch.taken)
    }

    override func close() { queue.queueClosed() }
}

private func fillInCallbacks(_ plugin: inout xbb_plugin) {
    unsafe plugin.req_ctx_size = UInt32(MemoryLayout<RequestList.Link>.size)
    unsafe plugin.open = { open, out, failure in
        guard let opener = unsafe Opener.current else { return -EINVAL }
        return unsafe openBoxed(open, out, failure, options: opener.options) { _, opening throws(PluginError) in
            try opener.open(opening)
        }
    }
    unsafe plugin.start = { device, failure in
        guard let disk = unsafe unboxed(device, as: AnyDiskBox.self) else { return -EINVAL }
        return unsafe reporting(to: failure) { () throws(PluginError) in try disk.start() }
    }
    unsafe plugin.close = { device in
        unsafe unboxed(device, as: AnyDiskBox.self)?.close()
        unsafe releaseBox(device, as: AnyDiskBox.self)
    }
    unsafe plugin.get_info = { device, info in
        guard let disk = unsafe unboxed(device, as: AnyDiskBox.self), let info = unsafe info else { return -EINVAL }
        unsafe disk.describe(&info.pointee)
        return 0
    }
    unsafe plugin.queue_open = { device, handle, parameters, out, failure in
        guard let disk = unsafe unboxed(device, as: AnyDiskBox.self), let handle = unsafe handle,
            let parameters = unsafe parameters, let out = unsafe out
        else { return -EINVAL }
        let which = unsafe QueueParameters(index: Int(parameters.pointee.index), depth: Int(parameters.pointee.depth))
        return unsafe reporting(to: failure) { () throws(PluginError) in
            unsafe out.pointee = unsafe box(try disk.openQueue(which, handle))
        }
    }
    unsafe plugin.queue_close = { queue in
        unsafe unboxed(queue, as: AnyQueueBox.self)?.close()
        unsafe releaseBox(queue, as: AnyQueueBox.self)
    }
    unsafe plugin.submit = { queue, requests, count in
        guard let queue = unsafe queue, let requests = unsafe requests else { return 0 }
        return unsafe Unmanaged<AnyQueueBox>.fromOpaque(queue)._withUnsafeGuaranteedRef { box in
            unsafe box.submit(requests, count)
        }
    }
}
