// SPDX-License-Identifier: BSD-2-Clause
// All nodes, how many each domain owns, and the one place where direct and transacted changes differ.
import Xen

/// The tree, kept flat: nodes by their paths.
///
/// Every function takes the transaction that it is part of, or nil for a change that takes effect at once. A function
/// that throws has changed nothing.
struct XenStoreNodes: Sendable {
    private var nodes: [XenStorePath: XenStoreNode] = [:]
    private var nodeCounts: [DomainID: Int] = [:]
    private var generation: UInt64 = 0
    private var changes: [XenStoreChange] = []
    let limits: XenStoreLimits

    /// A store with the root and the special nodes.
    init(limits: XenStoreLimits) {
        self.limits = limits
        for path in [XenStorePath.root, .introduceDomain, .releaseDomain] {
            nodes[path] = XenStoreNode(permissions: .controlOnly)
            nodeCounts[0, default: 0] += 1
        }
    }

    /// Changes since the last call.
    mutating func takeChanges() -> [XenStoreChange] {
        defer { changes.removeAll(keepingCapacity: true) }
        return changes
    }

    /// Nodes that a domain owns.
    func nodeCount(ownedBy domain: DomainID, in transaction: XenStoreTransactionLog?) -> Int {
        nodeCounts[domain, default: 0] + (transaction?.nodeCountChanges[domain] ?? 0)
    }

    /// A node as the transaction sees it. Throws ENOSPC when the transaction touches too many.
    func node(
        at path: XenStorePath, in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) -> XenStoreNode? {
        if transaction == nil { return nodes[path] }
        if let entry = transaction?.entries[path] { return entry.node }
        let node = nodes[path]
        try transaction?.take(node, at: path)
        return node
    }

    /// The permissions of a node outside of any transaction.
    func permissions(of path: XenStorePath) -> XenStoreNodePermissions? { nodes[path]?.permissions }

    /// Every path whose node fits, outside of any transaction, parents before children.
    func paths(where fits: (XenStoreNode) -> Bool) -> [XenStorePath] {
        nodes.filter { fits($0.value) }.map(\.key).sorted { $0.description < $1.description }
    }

    /// Makes a node that is missing.
    mutating func insert(
        _ node: XenStoreNode, at path: XenStorePath, in transaction: inout XenStoreTransactionLog?
    ) {
        var node = node
        node.generation = nextGeneration()
        count(1, ownedBy: node.permissions.owner, in: &transaction)
        if transaction == nil { nodes[path] = node } else { transaction?.set(node, at: path) }
    }

    /// Changes value or children of a node that exists.
    mutating func edit(
        _ path: XenStorePath, in transaction: inout XenStoreTransactionLog?, _ change: (inout XenStoreNode) -> Void
    ) {
        let generation = nextGeneration()
        let edit: (inout XenStoreNode) -> Void = { node in
            change(&node)
            node.generation = generation
        }
        if transaction == nil { nodes[path]?.apply(edit) } else { transaction?.edit(path, edit) }
    }

    /// Replaces the permissions of a node that exists.
    mutating func setPermissions(
        _ permissions: XenStoreNodePermissions, of path: XenStorePath, before: XenStoreNodePermissions,
        in transaction: inout XenStoreTransactionLog?
    ) {
        count(-1, ownedBy: before.owner, in: &transaction)
        count(1, ownedBy: permissions.owner, in: &transaction)
        edit(path, in: &transaction) { $0.permissions = permissions }
    }

    /// Removes a node that exists; children and the parent's list are the caller's.
    mutating func erase(_ path: XenStorePath, owner: DomainID, in transaction: inout XenStoreTransactionLog?) {
        count(-1, ownedBy: owner, in: &transaction)
        if transaction == nil { nodes[path] = nil } else { transaction?.set(nil, at: path) }
    }

    /// Notes that watches must be notified; for a change in a transaction only if and when it takes effect.
    mutating func tell(
        _ path: XenStorePath, _ reach: XenStoreReach, permissions: [XenStoreNodePermissions],
        in transaction: inout XenStoreTransactionLog?
    ) {
        if transaction == nil {
            changes.append(change(path, reach, permissions))
        } else {
            transaction?.tell(path, reach)
        }
    }

    /// Lets a transaction take effect.
    ///
    /// Throws EAGAIN if a node that it touched has changed since, ENOSPC if a domain would own too many nodes then.
    mutating func commit(
        _ transaction: XenStoreTransactionLog, by client: XenStoreIdentity
    ) throws(XenStoreFailure) {
        for (path, entry) in transaction.entries where nodes[path]?.generation != entry.seen { throw .conflict }
        for (owner, change) in transaction.nodeCountChanges
        where !client.isControl && owner != 0 && change > 0 {
            guard nodeCounts[owner, default: 0] + change <= limits.nodes else { throw .noSpace }
        }
        for (path, entry) in transaction.entries where entry.isChanged {
            var node = entry.node
            node?.generation = nextGeneration()
            nodes[path] = node
        }
        for (owner, change) in transaction.nodeCountChanges { count(change, ownedBy: owner) }
        for path in transaction.told {
            guard let entry = transaction.entries[path], let reach = entry.reach else { continue }
            let permissions = [entry.seenPermissions, entry.node?.permissions].compactMap(\.self)
            // Made and removed again within the transaction: nobody could ever see it.
            if !permissions.isEmpty { changes.append(change(path, reach, permissions)) }
        }
    }

    /// True if parents and children agree and the nodes of each domain are counted correctly.
    var isConsistent: Bool {
        var counts: [DomainID: Int] = [:]
        for (path, node) in nodes {
            counts[node.permissions.owner, default: 0] += 1
            guard Set(node.children).count == node.children.count,
                node.children.allSatisfy({ nodes[path.child($0)] != nil }),
                path.isRoot || path.isSpecial || nodes[path.parent]?.children.contains(path.name) == true
            else { return false }
        }
        return counts == nodeCounts
    }

    private func change(
        _ path: XenStorePath, _ reach: XenStoreReach, _ permissions: [XenStoreNodePermissions]
    ) -> XenStoreChange {
        let parent = path.isSpecial ? nil : nodes[path.parent]?.permissions
        return XenStoreChange(path: path, reach: reach, audience: permissions + [parent].compactMap(\.self))
    }

    private mutating func count(
        _ change: Int, ownedBy owner: DomainID, in transaction: inout XenStoreTransactionLog?
    ) {
        if transaction == nil { count(change, ownedBy: owner) } else { transaction?.count(change, ownedBy: owner) }
    }

    private mutating func count(_ change: Int, ownedBy owner: DomainID) {
        nodeCounts[owner, default: 0] += change
        if nodeCounts[owner] == 0 { nodeCounts[owner] = nil }
    }

    private mutating func nextGeneration() -> UInt64 {
        generation &+= 1
        return generation
    }
}
