// SPDX-License-Identifier: BSD-2-Clause
// A plugin as a value: the one way to make a plugin in Swift.
import Glibc
import PluginAPI

/// What `xbb_plugin_v1()` returns.
public typealias PluginEntry = UnsafePointer<xbb_plugin>

/// A storage plugin. There is one in a library, as a global constant:
///
///     private let plugin = Plugin(name: "example", ...) { opening throws(PluginError) in try Example(opening) }
///     @c(xbb_plugin_v1) public func entry() -> PluginEntry { plugin.entry }
///
/// `@unchecked Sendable`: the table is written once, here, and lives as long as the process.
@safe
public struct Plugin: @unchecked Sendable {
    /// The table, made once.
    @safe public let entry: PluginEntry

    /// A plugin whose disks are opened by `open`, which is called with the rights of root and before there are threads.
    ///
    /// What else it can do is said by what `Disk` and its queues are: ``ResizableDisk``, ``MappedDisk``, ``CountingDisk``, ``DrainingDisk``,
    /// ``CancellingQueue``, ``StorageQueue/isPolled``.
    ///
    /// - Parameters:
    ///   - formats: which disks are its own, by the format that is configured; its name, if nothing is said.
    ///   - options: all that `open` reads.
    ///   - hasFile: there is an image or device; else `opening.fd` is -1.
    ///   - isNetwork: makes sockets after `start()`.
    ///   - isBlocking: `submit()` may sleep: the host makes threads for it, and there are no watches, timers and polling.
    ///   - isReadOnly: it never writes, and its disks are attached read-only. A write is refused with EROFS.
    ///   - inspector: recognizes and describes images; none for formats without a header.
    ///   - scratch: bytes of memory that each request brings along for the plugin, at most 4096; see ``Request/scratch``.
    public init<Disk: StorageDisk>(
        name: StaticString, version: StaticString, description: StaticString, formats: [StaticString] = [],
        options: [any OptionSchema] = [], hasFile: Bool, isNetwork: Bool = false,
        isBlocking: Bool = false, isReadOnly: Bool = false, inspector: (any ImageInspector.Type)? = nil,
        scratch: Int = 0,
        open: @escaping @Sendable (Opening) throws(PluginError) -> Disk
    ) {
        let writeRefusal = isReadOnly ? -EROFS : -EOPNOTSUPP
        unsafe LoadedPlugin.current = LoadedPlugin(
            options: options, isBlocking: isBlocking, inspector: inspector
        ) { opening throws(PluginError) in
            DiskBox(try open(opening), isReadOnly: opening.isReadOnly, writeRefusal: writeRefusal)
        }
        var plugin = unsafe xbb_plugin()
        unsafe plugin.struct_size = UInt32(MemoryLayout<xbb_plugin>.size)
        unsafe plugin.abi_major = UInt16(XBB_ABI_MAJOR)
        unsafe plugin.abi_minor = UInt16(XBB_ABI_MINOR)
        unsafe plugin.name = name.cString
        unsafe plugin.version = version.cString
        unsafe plugin.description = description.cString
        unsafe plugin.formats = ImmortalTexts((formats.isEmpty ? [name] : formats).map(ImmortalText.init)).list
        unsafe plugin.options = UnsafePointer(immortal(options.map { unsafe $0.entry }))
        unsafe plugin.option_count = UInt32(options.count)
        unsafe plugin.flags =
            (hasFile ? 0 : UInt32(XBB_PLUGIN_NO_FD)) | (isNetwork ? UInt32(XBB_PLUGIN_NETWORK) : 0)
            | (isBlocking ? UInt32(XBB_PLUGIN_BLOCKING) : 0) | (isReadOnly ? UInt32(XBB_PLUGIN_RDONLY) : 0)
        unsafe plugin.thread_model = UInt32(XBB_THREADS_QUEUE)
        unsafe plugin.req_ctx_size = UInt32(clamping: max(scratch, MemoryLayout<RequestList.Link>.size))
        unsafe plugin.fillInCallbacks(
            inspects: inspector != nil, polls: Disk.Queue.isPolled,
            cancels: Disk.Queue.self is any CancellingQueue.Type,
            resizes: Disk.self is any ResizableDisk.Type, maps: Disk.self is any MappedDisk.Type,
            counts: Disk.self is any CountingDisk.Type, drains: Disk.self is any DrainingDisk.Type)
        entry = unsafe UnsafePointer(immortal([plugin]))
    }
}

/// The plugin of this library: C functions have no place for it.
struct LoadedPlugin: Sendable {
    let options: [any OptionSchema]
    let isBlocking: Bool
    let inspector: (any ImageInspector.Type)?
    let open: @Sendable (Opening) throws(PluginError) -> DiskBox

    /// Written once, before the table can be read, so readers need no lock.
    nonisolated(unsafe) static var current: LoadedPlugin?
}
