// SPDX-License-Identifier: BSD-2-Clause
// The host's services as the Swift plugins see them: the table that load() brought, behind functions with Swift types.
import Glibc
import PluginAPI

/// `xbb_host.complete`: any thread, exactly once per accepted request; status 0 or a negative errno.
public typealias HostComplete =
    @convention(c) (_ queue: OpaquePointer?, _ request: UnsafeMutablePointer<xbb_req>?, _ status: Int32) -> Void

/// The table of the host that loaded this plugin.  Valid for ever, usable from any thread unless a function says less.
///
/// `@unchecked Sendable`: the host writes the table once, before `load()`.
@safe
public struct PluginHost: @unchecked Sendable {
    /// How serious a log line is; `XBB_LOG_*`.
    public enum Level: UInt32, Sendable {
        case error = 1
        case warning = 2
        case info = 3
        case debug = 4
    }

    /// The functions themselves.
    let table: UnsafePointer<xbb_host>

    /// `xbb_host.complete`, to be kept by those who call it often.
    let complete: HostComplete

    /// `xbb_host.keep` and `kept`; nil in a host that is older than ABI 1.3.
    var keepFunction: (@convention(c) (OpaquePointer?, UInt32, Int32) -> Int32)? {
        unsafe has(\.keep) ? table.pointee.keep : nil
    }
    var keptFunction: (@convention(c) (OpaquePointer?, UInt32) -> Int32)? {
        unsafe has(\.kept) ? table.pointee.kept : nil
    }

    private func has(_ field: PartialKeyPath<xbb_host>) -> Bool {
        guard let offset = MemoryLayout<xbb_host>.offset(of: field) else { return false }
        return unsafe Int(table.pointee.struct_size) > offset
    }

    /// Checks that the table is of this major version and has every function that the kit calls.
    init?(_ table: UnsafePointer<xbb_host>?) {
        guard let table = unsafe table,
            unsafe table.pointee.abi_major == UInt16(XBB_ABI_MAJOR),
            unsafe Int(table.pointee.struct_size) >= MemoryLayout<xbb_host>.offset(of: \.extension) ?? .max,
            let complete = unsafe table.pointee.complete
        else { return nil }
        unsafe self.table = unsafe table
        unsafe self.complete = unsafe complete
    }

    /// What `load()` was given.  Written once, before any other call into the plugin, so readers need no lock.
    nonisolated(unsafe) private static var loaded: PluginHost?

    /// The host, or nil before a successful `load()`.
    static var current: PluginHost? { unsafe loaded }

    /// `xbb_plugin.load`.
    ///
    /// - Returns: 0, or -EINVAL for a table of another major version.
    static func load(_ table: UnsafePointer<xbb_host>?) -> Int32 {
        guard let host = unsafe PluginHost(table) else { return -EINVAL }
        unsafe loaded = host
        return 0
    }

    /// One line for the operator about a disk (`xbb_hdev`), rate-limited by the host.
    func log(_ level: Level, disk: OpaquePointer?, _ line: String) {
        unsafe line.withCString { text in unsafe table.pointee.log?(disk, level.rawValue, text) }
    }

    /// Tells the host that something about a disk changed; `what` is `XBB_NOTIFY_*`.
    func notify(disk: OpaquePointer?, _ what: Int) {
        unsafe table.pointee.notify?(disk, UInt32(truncatingIfNeeded: what))
    }
}

/// What the host can be told about one open disk. Any thread, until `close()` returns.
///
/// `@unchecked Sendable`: the pointer is the host's, whose functions bear any thread.
@safe
public struct HostDisk: @unchecked Sendable {
    let disk: OpaquePointer?

    init(disk: OpaquePointer?) { unsafe self.disk = unsafe disk }

    /// What can change about a disk; `XBB_NOTIFY_*`.
    public enum Change: Int, Sendable {
        /// Its size: the host asks for ``StorageDisk/info`` again.
        case info = 1
        /// The storage is gone; requests fail until `found`.
        case lost = 2
        case found = 3
        /// Damage was seen.
        case corrupt = 4
        /// The storage cannot be reached from this process any more: the host ends it at once, and its successor opens the disk anew
        /// and gets the requests that are not completed. Say why with ``HostDisk/log(_:_:)`` before. Since ABI 1.3.
        case reopen = 5
    }

    /// One line for the operator, rate-limited by the host. Nothing that a guest wrote.
    public func log(_ level: PluginHost.Level, _ line: String) {
        unsafe PluginHost.current?.log(level, disk: disk, line)
    }

    /// Tells the host that something changed. It acts on it later.
    public func notify(_ change: Change) { unsafe PluginHost.current?.notify(disk: disk, change.rawValue) }
}
