// SPDX-License-Identifier: BSD-2-Clause
// XenStore as the backend uses it.
import Base

/// A transaction of a XenStore connection; `.none` means no transaction.
public struct XenStoreTransaction: Equatable, Sendable {
    /// The identifier that the store gave.
    public let id: UInt32
    /// Operations outside of any transaction.
    public static let none = XenStoreTransaction(id: 0)

    /// Names a transaction by its identifier.
    public init(id: UInt32) {
        self.id = id
    }
}

/// What one domain may do with a node. The first entry of a list names the owner and the rights of every domain without
/// an entry.
public struct XenStorePermission: Equatable, Sendable {
    /// The domain that the entry is for.
    public var domain: DomainID
    /// May read.
    public var read: Bool
    /// May write.
    public var write: Bool

    /// Rights of `domain`.
    public init(domain: DomainID, read: Bool, write: Bool) {
        self.domain = domain
        self.read = read
        self.write = write
    }
}

/// A change under a watched path.
public struct XenStoreWatchEvent: Equatable, Sendable {
    /// The path that changed; the watched path itself for the first event.
    public let path: String
    /// The token that the watch was set with.
    public let token: String

    /// A change of `path` reported to the watch with `token`.
    public init(path: String, token: String) {
        self.path = path
        self.token = token
    }
}

/// One connection to XenStore (docs/misc/xenstore.txt of Xen).
///
/// For the control path only: calls block until XenStore answers. Values are at most 4096 bytes, and everything below a
/// frontend's path is untrusted. Use from one thread.
public protocol XenStore: AnyObject {
    /// The value of a node. Throws ENOENT if there is none, EACCES if it may not be read.
    func read(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [UInt8]
    /// The values of `keys` below a node, in their order and all read in one transaction; a key that cannot be read has the
    /// error of ``read(_:in:)``.
    func values(of keys: [String], below path: String) throws(OperationError) -> [Result<[UInt8], OperationError>]
    /// Sets a node and creates its missing parents.
    func write(_ path: String, _ value: [UInt8], in transaction: XenStoreTransaction) throws(OperationError)
    /// Creates an empty node unless it exists.
    func makeDirectory(_ path: String, in transaction: XenStoreTransaction) throws(OperationError)
    /// Removes a node with all below it. A missing node whose parent exists is no error.
    func remove(_ path: String, in transaction: XenStoreTransaction) throws(OperationError)
    /// The names of a node's children.
    func list(_ path: String, in transaction: XenStoreTransaction) throws(OperationError) -> [String]
    /// The permissions of a node, the owner's entry first.
    func permissions(of path: String, in transaction: XenStoreTransaction) throws(OperationError)
        -> [XenStorePermission]
    /// Replaces the permissions of a node.
    func setPermissions(
        of path: String, to permissions: [XenStorePermission], in transaction: XenStoreTransaction
    ) throws(OperationError)
    /// Starts a transaction.
    func startTransaction() throws(OperationError) -> XenStoreTransaction
    /// Ends a transaction: true if it took effect, false if it conflicted and must be tried again.
    func commit(_ transaction: XenStoreTransaction) throws(OperationError) -> Bool
    /// Ends a transaction without effect.
    func abort(_ transaction: XenStoreTransaction)
    /// Watches a path and all below it; the first event arrives at once.
    func watch(_ path: String, token: String) throws(OperationError)
    /// Ends a watch.
    func unwatch(_ path: String, token: String) throws(OperationError)
    /// Readable while a watch event is waiting.
    var watchFileDescriptor: Int32 { get }
    /// Hangs up (POLLHUP, whatever is waited for) when XenStore ends; -1 where nothing says so.
    var endDescriptor: Int32 { get }
    /// The next watch event; nil if none is waiting. Never blocks.
    func nextWatchEvent() throws(OperationError) -> XenStoreWatchEvent?
    /// The home of a domain, "/local/domain/<domid>".
    func domainPath(_ domain: DomainID) throws(OperationError) -> String
    /// True between a domain's introduction and its release.
    func isDomainIntroduced(_ domain: DomainID) throws(OperationError) -> Bool
}

extension XenStore {
    /// See the requirement: nothing says so.
    public var endDescriptor: Int32 { -1 }

    /// See the requirement: a question for each key.
    public func values(
        of keys: [String], below path: String
    ) throws(OperationError) -> [Result<[UInt8], OperationError>] {
        try valuesOneByOne(of: keys, below: path)
    }

    /// What a connection does that cannot ask for several keys at once.
    package func valuesOneByOne(
        of keys: [String], below path: String
    ) throws(OperationError) -> [Result<[UInt8], OperationError>] {
        try transaction { (transaction) throws(OperationError) in
            keys.map { key in
                do throws(OperationError) {
                    return .success(try read("\(path)/\(key)", in: transaction))
                } catch {
                    return .failure(error)
                }
            }
        }
    }

    /// The value of a node as text; nil if there is none or it is not UTF-8.
    public func text(_ path: String, in transaction: XenStoreTransaction = .none) throws(OperationError) -> String? {
        do {
            let bytes = try read(path, in: transaction)
            return String(validating: bytes, as: UTF8.self)
        } catch {
            if error.isNotFound { return nil }
            throw error
        }
    }

    /// Sets a node to text.
    public func write(_ path: String, _ text: String, in transaction: XenStoreTransaction = .none)
        throws(OperationError)
    {
        try write(path, [UInt8](text.utf8), in: transaction)
    }

    /// Removes a node with all below it, if there is one.
    public func removeIfPresent(_ path: String, in transaction: XenStoreTransaction = .none) throws(OperationError) {
        do throws(OperationError) {
            try remove(path, in: transaction)
        } catch {
            if !error.isNotFound { throw error }
        }
    }

    /// Runs `body` in a transaction, and again after each conflict, at most `attempts` times.
    ///
    /// Throws EAGAIN if every attempt conflicted. An error of `body` aborts the transaction.
    public func transaction<Result>(
        attempts: Int = 100, _ body: (XenStoreTransaction) throws(OperationError) -> Result
    ) throws(OperationError) -> Result {
        for _ in 0..<attempts {
            let transaction = try startTransaction()
            let result: Result
            do {
                result = try body(transaction)
            } catch {
                abort(transaction)
                throw error
            }
            if try commit(transaction) { return result }
        }
        throw OperationError(11, "transaction that conflicted \(attempts) times")
    }
}
