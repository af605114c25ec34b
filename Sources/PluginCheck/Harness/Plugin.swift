// SPDX-License-Identifier: BSD-2-Clause
// A plugin and a disk under test, in the harness.
import PluginHost
import Base
import CLinux
import CPluginHarness
import Glibc
import PluginAPI

/// A plugin, loaded and checked as the host does it, but with the harness as its host.
///
/// `@unchecked Sendable`: both views are constant; the checks keep to the plugin's thread model.
@safe
package struct Plugin: @unchecked Sendable {
    /// The host's view of the plugin.
    package let library: PluginLibrary
    /// The harness's view of the plugin.
    package let handle: OpaquePointer

    /// The plugin's own table.
    package var table: xbb_plugin { unsafe library.table }

    /// Loads the plugin `name` from a file. Do this once for each file in a process, since it calls `load()`.
    package init(name: String, path: String) throws(Failure) {
        do throws(OperationError) {
            library = try unsafe PluginLibrary.load(name: name, path: path, host: harness_host())
        } catch {
            throw Failure(error)
        }
        let table = UnsafeMutablePointer<xbb_plugin>.allocate(capacity: 1)
        unsafe table.initialize(to: library.table)
        guard let handle = unsafe harness_plugin(table) else { throw Failure("no memory") }
        unsafe self.handle = unsafe handle
    }

    /// The values of all options: `given`, and the defaults for the rest.
    package func values(_ given: [String: String]) throws(Failure) -> PluginOptionValues {
        do throws(OperationError) {
            return try PluginOptionValues(library.options, given: given)
        } catch {
            throw Failure(error)
        }
    }
}

/// An open disk; its queues must be closed before it goes away.
@safe
package final class Disk {
    package let handle: OpaquePointer
    /// The open file, or -1.
    package let fd: Int32
    private let values: PluginOptionValues
    private var isClosed = false

    /// Opens `path` as the host would and passes it to the plugin; `path` nil: no descriptor. With `started` false, the
    /// caller must call `start()`.
    package convenience init(
        _ plugin: Plugin, _ path: String? = nil, readOnly: Bool = false, openFlags: Int32 = 0,
        pretendWritable: Bool = false, _ options: [String: String] = [:], format: String? = nil,
        location: String? = nil, isAfterDeath: Bool = false, started: Bool = true
    ) throws(Failure) {
        var fd: Int32 = -1
        if let path {
            fd = unsafe clinux_open(path, (readOnly || pretendWritable ? O_RDONLY : O_RDWR) | O_CLOEXEC | openFlags, 0)
            guard fd >= 0 else {
                throw Failure("cannot open \(path): \(unsafe String(cString: strerror(errno)))", code: -errno)
            }
        }
        let isDirect = openFlags & O_DIRECT != 0
        let flags =
            UInt32((readOnly ? XBB_OPEN_RDONLY : 0) | (isDirect ? XBB_OPEN_DIRECT : 0))
            | (isAfterDeath ? XBB_OPEN_SUCCESSOR | XBB_OPEN_AFTER_DEATH : 0)
        do throws(Failure) {
            try self.init(
                plugin, borrowing: fd, flags: flags, options, format: format, location: location, started: started)
        } catch {
            if fd >= 0 { _ = Glibc.close(fd) }
            throw error
        }
    }

    /// Passes a descriptor to the plugin, which may be an invalid one. It is closed with the disk.
    package init(
        _ plugin: Plugin, borrowing fd: Int32, flags: UInt32, _ options: [String: String], format: String? = nil,
        location: String? = nil, started: Bool = true
    ) throws(Failure) {
        let values = try plugin.values(options)
        var handle: OpaquePointer?
        var error = xbb_error()
        let name = format ?? plugin.library.formats.first ?? ""
        let code = unsafe name.withCString { name in
            unsafe (location ?? "").withCString { location in
                unsafe harness_prepare(plugin.handle, fd, flags, values.values, name, location, &handle, &error)
            }
        }
        guard code == 0, let opened = unsafe handle else {
            throw error.refusal(of: "open()", code)
        }
        unsafe self.handle = unsafe opened
        self.values = values
        self.fd = fd
        if started { try start() }
    }

    /// Calls `start()`; closes the disk if it fails.
    package func start() throws(Failure) {
        var error = xbb_error()
        let code = unsafe harness_start(handle, &error)
        if code == 0 { return }
        isClosed = true
        throw error.refusal(of: "start()", code)
    }

    /// Closes the disk, once.
    package func close() {
        if isClosed { return }
        isClosed = true
        unsafe harness_close(handle)
        if fd >= 0 { _ = Glibc.close(fd) }
    }

    /// Closes the disk but leaves its file open for inspection.
    package func closeKeepingDescriptor() {
        if isClosed { return }
        isClosed = true
        unsafe harness_close(handle)
    }

    deinit { close() }

    /// The current answer of `get_info()`.
    package var info: xbb_info {
        var info = xbb_info()
        return unsafe harness_info(handle, &info) == 0 ? info : xbb_info()
    }

    /// The plugin's log messages.
    package var log: String {
        var text = [CChar](repeating: 0, count: 8192)
        unsafe harness_log(handle, &text, UInt64(text.count))
        return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// Number of violations of the ABI so far.
    package var breaches: UInt32 { unsafe harness_breaches(handle) }
    package func can(_ capability: UInt64) -> Bool { info.caps & capability != 0 }
    package func statistic(_ name: String) -> UInt64 { unsafe harness_stat(handle, name) }

    /// (offset, length, flags) of each extent.
    package func extents(_ offset: UInt64 = 0, _ length: UInt64 = .max) -> [[UInt64]] {
        var triples = [UInt64](repeating: 0, count: 3 * 1024)
        let count = unsafe harness_extents(handle, offset, length, &triples, 1024)
        return (0..<max(Int(count), 0)).map { Array(triples[$0 * 3..<$0 * 3 + 3]) }
    }
}

extension xbb_error {
    /// The message.
    package var text: String {
        unsafe withUnsafeBytes(of: message) { bytes in unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }

    /// Describes a refusal with this code: its message, or how it broke the rules for refusals.
    func refusal(of call: String, _ code: Int32) -> Failure {
        if code == 0 { return Failure("\(call) returned 0 and nothing in its out parameter", code: -EFAULT) }
        if code > 0 || code < -4095 {
            return Failure("\(call) returned \(code): 0 or a negative errno is expected", code: -EFAULT)
        }
        if text.isEmpty {
            return Failure("\(call) returned \(code) without a message in struct xbb_error", code: code)
        }
        var failure = Failure(text, code: code)
        failure.isRefusal = true
        return failure
    }
}
