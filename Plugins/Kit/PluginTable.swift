// SPDX-License-Identifier: BSD-2-Clause
// Builds the xbb_plugin table of a Swift plugin: made once per process, never freed, as the ABI wants it.
import Glibc
import PluginAPI

extension StaticString {
    /// The literal as the C string that it is: NUL-terminated and immortal.
    @safe public var cString: UnsafePointer<CChar> {
        unsafe UnsafeRawPointer(utf8Start).assumingMemoryBound(to: CChar.self)
    }
}

/// Copies values to memory that lives as long as the process.
func immortal<Value>(_ values: [Value]) -> UnsafeMutablePointer<Value> {
    let memory = UnsafeMutablePointer<Value>.allocate(capacity: max(values.count, 1))
    for (index, value) in values.enumerated() { unsafe (memory + index).initialize(to: value) }
    return unsafe memory
}

/// A NULL-terminated list of C strings.
private func stringList(_ strings: [StaticString]) -> UnsafePointer<UnsafePointer<CChar>?> {
    unsafe UnsafePointer(immortal(strings.map { $0.cString } + [nil]))
}

/// One entry of an option schema.
public struct PluginOption: Sendable {
    /// What values an option takes.
    public enum Kind: Sendable {
        case bool
        case uint(ClosedRange<UInt64>)
        /// Bytes, written with a suffix such as `64K`.
        case size(ClosedRange<UInt64>)
        case choice([StaticString])
        /// Text that is never logged or shown.
        case secret
    }

    let name: StaticString
    let help: StaticString
    let defaultText: StaticString
    let kind: Kind

    /// An option `name` with a default in text form.
    public init(_ name: StaticString, _ kind: Kind, default defaultText: StaticString, help: StaticString) {
        self.name = name
        self.kind = kind
        self.defaultText = defaultText
        self.help = help
    }

    var table: xbb_option {
        var option = unsafe xbb_option()
        unsafe option.name = name.cString
        unsafe option.help = help.cString
        unsafe option.def = defaultText.cString
        switch kind {
        case .bool:
            unsafe option.type = UInt32(XBB_OPT_BOOL)
        case .uint(let range):
            unsafe option.type = UInt32(XBB_OPT_UINT)
            unsafe (option.min, option.max) = (range.lowerBound, range.upperBound)
        case .size(let range):
            unsafe option.type = UInt32(XBB_OPT_SIZE)
            unsafe (option.min, option.max) = (range.lowerBound, range.upperBound)
        case .choice(let choices):
            unsafe option.type = UInt32(XBB_OPT_ENUM)
            unsafe option.choices = stringList(choices)
        case .secret:
            unsafe option.type = UInt32(XBB_OPT_SECRET)
        }
        return unsafe option
    }
}

/// The table of a plugin, before its functions are filled in.
public func makePlugin(
    name: StaticString, version: StaticString, description: StaticString, formats: [StaticString],
    options: [PluginOption], flags: UInt32 = 0, fillIn: (inout xbb_plugin) -> Void
) -> UnsafePointer<xbb_plugin> {
    var plugin = unsafe xbb_plugin()
    unsafe plugin.struct_size = UInt32(MemoryLayout<xbb_plugin>.size)
    unsafe plugin.abi_major = UInt16(XBB_ABI_MAJOR)
    unsafe plugin.abi_minor = UInt16(XBB_ABI_MINOR)
    unsafe plugin.name = name.cString
    unsafe plugin.version = version.cString
    unsafe plugin.description = description.cString
    unsafe plugin.formats = stringList(formats)
    unsafe plugin.options = UnsafePointer(immortal(options.map { unsafe $0.table }))
    unsafe plugin.option_count = UInt32(options.count)
    unsafe plugin.flags = flags
    unsafe plugin.thread_model = UInt32(XBB_THREADS_QUEUE)
    unsafe plugin.load = { table in unsafe PluginHost.load(table) }
    unsafe fillIn(&plugin)
    return unsafe UnsafePointer(immortal([plugin]))
}

/// A class instance as the `void *` that the ABI hands back in every call; released by `unbox(_:)` of the same type.
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

/// Runs the body of an `open()`: builds the device and hands it to the host, or reports why not.
public func openBoxed<Device: AnyObject>(
    _ open: UnsafePointer<xbb_open>?, _ out: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ failure: UnsafeMutablePointer<xbb_error>?, optionCount: Int,
    _ make: (PluginHost, Opening) throws(PluginError) -> Device
) -> Int32 {
    do throws(PluginError) {
        guard let host = PluginHost.current else { throw PluginError(EINVAL, "open() without a successful load()") }
        guard let out = unsafe out, let opening = unsafe Opening(open, optionCount: optionCount) else {
            throw PluginError(EINVAL, "the host passed another number of options than the schema has")
        }
        unsafe out.pointee = unsafe box(try make(host, opening))
        return 0
    } catch {
        return unsafe error.report(to: failure)
    }
}
