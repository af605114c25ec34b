// SPDX-License-Identifier: BSD-2-Clause
// XenStore as a worker has it: through the keeper, which does what belongs to the worker's VBD.
package import Base
import CLinux
import Glibc
package import Xen

/// The worker's end. From one thread; calls wait for the keeper.
package final class BrokeredStore: XenStore {
    private let calls: Descriptor
    private let events: Descriptor

    /// Speaks to a keeper at the other ends of these sockets.
    package init(calls: Descriptor, events: Descriptor) {
        self.calls = calls
        self.events = events
    }

    private func ask(_ request: BrokerRequest, _ what: String) throws(OperationError) -> [UInt8] {
        let bytes = request.bytes
        guard bytes.count <= BrokerRequest.capacity else { throw OperationError(E2BIG, what) }
        let sent = unsafe bytes.withUnsafeBytes {
            unsafe send(calls.raw, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        guard sent == bytes.count else { throw OperationError(sent < 0 ? errno : EIO, what) }
        var buffer = [UInt8](repeating: 0, count: BrokerRequest.capacity)
        var count = -1
        repeat {
            count = unsafe buffer.withUnsafeMutableBytes { unsafe recv(calls.raw, $0.baseAddress, $0.count, 0) }
        } while count < 0 && errno == EINTR
        // An end: the keeper is gone, as XenStore would be.
        guard count > 0, let reply = BrokerReply(buffer[..<count]) else {
            throw OperationError(count < 0 ? errno : EPIPE, what)
        }
        if reply.code != 0 { throw OperationError(reply.code, what) }
        return reply.value
    }

    /// See ``XenStore``.
    package func read(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [UInt8] {
        try ask(BrokerRequest(.read, transaction.id, path: path), "read \(path)")
    }

    /// See ``XenStore``. One message each way, or several where the keys or their values do not fit into one.
    package func values(
        of keys: [String], below path: String
    ) throws(OperationError) -> [Result<[UInt8], OperationError>] {
        let list = Array(keys.joined(separator: "\0").utf8)
        if keys.count <= BrokerValues.mostKeys, list.count + path.utf8.count < BrokerRequest.capacity - 16 {
            let reply = try ask(BrokerRequest(.readAll, path: path, value: list), "read the keys of \(path)")
            if let values = BrokerValues.values(reply, of: keys, below: path) { return values }
        }
        return try valuesOneByOne(of: keys, below: path)
    }

    /// See ``XenStore``.
    package func write(_ path: String, _ value: [UInt8], in transaction: XenStoreTransaction) throws(OperationError) {
        _ = try ask(BrokerRequest(.write, transaction.id, path: path, value: value), "write \(path)")
    }

    /// See ``XenStore``.
    package func remove(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) {
        _ = try ask(BrokerRequest(.remove, transaction.id, path: path), "rm \(path)")
    }

    /// See ``XenStore``.
    package func startTransaction() throws(OperationError) -> XenStoreTransaction {
        XenStoreTransaction(id: number(try ask(BrokerRequest(.start), "start a transaction")[...]))
    }

    /// See ``XenStore``.
    package func commit(_ transaction: XenStoreTransaction) throws(OperationError) -> Bool {
        try ask(BrokerRequest(.commit, transaction.id), "end a transaction").first == 1
    }

    /// See ``XenStore``.
    package func abort(_ transaction: XenStoreTransaction) {
        do throws(OperationError) { _ = try ask(BrokerRequest(.abort, transaction.id), "abort a transaction") } catch {}
    }

    /// See ``XenStore``.
    package func watch(_ path: String, token: String) throws(OperationError) {
        _ = try ask(BrokerRequest(.watch, path: path, value: Array(token.utf8)), "watch \(path)")
    }

    /// See ``XenStore``.
    package func unwatch(_ path: String, token: String) throws(OperationError) {
        _ = try ask(BrokerRequest(.unwatch, path: path, value: Array(token.utf8)), "unwatch \(path)")
    }

    /// See ``XenStore``.
    package var watchFileDescriptor: Int32 { events.raw }

    /// See ``XenStore``: the keeper ends with XenStore.
    package var endDescriptor: Int32 { events.raw }

    /// See ``XenStore``. Its path is the watched one: the keeper joins the events of a watch.
    package func nextWatchEvent() throws(OperationError) -> XenStoreWatchEvent? {
        var buffer = [UInt8](repeating: 0, count: BrokerRequest.capacity)
        let count = unsafe buffer.withUnsafeMutableBytes {
            unsafe recv(events.raw, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT))
        }
        if count < 0 {
            if errno == EAGAIN || errno == EINTR { return nil }
            throw OperationError(errno, "take a watch event")
        }
        guard count > 0, let event = BrokerRequest(buffer[..<count]) else {
            throw OperationError(EPIPE, "take a watch event")
        }
        return XenStoreWatchEvent(path: event.path, token: String(decoding: event.value, as: UTF8.self))
    }

    /// Has the keeper empty the journal's file but for its first page, and make it so many bytes long.
    package func reserveJournal(_ bytes: Int) throws(OperationError) {
        guard let bytes = UInt32(exactly: bytes) else { throw OperationError(EFBIG, "reserve the journal") }
        _ = try ask(BrokerRequest(.reserve, value: littleEndian(bytes)), "reserve the journal")
    }

    // MARK: What no worker does

    /// Refused.
    package func makeDirectory(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) {
        throw OperationError(EPERM, "mkdir \(path)")
    }

    /// Refused.
    package func list(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [String] {
        throw OperationError(EPERM, "directory \(path)")
    }

    /// Refused.
    package func permissions(
        of path: String, in transaction: XenStoreTransaction
    ) throws(OperationError) -> [XenStorePermission] {
        throw OperationError(EPERM, "get the permissions of \(path)")
    }

    /// Refused.
    package func setPermissions(
        of path: String, to permissions: [XenStorePermission], in transaction: XenStoreTransaction
    ) throws(OperationError) {
        throw OperationError(EPERM, "set the permissions of \(path)")
    }

    /// Refused.
    package func domainPath(_ domain: DomainID) throws(OperationError) -> String {
        throw OperationError(EPERM, "get the home of domain \(domain)")
    }

    /// Refused.
    package func isDomainIntroduced(_ domain: DomainID) throws(OperationError) -> Bool {
        throw OperationError(EPERM, "look for domain \(domain)")
    }
}
