// SPDX-License-Identifier: BSD-2-Clause
// The operations of clients on nodes, with the checks of rights and limits.
import Xen

extension XenStoreNodes {
    /// The node, if `client` has `right` to it. Throws ENOENT or EACCES.
    func require(
        _ right: XenStoreRights, of path: XenStorePath, by client: XenStoreIdentity,
        in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) -> XenStoreNode {
        guard let node = try find(right, path, by: client, in: &transaction) else { throw .notFound }
        return node
    }

    /// Sets a value; makes the node and its parents if they are missing.
    mutating func write(
        _ value: [UInt8], to path: XenStorePath, by client: XenStoreIdentity,
        in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) {
        guard var node = try find(.write, path, by: client, in: &transaction) else {
            return try create(path, value, by: client, in: &transaction)
        }
        node.value = value
        try checkSize(node, by: client)
        edit(path, in: &transaction) { $0.value = value }
        tell(path, .nodeAndParents, permissions: [node.permissions], in: &transaction)
    }

    /// Makes an empty node and its parents unless it exists.
    mutating func makeDirectory(
        _ path: XenStorePath, by client: XenStoreIdentity, in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) {
        if try find(.write, path, by: client, in: &transaction) == nil {
            try create(path, [], by: client, in: &transaction)
        }
    }

    /// Removes a node with all below it. A missing node is no error if its parent exists.
    mutating func remove(
        _ path: XenStorePath, by client: XenStoreIdentity, in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) {
        guard let node = try find(.write, path, by: client, in: &transaction) else {
            if try self.node(at: path.parent, in: &transaction) == nil { throw .notFound }
            return
        }
        guard !path.isRoot else { throw .invalid }
        try removeTree(path, node, in: &transaction)
    }

    /// Replaces the permissions; only for the owner, who stays the owner unless the control domain says otherwise.
    mutating func setPermissions(
        _ permissions: XenStoreNodePermissions, of path: XenStorePath, by client: XenStoreIdentity,
        in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) {
        guard client.isControl || permissions.count <= limits.permissions else { throw .noSpace }
        var node = try require([.write, .own], of: path, by: client, in: &transaction)
        let before = node.permissions
        guard client.isControl || permissions.owner == before.owner else { throw .notPermitted }
        node.permissions = permissions
        try checkSize(node, by: client)
        setPermissions(permissions, of: path, before: before, in: &transaction)
        tell(path, .nodeAndParents, permissions: [permissions, before], in: &transaction)
    }

    /// Removes a domain from the store: its nodes with all below them, and its entries in the permissions of others.
    mutating func forget(_ domain: DomainID) {
        var none: XenStoreTransactionLog?
        for path in paths(where: { $0.permissions.owner == domain }) {
            // Already removed if it was below another one.
            guard let node = try? self.node(at: path, in: &none) else { continue }
            if path.isRoot || path.isSpecial {
                var permissions = node.permissions
                permissions.first.domain = 0
                setPermissions(permissions, of: path, before: node.permissions, in: &none)
            } else {
                try? removeTree(path, node, in: &none)
            }
        }
        for path in paths(where: { $0.permissions.others.contains { $0.domain == domain } }) {
            edit(path, in: &none) { $0.permissions.others.removeAll { $0.domain == domain } }
        }
    }

    /// The node if it exists and `client` has `right`; nil if it does not exist and `client` may know that.
    ///
    /// Throws EACCES otherwise: without the right to the nearest existing parent, a client learns nothing of what is
    /// below.
    private func find(
        _ right: XenStoreRights, _ path: XenStorePath, by client: XenStoreIdentity,
        in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) -> XenStoreNode? {
        if let node = try node(at: path, in: &transaction) {
            guard node.permissions.rights(of: client).isSuperset(of: right) else { throw .accessDenied }
            return node
        }
        let parent = try nearestParent(of: path, in: &transaction)
        guard !parent.permissions.rights(of: client).isDisjoint(with: right) else { throw .accessDenied }
        return nil
    }

    /// The first parent that exists, and the missing paths down to `path`, the last one first.
    private func nearestParent(
        of path: XenStorePath, in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) -> (path: XenStorePath, permissions: XenStoreNodePermissions, missing: [XenStorePath]) {
        var missing = [path]
        var parent = path.parent
        while true {
            if let node = try node(at: parent, in: &transaction) { return (parent, node.permissions, missing) }
            // Root cannot be removed, so this search always ends.
            if parent.isRoot { throw .notFound }
            missing.append(parent)
            parent = parent.parent
        }
    }

    private mutating func create(
        _ path: XenStorePath, _ value: [UInt8], by client: XenStoreIdentity,
        in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) {
        let parent = try nearestParent(of: path, in: &transaction)
        let permissions = parent.permissions.inherited(by: client)
        let newChild = parent.missing.last?.name ?? path.name
        var nodes: [(path: XenStorePath, node: XenStoreNode)] = []
        for missing in parent.missing {
            var node = XenStoreNode(permissions: permissions)
            if let child = nodes.last { node.children = [child.path.name] } else { node.value = value }
            nodes.append((missing, node))
        }
        if !client.isControl {
            guard nodeCount(ownedBy: client.domain, in: transaction) + nodes.count <= limits.nodes else {
                throw .noSpace
            }
            for (_, node) in nodes { try checkSize(node, by: client) }
            if let node = try node(at: parent.path, in: &transaction) {
                try checkSize(node, newChild: newChild, by: client)
            }
        }
        for (path, node) in nodes { insert(node, at: path, in: &transaction) }
        edit(parent.path, in: &transaction) { $0.children.append(newChild) }
        tell(path, .nodeAndParents, permissions: [permissions], in: &transaction)
    }

    private mutating func removeTree(
        _ top: XenStorePath, _ node: XenStoreNode, in transaction: inout XenStoreTransactionLog?
    ) throws(XenStoreFailure) {
        var found: [(path: XenStorePath, permissions: XenStoreNodePermissions)] = []
        var waiting = [(top, node)]
        while let (path, node) = waiting.popLast() {
            found.append((path, node.permissions))
            for name in node.children {
                let child = path.child(name)
                if let node = try self.node(at: child, in: &transaction) { waiting.append((child, node)) }
            }
        }
        _ = try self.node(at: top.parent, in: &transaction)
        for (path, permissions) in found.reversed() {
            // Watches are notified first, while the parent's permissions still exist.
            tell(path, path == top ? .nodeAndParents : .nodeOnly, permissions: [permissions], in: &transaction)
            erase(path, owner: permissions.owner, in: &transaction)
        }
        edit(top.parent, in: &transaction) { parent in
            if let index = parent.children.firstIndex(of: top.name) { parent.children.remove(at: index) }
        }
    }

    /// Throws ENOSPC if the node, with one more child if given, is larger than `client` may make it.
    private func checkSize(
        _ node: XenStoreNode, newChild: String? = nil, by client: XenStoreIdentity
    ) throws(XenStoreFailure) {
        guard !client.isControl else { return }
        let more = newChild.map { $0.utf8.count + 1 } ?? 0
        guard node.byteCount + more <= limits.nodeBytes else { throw .noSpace }
    }
}
