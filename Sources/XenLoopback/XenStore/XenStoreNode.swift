// SPDX-License-Identifier: BSD-2-Clause
// One node of the store, and what is told about it when it changes.

/// A node; its path is its key in the store.
struct XenStoreNode: Sendable {
    var value: [UInt8] = []
    var permissions: XenStoreNodePermissions
    /// Names of the children, in the order in which they were made.
    var children: [String] = []
    /// Different after each change of anything above.
    var generation: UInt64 = 0

    /// What the node takes, as xenstored counts it: a header of 16 bytes, 8 per permission, the value, the names of
    /// the children with a NUL each.
    var byteCount: Int {
        children.reduce(16 + 8 * permissions.count + value.count) { $0 + $1.utf8.count + 1 }
    }

    /// The names of the children, each with a NUL behind it.
    var childList: [UInt8] {
        var list: [UInt8] = []
        for name in children {
            list.append(contentsOf: name.utf8)
            list.append(0)
        }
        return list
    }

    mutating func apply(_ change: (inout XenStoreNode) -> Void) { change(&self) }
}

/// Which watches see a change.
enum XenStoreReach: Sendable {
    /// Those of this very node: it went away together with a parent, whose watches are told of the parent.
    case nodeOnly
    /// Those of the node and of all its parents.
    case nodeAndParents
}

/// A change that watches are told of.
struct XenStoreChange: Sendable {
    let path: XenStorePath
    let reach: XenStoreReach
    /// Told to whom one of these lets read: the node's permissions after and before, and those of its parent, who may
    /// see the name anyway.
    let audience: [XenStoreNodePermissions]
}
