// SPDX-License-Identifier: BSD-2-Clause
// The store's state of one client.
import Xen

/// Identifies a connection; numbers are never reused.
struct XenStoreConnectionID: Hashable, Sendable {
    let number: UInt64
}

/// A watch, by its path and token.
struct XenStoreWatch: Sendable {
    let path: XenStorePath
    /// Any bytes but NUL.
    let token: ArraySlice<UInt8>
    private let prefixBelow: String
    /// How much of a changed path is omitted from its events.
    private let leftOut: Int

    /// `home` is given if the path was relative to it; the paths in events are then relative too.
    init(path: XenStorePath, token: ArraySlice<UInt8>, home: XenStorePath?) {
        self.path = path
        self.token = token
        prefixBelow = path.prefixBelow
        leftOut = home?.prefixBelow.utf8.count ?? 0
    }

    /// True if the watch is notified of the change.
    func sees(_ change: XenStoreChange) -> Bool {
        switch change.reach {
        case .nodeOnly: path == change.path
        case .nodeAndParents: path == change.path || change.path.description.hasPrefix(prefixBelow)
        }
    }

    /// The payload of an event, or nil if there is no room for the path and the token in a message.
    func event(_ changed: XenStorePath) -> [UInt8]? {
        let payload = Array(changed.description.utf8.dropFirst(leftOut)) + [0] + token + [0]
        return payload.count <= XenStoreMessage.maximumPayload ? payload : nil
    }
}

/// A client: its identity, its watches and transactions, its bytes on the way.
struct XenStoreConnection: Sendable {
    let domain: DomainID
    var decoder = XenStoreMessageDecoder()
    var outbox = XenStoreOutbox()
    var watches: [XenStoreWatch] = []
    var transactions: [UInt32: XenStoreTransactionLog] = [:]

    init(domain: DomainID) {
        self.domain = domain
    }

    /// Takes a transaction out, so that it can be changed in place and put back. Throws ENOENT if there is none.
    mutating func takeTransaction(_ id: UInt32) throws(XenStoreFailure) -> XenStoreTransactionLog? {
        if id == 0 { return nil }
        guard let transaction = transactions.removeValue(forKey: id) else { throw .notFound }
        return transaction
    }
}
