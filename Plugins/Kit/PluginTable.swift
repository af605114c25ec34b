// SPDX-License-Identifier: BSD-2-Clause
// The table of a plugin by hand, for those that need its C functions themselves; Plugin is made of this too.
import Glibc
import PluginAPI

/// The table of a plugin, before its functions are filled in.
public func makePlugin(
    name: StaticString, version: StaticString, description: StaticString, formats: [StaticString],
    options: [any OptionSchema], flags: UInt32 = 0, fillIn: (inout xbb_plugin) -> Void
) -> UnsafePointer<xbb_plugin> {
    var plugin = unsafe xbb_plugin()
    unsafe plugin.struct_size = UInt32(MemoryLayout<xbb_plugin>.size)
    unsafe plugin.abi_major = UInt16(XBB_ABI_MAJOR)
    unsafe plugin.abi_minor = UInt16(XBB_ABI_MINOR)
    unsafe plugin.name = name.cString
    unsafe plugin.version = version.cString
    unsafe plugin.description = description.cString
    unsafe plugin.formats = ImmortalTexts(formats.map(ImmortalText.init)).list
    unsafe plugin.options = UnsafePointer(immortal(options.map { unsafe $0.entry }))
    unsafe plugin.option_count = UInt32(options.count)
    unsafe plugin.flags = flags
    unsafe plugin.thread_model = UInt32(XBB_THREADS_QUEUE)
    unsafe plugin.load = { table in unsafe PluginHost.load(table) }
    unsafe fillIn(&plugin)
    return unsafe UnsafePointer(immortal([plugin]))
}

/// A class instance as the `void *` that the ABI hands back in every call; released by `releaseBox(_:as:)`.
public func box<Object: AnyObject>(_ object: Object) -> UnsafeMutableRawPointer {
    unsafe Unmanaged.passRetained(object).toOpaque()
}

/// The instance behind a `void *` made by `box(_:)`, which keeps its reference.
public func unboxed<Object: AnyObject>(_ pointer: UnsafeMutableRawPointer?, as _: Object.Type) -> Object? {
    guard let pointer = unsafe pointer else { return nil }
    return unsafe Unmanaged<Object>.fromOpaque(pointer).takeUnretainedValue()
}

/// Takes the reference back that `box(_:)` made.
public func releaseBox<Object: AnyObject>(_ pointer: UnsafeMutableRawPointer?, as _: Object.Type) {
    guard let pointer = unsafe pointer else { return }
    unsafe Unmanaged<Object>.fromOpaque(pointer).release()
}

/// Runs the body of a control call.
///
/// - Returns: 0, or what it failed with, whose words go to the host.
public func reporting(
    to failure: UnsafeMutablePointer<xbb_error>?, _ body: () throws(PluginError) -> Void
) -> Int32 {
    do throws(PluginError) {
        try body()
        return 0
    } catch {
        return unsafe error.report(to: failure)
    }
}

/// Runs the body of an `open()`: builds the device and hands it to the host, or reports why not.
public func openBoxed<Device: AnyObject>(
    _ open: UnsafePointer<xbb_open>?, _ out: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ failure: UnsafeMutablePointer<xbb_error>?, options: [any OptionSchema],
    _ make: (PluginHost, Opening) throws(PluginError) -> Device
) -> Int32 {
    unsafe reporting(to: failure) { () throws(PluginError) in
        guard let host = PluginHost.current else { throw PluginError(EINVAL, "open() without a successful load()") }
        guard let out = unsafe out, let opening = unsafe Opening(open, options: options) else {
            throw PluginError(EINVAL, "the host passed another number of options than the schema has")
        }
        unsafe out.pointee = unsafe box(try make(host, opening))
    }
}
