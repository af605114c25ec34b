// SPDX-License-Identifier: BSD-2-Clause
// XenStore over libxenstore: the daemon's socket, or /dev/xen/xenbus. XENSTORED_PATH names another socket.
import Base
import CLinux
import CXen
import Glibc

/// A connection of libxenstore (xenstore.h). Its functions set errno, which becomes the code of ``OperationError``.
///
/// Unsafe code here is the C interface: the handle lives as long as this object, and results are copied before they are
/// freed; and the address of a socket's peer, which the kernel writes into a structure of the size that it is told.
@safe
public final class LibXenStore: XenStore {
    private let handle: OpaquePointer
    /// A duplicate of the connection's socket; nil for /dev/xen/xenbus.
    private var end: Descriptor?

    /// Opens a connection: xs_open(). No other thread may open descriptors meanwhile, or ``endDescriptor`` may be -1.
    public init() throws(OperationError) {
        // The library keeps its socket to itself, and closes it as soon as its thread finds that it has ended. The kernel gives
        // out the lowest free number.
        let next = fcntl(2, F_DUPFD_CLOEXEC, 3)
        if next >= 0 { close(next) }
        guard let handle = unsafe xs_open(0) else { throw OperationError(errno, "connect to XenStore") }
        unsafe self.handle = handle
        if next >= 0, Self.isConnectedByName(next) {
            let copy = fcntl(next, F_DUPFD_CLOEXEC, 3)
            if copy >= 0 { end = Descriptor(owning: copy) }
        }
    }

    deinit {
        end = nil
        unsafe xs_close(handle)
    }

    /// The descriptor is a socket whose peer has a path, as a daemon's has.
    private static func isConnectedByName(_ descriptor: Int32) -> Bool {
        var peer = sockaddr_un()
        var size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let found = unsafe withUnsafeMutablePointer(to: &peer) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe getpeername(descriptor, $0, &size)
            }
        }
        return found == 0 && peer.sun_family == sa_family_t(AF_UNIX) && size > MemoryLayout<sa_family_t>.size
    }

    /// See ``XenStore``.
    public var endDescriptor: Int32 { end?.raw ?? -1 }

    /// See ``XenStore``.
    public func read(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [UInt8] {
        var length: UInt32 = 0
        guard let value = unsafe xs_read(handle, transaction.id, path, &length) else {
            throw OperationError(errno, "read \(path)")
        }
        defer { unsafe free(value) }
        return unsafe [UInt8](UnsafeRawBufferPointer(start: value, count: Int(length)))
    }

    /// See ``XenStore``.
    public func write(_ path: String, _ value: [UInt8], in transaction: XenStoreTransaction) throws(OperationError) {
        let done = unsafe value.withUnsafeBytes { bytes in
            unsafe xs_write(handle, transaction.id, path, bytes.baseAddress, UInt32(clamping: bytes.count))
        }
        if !done { throw OperationError(errno, "write \(path)") }
    }

    /// See ``XenStore``.
    public func makeDirectory(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) {
        if unsafe !xs_mkdir(handle, transaction.id, path) { throw OperationError(errno, "mkdir \(path)") }
    }

    /// See ``XenStore``.
    public func remove(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) {
        if unsafe !xs_rm(handle, transaction.id, path) { throw OperationError(errno, "rm \(path)") }
    }

    /// See ``XenStore``.
    public func list(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [String] {
        var count: UInt32 = 0
        guard let names = unsafe xs_directory(handle, transaction.id, path, &count) else {
            throw OperationError(errno, "directory \(path)")
        }
        defer { unsafe free(names) }
        return (0..<Int(count)).compactMap { index in
            guard let name = unsafe names[index] else { return nil }
            return unsafe String(cString: name)
        }
    }

    /// See ``XenStore``.
    public func permissions(
        of path: String, in transaction: XenStoreTransaction
    ) throws(OperationError) -> [XenStorePermission] {
        var count: UInt32 = 0
        guard let list = unsafe xs_get_permissions(handle, transaction.id, path, &count) else {
            throw OperationError(errno, "get permissions of \(path)")
        }
        defer { unsafe free(list) }
        return (0..<Int(count)).map { index in
            let entry = unsafe list[index]
            return XenStorePermission(
                domain: DomainID(truncatingIfNeeded: entry.id),
                read: UInt32(entry.perms) & UInt32(XS_PERM_READ) != 0,
                write: UInt32(entry.perms) & UInt32(XS_PERM_WRITE) != 0)
        }
    }

    /// See ``XenStore``.
    public func setPermissions(
        of path: String, to permissions: [XenStorePermission], in transaction: XenStoreTransaction
    ) throws(OperationError) {
        var list = permissions.map { entry in
            var converted = xs_permissions()
            converted.id = UInt32(entry.domain)
            converted.perms = UInt32((entry.read ? XS_PERM_READ : 0) | (entry.write ? XS_PERM_WRITE : 0))
            return converted
        }
        let count = UInt32(clamping: list.count)
        if unsafe !xs_set_permissions(handle, transaction.id, path, &list, count) {
            throw OperationError(errno, "set permissions of \(path)")
        }
    }

    /// See ``XenStore``.
    public func startTransaction() throws(OperationError) -> XenStoreTransaction {
        let id = unsafe xs_transaction_start(handle)
        if id == 0 { throw OperationError(errno, "start transaction") }
        return XenStoreTransaction(id: id)
    }

    /// See ``XenStore``.
    public func commit(_ transaction: XenStoreTransaction) throws(OperationError) -> Bool {
        if unsafe xs_transaction_end(handle, transaction.id, false) { return true }
        if errno == EAGAIN { return false }
        throw OperationError(errno, "commit transaction")
    }

    /// See ``XenStore``.
    public func abort(_ transaction: XenStoreTransaction) {
        _ = unsafe xs_transaction_end(handle, transaction.id, true)
    }

    /// See ``XenStore``.
    public func watch(_ path: String, token: String) throws(OperationError) {
        if unsafe !xs_watch(handle, path, token) { throw OperationError(errno, "watch \(path)") }
    }

    /// See ``XenStore``.
    public func unwatch(_ path: String, token: String) throws(OperationError) {
        if unsafe !xs_unwatch(handle, path, token) { throw OperationError(errno, "unwatch \(path)") }
    }

    /// See ``XenStore``.
    public var watchFileDescriptor: Int32 {
        unsafe xs_fileno(handle)
    }

    /// See ``XenStore``.
    public func nextWatchEvent() throws(OperationError) -> XenStoreWatchEvent? {
        guard let event = unsafe xs_check_watch(handle) else {
            if errno == EAGAIN { return nil }
            throw OperationError(errno, "take watch event")
        }
        defer { unsafe free(event) }
        guard let path = unsafe event[Int(XS_WATCH_PATH.rawValue)],
            let token = unsafe event[Int(XS_WATCH_TOKEN.rawValue)]
        else { return nil }
        return unsafe XenStoreWatchEvent(path: String(cString: path), token: String(cString: token))
    }

    /// See ``XenStore``.
    public func domainPath(_ domain: DomainID) throws(OperationError) -> String {
        guard let path = unsafe xs_get_domain_path(handle, UInt32(domain)) else {
            throw OperationError(errno, "get path of domain \(domain)")
        }
        defer { unsafe free(path) }
        return unsafe String(cString: path)
    }

    /// See ``XenStore``.
    public func isDomainIntroduced(_ domain: DomainID) throws(OperationError) -> Bool {
        unsafe xs_is_domain_introduced(handle, UInt32(domain))
    }
}
