// SPDX-License-Identifier: BSD-2-Clause
// An open transaction: private copies of the nodes it touched, with what each was when first seen.
import Xen

/// The nodes that a transaction read or wrote.
///
/// A node is copied when it is first used. At the end, the transaction takes effect if every one of these nodes,
/// changed or only read, present or missing, is still as it was first seen; so the outcome is as if the whole
/// transaction had run at its end. The list of children belongs to the parent: adding or removing a child also touches
/// the parent.
struct XenStoreTransactionLog: Sendable {
    /// One touched node.
    struct Entry: Sendable {
        /// The generation that was seen, or nil for a missing node.
        let seen: UInt64?
        /// The permissions that were seen.
        let seenPermissions: XenStoreNodePermissions?
        /// The node as the transaction sees it.
        var node: XenStoreNode?
        /// True if it must be stored.
        var isChanged = false
        /// Which watches are told, if any.
        var reach: XenStoreReach?
    }

    /// How many nodes it may touch.
    let limit: Int
    private(set) var entries: [XenStorePath: Entry] = [:]
    /// Changes that watches are to be told of, in order.
    private(set) var told: [XenStorePath] = []
    /// The growth in the number of nodes of each owner.
    private(set) var nodeCountChanges: [DomainID: Int] = [:]

    init(limit: Int) {
        self.limit = limit
    }

    /// Takes a copy of a node that is touched for the first time. Throws ENOSPC.
    mutating func take(_ node: XenStoreNode?, at path: XenStorePath) throws(XenStoreFailure) {
        guard entries.count < limit else { throw .noSpace }
        entries[path] = Entry(seen: node?.generation, seenPermissions: node?.permissions, node: node)
    }

    /// Changes a node that was taken before.
    mutating func edit(_ path: XenStorePath, _ change: (inout XenStoreNode) -> Void) {
        entries[path]?.node?.apply(change)
        entries[path]?.isChanged = true
    }

    /// Makes or removes a node that was taken before.
    mutating func set(_ node: XenStoreNode?, at path: XenStorePath) {
        entries[path]?.node = node
        entries[path]?.isChanged = true
    }

    mutating func count(_ change: Int, ownedBy owner: DomainID) {
        nodeCountChanges[owner, default: 0] += change
    }

    mutating func tell(_ path: XenStorePath, _ reach: XenStoreReach) {
        switch (entries[path]?.reach, reach) {
        case (nil, _):
            told.append(path)
            entries[path]?.reach = reach
        case (.nodeOnly, .nodeAndParents):
            entries[path]?.reach = reach
        default: break
        }
    }
}
